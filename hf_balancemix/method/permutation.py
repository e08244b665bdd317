"""A random order that is computed and not held: `torch.randperm` takes 8 bytes for each instance, on every process."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

_ROUNDS = 12


class Permutation:
    """A pseudo-random permutation of N instances in O(1) memory.

    A place is a pair of digits; each round adds to one digit a hash of the other, which can be undone, and so is a
    permutation of all pairs of digits. Those of no instance are sent on until they meet one. The network is the
    generalised Feistel cipher of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), with the
    finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) as its hash: random enough to train by, no secret.

    Args:
        size: N.
        generator: Source of the key; the same state gives the same permutation on every machine.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size = size
        self._key = torch.randint(2**62, (_ROUNDS,), generator=generator).numpy().astype(np.uint64)
        tall = max(1, int(np.ceil(np.sqrt(size))))
        self._base = (np.uint64(tall), np.uint64(max(1, -(-size // tall))))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return the (n, ...) int64 instances at places (n, ...) of [0, N)."""
        found = self._rounds(places.numpy().astype(np.uint64))
        while (beyond := found >= self.size).any():
            found[beyond] = self._rounds(found[beyond])
        return torch.from_numpy(found.astype(np.int64))

    def _rounds(self, places: Words) -> Words:
        digits = [places // self._base[1], places % self._base[1]]
        for i, key in enumerate(self._key):
            changed = i % 2
            digits[changed] = (digits[changed] + _hash(digits[1 - changed] ^ key)) % self._base[changed]
        whole: Words = digits[0] * self._base[1] + digits[1]
        return whole


def _hash(words: Words) -> Words:
    """Mix 64 bits; products wrap around. The upper half is kept, so that adding to it does not."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words >> np.uint64(32)
