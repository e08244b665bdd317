"""BalanceMix for Hugging Face: multi-label image training that is robust to imbalance and wrong labels.

from hf_balancemix import BalanceMixTrainer, BalanceMixTrainingArguments, MultiLabelTrainer
"""

try:
    import torchvision as _torchvision  # noqa: F401
except RuntimeError as error:  # a torchvision built for another torch fails like this, and takes transformers along
    from importlib.metadata import version as _version

    raise ImportError(
        f"torch {_version('torch')} and torchvision {_version('torchvision')} do not belong together ({error}). "
        "Install a matching pair in one command: pip install --upgrade torch torchvision"
    ) from error

from transformers import AutoConfig as _AutoConfig
from transformers import AutoModelForImageClassification as _AutoModelForImageClassification

from hf_balancemix.modeling.configuration_balancemix import BalanceMixConfig
from hf_balancemix.modeling.modeling_balancemix import BalanceMixForImageClassification
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.balancemix import BalanceMixTrainer
from hf_balancemix.training.co_teaching import CoTeachingTrainer
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.t_estimator import TEstimatorTrainer
from hf_balancemix.version import __version__

_AutoConfig.register("balancemix", BalanceMixConfig, exist_ok=True)
_AutoModelForImageClassification.register(BalanceMixConfig, BalanceMixForImageClassification, exist_ok=True)
# A checkpoint takes the code along, for `trust_remote_code=True` where this package is not installed.
BalanceMixConfig.register_for_auto_class()
BalanceMixForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "BalanceMixConfig",
    "BalanceMixForImageClassification",
    "BalanceMixTrainer",
    "BalanceMixTrainingArguments",
    "CoTeachingTrainer",
    "MultiLabelTrainer",
    "TEstimatorTrainer",
    "__version__",
]
