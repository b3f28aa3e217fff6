"""What becomes of a piece of work after an error. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from rsd.errors import ErrorClass
from rsd.hub.brain.events import Policy
from rsd.hub.brain.queue import Work, WorkKind
from rsd.protocol.vocabulary import CallError


@dataclass(frozen=True, slots=True)
class Retry:
    """Again, not before this time."""

    at: float


@dataclass(frozen=True, slots=True)
class Split:
    """Again in smaller requests."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This work ends without an answer."""


Verdict = Retry | Split | GiveUp


def after_failure(
    work: Work, error: CallError, others_answered: bool, now: float, policy: Policy
) -> Verdict:
    """SPEC section 7, seen from the item. `others_answered`: the endpoint answered something else
    since this item's last try, so a time-out or a 500 is the item's own.
    """
    kind = error.error
    if kind is ErrorClass.RATE_LIMITED:
        work.busy += 1
        if len(work.indices) > 1 and work.kind is WorkKind.GENERATE and work.busy % 2 == 0:
            return Split()
        return Retry(now)
    if kind in (ErrorClass.QUOTA, ErrorClass.MISCONFIGURED):
        return Retry(now)
    if kind is ErrorClass.REFUSED:
        return GiveUp()
    if kind is ErrorClass.TOO_BIG:
        return _smaller(work, error, now)
    if kind is ErrorClass.TRUNCATED:
        if work.token_factor > 1.0:
            return GiveUp()
        work.token_factor = 2.0
        return Retry(now)
    if kind is ErrorClass.TRANSIENT and not others_answered:
        return Retry(now + pause(work, policy))
    work.attempts += 1
    if work.first_counted is None:
        work.first_counted = now
    if work.attempts >= policy.max_attempts or now - work.first_counted >= policy.max_age:
        return GiveUp()
    return Retry(now + pause(work, policy))


def _smaller(work: Work, error: CallError, now: float) -> Verdict:
    if work.kind is WorkKind.GRADE and len(work.indices) > 1:
        return Split()
    about_tokens = (error.param or "").endswith("tokens") and "input" not in (error.param or "")
    if about_tokens and work.token_factor == 1.0:
        work.token_factor = 0.5
        return Retry(now)
    if not work.reduced:
        work.reduced = True
        return Retry(now)
    return GiveUp()


def pause(work: Work, policy: Policy) -> float:
    """Seconds until the next try: doubling, with a jitter of half to full that depends on the
    work, so that tries of one burst do not return as one burst.
    """
    tries = work.attempts + work.killed
    longest = min(policy.backoff_max, policy.backoff * 2.0 ** min(64, max(0, tries - 1)))
    salt = f"{work.image}:{work.kind}:{work.indices}:{work.number}:{tries}"
    share = int.from_bytes(blake2b(salt.encode(), digest_size=2).digest(), "big") / 65535
    return longest * (0.5 + 0.5 * share)
