"""The method of the paper as pure tensor code, to be read beside it: Eq. 2–10."""

from hf_balancemix.method.mixing import draw_lambda, fold_lambda, mix
from hf_balancemix.method.mixture import MixtureFit, gaussian_posterior, label_posteriors
from hf_balancemix.method.refinement import (
    AMBIGUOUS,
    CLEAN,
    REFINEMENTS,
    RELABELLED,
    Refinement,
    refine,
    view_confidence,
)
from hf_balancemix.method.sampling import (
    MINORITY_SCORES,
    class_confidence,
    draw,
    effective_sample_size,
    instance_score,
    sampling_probability,
    total_variation,
)
from hf_balancemix.method.transition import TRANSITION_CHOICES

__all__ = [
    "AMBIGUOUS",
    "CLEAN",
    "MINORITY_SCORES",
    "REFINEMENTS",
    "RELABELLED",
    "TRANSITION_CHOICES",
    "MixtureFit",
    "Refinement",
    "class_confidence",
    "draw",
    "draw_lambda",
    "effective_sample_size",
    "fold_lambda",
    "gaussian_posterior",
    "instance_score",
    "label_posteriors",
    "mix",
    "refine",
    "sampling_probability",
    "total_variation",
    "view_confidence",
]
