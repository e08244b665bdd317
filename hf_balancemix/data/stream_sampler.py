"""Pairs of schedule "stream": the sampler's own memory does not grow with the data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from hf_balancemix.data.pairs import CHUNK_ITEMS, PairSampler
from hf_balancemix.method import Permutation, draw_by_sums


class StreamSampler(PairSampler):
    """Yields one epoch of items; shuffles are computed and draws made when their turn comes.

    Relations: as :class:`PairSampler` from other random numbers; and where that is told the (N,) probability of the
    minority half, ``minority_probability`` gives the running sums of its weights here, (N,) float64.
    """

    def _halves(self, generator: torch.Generator) -> list[Iterable[torch.Tensor]]:
        first = Permutation(len(self), generator)
        halves: list[Iterable[torch.Tensor]] = [map(first.__getitem__, self._places())]
        if self.minority_probability == "random":
            halves.append(map(Permutation(len(self), generator).__getitem__, self._places()))
        elif self.minority_probability == "batch":
            halves.append(self._shuffled_batches(first, _forked(generator)))
        elif callable(self.minority_probability):
            halves.append(self._draws(self.minority_probability(), _forked(generator)))
        return halves

    def _places(self) -> Iterator[torch.Tensor]:
        """Yield the places of an epoch, whole batches at a time."""
        height = max(1, CHUNK_ITEMS // self.batch_size) * self.batch_size
        for start in range(0, len(self), height):
            yield torch.arange(start, min(start + height, len(self)))

    def _shuffled_batches(self, order: Permutation, generator: torch.Generator) -> Iterator[torch.Tensor]:
        for places in self._places():
            batches = order[places].split(self.batch_size)
            yield torch.cat([batch[torch.randperm(len(batch), generator=generator)] for batch in batches])

    def _draws(self, sums: torch.Tensor | None, generator: torch.Generator) -> Iterator[torch.Tensor]:
        for places in self._places():
            if sums is None:
                yield torch.randint(self.num_rows, (len(places),), generator=generator)
            else:
                yield draw_by_sums(sums, len(places), generator)


def _forked(generator: torch.Generator) -> torch.Generator:
    """Return a generator for what is drawn in between; 32 bits are all that PyTorch takes of a seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**32, (), generator=generator)))
