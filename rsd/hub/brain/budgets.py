"""Requests and tokens per minute: what a provider sells, kept to by all processes together. Pure.

Token buckets: each holds what may be spent at once and fills steadily. What a call will take in
tokens is not known when it starts: the average of the calls before it is taken out, and put right
when it has ended. https://en.wikipedia.org/wiki/Token_bucket
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rsd.protocol.vocabulary import Rates, Usage

#: Seconds of the rate that may be spent at once: providers count in slices of a few seconds.
BURST_SECONDS = 5.0
#: Tokens that the first calls are thought to take, and the weight of the newest in the average.
FIRST_GUESS, NEWEST = 1_000.0, 0.1


@dataclass(slots=True)
class Bucket:
    """One rate, per minute; None is no limit."""

    rate: float | None
    level: float = 0.0
    filled_at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        """What may be spent at once; one request at least."""
        return max(1.0, (self.rate or 0.0) / 60 * BURST_SECONDS)

    def fill(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if self.rate is not None:
            gained = max(0.0, now - self.filled_at) * self.rate / 60
            self.level = min(self.capacity, self.level + gained)
        self.filled_at = now

    def covers(self, amount: float) -> bool:
        """Whether a call of this size may start; one that is larger than all waits until full."""
        return self.rate is None or self.level >= min(amount, self.capacity)


@dataclass(slots=True)
class Budget:
    """All rates of one pool."""

    rates: Rates
    requests: Bucket = field(init=False)
    tokens: tuple[Bucket, Bucket] = field(init=False)  #: input, output
    limited: bool = field(init=False)  #: whether any rate is a limit
    guess: list[float] = field(default_factory=lambda: [FIRST_GUESS, FIRST_GUESS])

    def __post_init__(self) -> None:
        self.change(self.rates)

    def change(self, rates: Rates) -> None:
        """A reload; what was learned of the calls' sizes stays."""
        self.rates = rates
        self.limited = rates != Rates()
        self.requests = Bucket(rates.requests)
        self.tokens = Bucket(rates.input_tokens), Bucket(rates.output_tokens)

    def ready(self, now: float) -> bool:
        """Whether one more call may start."""
        if not self.limited:
            return True
        for bucket in (self.requests, *self.tokens):
            bucket.fill(now)
        sizes = zip(self.tokens, self.guess, strict=True)
        return self.requests.covers(1.0) and all(b.covers(size) for b, size in sizes)

    def started(self) -> tuple[float, float]:
        """A call starts; returns the (input, output) tokens that were set aside for it."""
        reserved = self.guess[0], self.guess[1]
        if self.limited:
            self.requests.level -= 1.0
            for bucket, size in zip(self.tokens, reserved, strict=True):
                bucket.level -= size
        return reserved

    def returned(self, reserved: tuple[float, float]) -> None:
        """It was not begun after all."""
        self.requests.level += 1.0
        for bucket, size in zip(self.tokens, reserved, strict=True):
            bucket.level += size

    def ended(self, reserved: tuple[float, float], usage: Usage | None) -> None:
        """It ended; `usage` None: nobody knows what it took, so what was set aside is spent."""
        if usage is None:
            return
        took = float(usage.input_tokens), float(usage.output_tokens)
        for k, bucket in enumerate(self.tokens):
            bucket.level += reserved[k] - took[k]
            if took[k]:
                self.guess[k] += NEWEST * (took[k] - self.guess[k])
