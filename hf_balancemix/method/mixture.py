"""How probable it is that each given label is clean: 2K two-component mixtures, fitted at once (Eq. 6–8).

The losses of class k whose given label is l form the set (k, l). A model learns clean labels first, so each set is
read as a mixture of a small-loss (clean) and a large-loss (mislabelled) Gaussian. The losses are counted in histograms
(`histogram`), to which the mixtures are fitted (`mixture_fit`), from which the posteriors follow
(`mixture_posterior`). `label_posteriors` is all of it at once.

The fit equals scikit-learn's `GaussianMixture(2)` with the start of `mixture_fit`, `reg_covar=covariance_floor`,
`tol=tolerance` and `max_iter=max_steps`, on min–max normalised losses, up to the width of a bin: posteriors differ by
less than 1e-3. The stopping rule acts on each set by itself.
"""

from dataclasses import dataclass, fields

from torch import Tensor

from hf_balancemix.method.histogram import LossHistogram
from hf_balancemix.method.mixture_fit import fit_mixtures
from hf_balancemix.method.mixture_posterior import Mixtures, mixture_posteriors


@dataclass(frozen=True)
class MixtureFit(Mixtures):
    """The 2K mixtures, with the posteriors of all given labels.

    Attributes:
        posterior: (N, K) float32, float64 if the losses are: probability that the given label is clean (Eq. 8).
    """

    posterior: Tensor


def label_posteriors(
    losses: Tensor,
    labels: Tensor,
    *,
    min_fit: int = 4,
    monotone: bool = False,
    trust_positives: bool = False,
    separation: float = 0.0,
    disagreement: float = 0.0,
    max_steps: int = 10,
    tolerance: float = 1e-2,
    covariance_floor: float = 5e-4,
) -> MixtureFit:
    """Fit the mixture of every class and label value and return the posterior of every given label (Eq. 6–8).

    A set is taken as clean as a whole (posterior 1) if it has fewer than `min_fit` finite losses, if these span less
    than `MIN_RANGE`, if the fitted means end up closer than `MIN_SEPARATION`, if Ashman's D of the two components,
    √2·|μ₁ − μ₂| / √(σ₁² + σ₂²), is below `separation`, or if the larger mean is below `disagreement`.

    Args:
        losses: (N, K) loss of each entry against its given label (Eq. 6), from one pass over the whole training set.
            An infinite loss takes no part in any fit and gets posterior 0. Half precision is computed with in float32.
        labels: (N, K) given labels, 0 or 1, any dtype.
        min_fit: Fewest finite losses a set needs to be fitted.
        monotone: Posterior 1 below the small mean, and above it the running minimum over growing losses, so that a
            larger loss never looks cleaner. Off is Eq. 8 to the letter.
        trust_positives: Take every label 1 as clean, as in data with one annotated positive per image.
        separation: Least Ashman's D of a set that is divided. 0 is the paper, which divides every set; above 2 two
            Gaussians are usually called separate. This package's own variant.
        disagreement: Least mean loss, in nats and not normalised, of the large-loss component of a set that is
            divided. 0 is the paper; at ln 2 the model on the whole contradicts the labels of that component. This
            package's own variant.
        max_steps: Largest number of EM steps.
        tolerance: A set stops once its mean log-likelihood changes by less than this.
        covariance_floor: Added to every variance, in squared normalised loss. Below 1e-4 the bins are too wide for an
            exact fit.

    Returns:
        Posteriors and fits, on the device of `losses`.

    Raises:
        ValueError: Shapes are not one common (N, K) with N ≥ 1, a loss is NaN or −inf, or a label is neither 0 nor 1.
    """
    histogram = LossHistogram(losses.shape[-1], losses.device)
    histogram.add(losses, labels)
    mixtures = fit_mixtures(
        histogram,
        min_fit=min_fit,
        trust_positives=trust_positives,
        separation=separation,
        disagreement=disagreement,
        max_steps=max_steps,
        tolerance=tolerance,
        covariance_floor=covariance_floor,
    )
    posterior = mixture_posteriors(losses, labels, mixtures, monotone=monotone, trust_positives=trust_positives)
    return MixtureFit(**{field.name: getattr(mixtures, field.name) for field in fields(mixtures)}, posterior=posterior)
