"""Noise transition matrices of labels, estimated from label correlations (T-estimator, Li et al. 2022)."""

TRANSITION_CHOICES = ("medoid", "residual")
"""How one of the candidate matrices of a class is chosen: the paper's rule and its code's."""
