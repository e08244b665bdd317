"""What the heads are built of."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def sine_positions(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the (H·W, d) float32 sine encoding of a map's places, row by row.

    The first half of the channels tells y, the other x. Coordinates count from 1 and are scaled to 2π; even channels
    hold the sine, odd ones the cosine, of the coordinate divided by d/4 numbers that grow geometrically from 1 towards
    10,000.
    """
    y = torch.arange(1, height + 1, device=device) * (2 * math.pi / (height + 1e-6))
    x = torch.arange(1, width + 1, device=device) * (2 * math.pi / (width + 1e-6))
    wavelengths = 1e4 ** (torch.arange(dim // 4, device=device) * (4 / dim))

    def encode(coordinate: torch.Tensor) -> torch.Tensor:
        angles = coordinate[:, None] / wavelengths
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    rows, columns = encode(y)[:, None].expand(-1, width, -1), encode(x)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after it.

    Args:
        dim: d, width of the tokens; the attention heads must divide it.
        num_heads: Attention heads.
        feedforward_dim: Width between the two linear layers.
        dropout: Probability, of attention weights too.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"Expected a width that {num_heads} attention heads divide, found {dim}. Choose another "
                "`num_heads`, or a head that projects the features (ml_decoder, query2label)."
            )
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Return (B, N, d) for (B, N, d) tokens, with (B, N, d) queries on (B, M, d) keys and values."""
        attended = self.attention(query, key, value, need_weights=False)[0]
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(tokens))))
        result: torch.Tensor = self.norm2(tokens + self.dropout(hidden))
        return result


class ClasswiseLinear(nn.Module):
    """One weight vector and bias per class, each for its own token.

    Args:
        num_labels: K.
        dim: d.
    """

    def __init__(self, num_labels: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, dim))
        self.bias = nn.Parameter(torch.empty(num_labels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, uniform within ±1/√d."""
        for tensor in (self.weight, self.bias):
            uniform_by_fan_in(tensor, self.weight.shape[1])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits of (B, K, d) tokens."""
        return torch.einsum("bkd,kd->bk", tokens, self.weight) + self.bias


def uniform_by_fan_in(tensor: torch.Tensor, fan_in: int) -> None:
    """Draw a tensor anew, uniform within ±1/√(fan-in)."""
    nn.init.uniform_(tensor, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def as_tokens(features: torch.Tensor) -> torch.Tensor:
    """Return (B, H·W, C), row by row, of (B, C, H, W); (B, N, C) stays."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
