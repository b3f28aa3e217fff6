"""Reproducible randomness: a stream that its name alone determines. Pure.

A decision that is made again after a crash must fall the same way, and that of one image must not
depend on what other images drew before it. So nothing is ever seeded once and carried along: each
purpose of each round of each image has a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

_WORDS = 8  #: of 64 bits, per block of the hash


class Dice:
    """The stream of one purpose in one round of one image: blake2b in counter mode."""

    __slots__ = ("_block", "_prefix", "_spare", "_words")

    def __init__(self, seed: int, sha256: str, round: int, purpose: str) -> None:
        self._prefix = f"{seed}:{sha256}:{round}:{purpose}:"
        self._block = 0
        self._words: list[int] = []
        self._spare: float | None = None

    def _word(self) -> int:
        if not self._words:
            digest = blake2b(f"{self._prefix}{self._block}".encode()).digest()
            self._block += 1
            self._words = [
                int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_WORDS)
            ]
        return self._words.pop()

    def uniform(self) -> float:
        """From 0 up to, not including, 1; 53 bits."""
        return (self._word() >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """A number from 0 to `count - 1`. Raises ValueError when there is none."""
        if count < 1:
            raise ValueError("nothing to choose from")
        return min(int(self.uniform() * count), count - 1)

    def normal(self) -> float:
        """Standard normal (Box and Muller, 1958); at most 8.6 away from 0."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        angle = 2.0 * math.pi * self.uniform()
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def permutation(self, count: int) -> list[int]:
        """The numbers below `count` in a random order, all orders alike (Fisher and Yates)."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def sample(self, weights: Sequence[float], count: int) -> list[int]:
        """`count` different indices, one after the other in proportion to the weights that are
        left; when these are all 0, all alike. Raises ValueError when there are too few.
        """
        if count > len(weights):
            raise ValueError(f"{count} of {len(weights)} indices")
        left = list(range(len(weights)))
        chosen: list[int] = []
        for _ in range(count):
            total = math.fsum(weights[i] for i in left)
            place = self.below(len(left)) if total <= 0.0 else self._place(weights, left, total)
            chosen.append(left.pop(place))
        return chosen

    def _place(self, weights: Sequence[float], left: list[int], total: float) -> int:
        mark = self.uniform() * total
        last = 0
        for place, index in enumerate(left):
            if weights[index] <= 0.0:
                continue
            last = place  # rounding may leave the mark beyond the end
            mark -= weights[index]
            if mark < 0.0:
                break
        return last
