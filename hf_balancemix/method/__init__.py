"""The method of the paper as pure tensor code, to be read beside it: Eq. 2–10."""

from hf_balancemix.method.histogram import LossHistogram
from hf_balancemix.method.mixing import draw_lambda, fold_lambda, mix
from hf_balancemix.method.mixture import MixtureFit, label_posteriors
from hf_balancemix.method.mixture_fit import fit_mixtures
from hf_balancemix.method.mixture_posterior import Mixtures, gaussian_posterior, mixture_posteriors
from hf_balancemix.method.permutation import Permutation
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
    confidence_sums,
    describe_sampling,
    draw,
    draw_by_sums,
    instance_score,
    mean_confidence,
    partial_score,
    sampling_probability,
    sampling_weight,
    shares_of_sums,
)
from hf_balancemix.method.selection import (
    SELECTED_ABOVE,
    exchange,
    instance_posteriors,
    mean_probability_logits,
    step_weights,
)
from hf_balancemix.method.sparse import SparseLabels
from hf_balancemix.method.transition import (
    TRANSITION_CHOICES,
    TransitionFit,
    dual_transition,
    empirical_transition,
    estimate_transition,
    normalised_losses,
    pair_counts,
    solve_pair,
)

__all__ = [
    "AMBIGUOUS",
    "CLEAN",
    "MINORITY_SCORES",
    "REFINEMENTS",
    "RELABELLED",
    "SELECTED_ABOVE",
    "TRANSITION_CHOICES",
    "LossHistogram",
    "MixtureFit",
    "Mixtures",
    "Permutation",
    "Refinement",
    "SparseLabels",
    "TransitionFit",
    "class_confidence",
    "confidence_sums",
    "describe_sampling",
    "draw",
    "draw_by_sums",
    "draw_lambda",
    "dual_transition",
    "empirical_transition",
    "estimate_transition",
    "exchange",
    "fit_mixtures",
    "fold_lambda",
    "gaussian_posterior",
    "instance_posteriors",
    "instance_score",
    "label_posteriors",
    "mean_confidence",
    "mean_probability_logits",
    "mix",
    "mixture_posteriors",
    "normalised_losses",
    "pair_counts",
    "partial_score",
    "refine",
    "sampling_probability",
    "sampling_weight",
    "shares_of_sums",
    "solve_pair",
    "step_weights",
    "view_confidence",
]
