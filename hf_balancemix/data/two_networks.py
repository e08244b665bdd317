"""The road of one mini-batch for two networks that are trained side by side, each on an order of its own.

An item holds the rows of both networks, so that whole items travel through samplers, ranks and workers as they do in
:mod:`hf_balancemix.data.pairs`: ``(row, partner, row, partner)``, or ``(row, row)`` without mixing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from hf_balancemix.data.pairs import Item, PairDataset
from hf_balancemix.method import draw_lambda

# Behind that of `PairDataset`, which serves the first network.
_SECOND_LAMBDA_STREAM = 10


def epoch_orders(num_rows: int, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Generator]:
    """Draw the order in which each network sees the rows of an epoch.

    Args:
        num_rows: N.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        (2, N) rows, and the generator, for what else the epoch draws.
    """
    # PyTorch takes 32 bits of a seed: not more than a hash of both numbers.
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    return torch.stack([torch.randperm(num_rows, generator=generator) for _ in range(2)]), generator


class TwoNetworkSampler(Sampler[Item]):
    """Yields one epoch of items for two networks, the same on every rank.

    Relations: as ``PairSampler`` with ``"batch"`` for each network by itself; but a network's images are mixed only
    among those of the same optimiser step that it trains on. The other rows have themselves as partners.

    Args:
        num_rows: N, the number of training images.
        seed: Seed of the run.
        epoch: Called at the start of each epoch; returns its number.
        trained: Called at the start of each epoch; returns the (2, N) bool rows that each network trains on.
        step_size: Images per optimiser step over all processes and accumulated batches.
        used_rows: How many rows of each order the epoch takes; the rest is dropped.
        mixed: Whether there are partners.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        epoch: Callable[[], int],
        trained: Callable[[], torch.Tensor],
        step_size: int,
        used_rows: int,
        mixed: bool = True,
    ) -> None:
        self.num_rows, self.seed, self.epoch, self.trained = num_rows, seed, epoch, trained
        self.step_size, self.used_rows, self.mixed = step_size, used_rows, mixed

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[Item]:
        orders, generator = epoch_orders(self.num_rows, self.seed, self.epoch())
        tokens = torch.randint(2**62, (self.num_rows,), generator=generator)
        members = []
        for order, trained in zip(orders, self.trained(), strict=True):
            members.append(order)
            if self.mixed:
                members.append(self._partners(order, trained, generator))
        for rows, token in zip(torch.stack(members, dim=1).tolist(), tokens.tolist(), strict=True):
            yield tuple(rows), token, 1

    def _partners(self, order: torch.Tensor, trained: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        partners = order.clone()
        for step in torch.arange(self.used_rows).split(self.step_size):
            chosen = step[trained[order[step]]]
            partners[chosen] = order[chosen[torch.randperm(len(chosen), generator=generator)]]
        return partners


class TwoNetworkDataset(PairDataset):
    """Turns a batch of items for two networks into tensors; ``mix_lambda`` is (B, 2), one column per network."""

    def __getitems__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Read one batch of items; the first half of the members belongs to the first network."""
        batch = super().__getitems__(items)
        seeds = [(token, _SECOND_LAMBDA_STREAM) for _, token, _ in items]
        second = draw_lambda(self.mix_alpha, seeds, self.folded).to(batch["mix_lambda"])
        return {**batch, "mix_lambda": torch.stack([batch["mix_lambda"], second], dim=1)}
