"""Error classes: what went wrong, and therefore what happens next."""

from __future__ import annotations

import enum


class ErrorClass(enum.StrEnum):
    """The one vocabulary of failure. A class is assigned where the error arises, nowhere else."""

    #: 429, or 503 busy: that endpoint's limit shrinks once, the item waits, no attempt is counted.
    RATE_LIMITED = "rate_limited"
    #: Out of credit: the endpoint is paused and probed slowly; items wait.
    QUOTA = "quota"
    #: Time-out, reset, 5xx, DNS: back off; blamed on the item only if others got answers.
    TRANSIENT = "transient"
    #: Wrong key, model, path or server: the endpoint is paused; no work is consumed.
    MISCONFIGURED = "misconfigured"
    #: A 400 that names a parameter: the request dialect is adapted once, the item goes again.
    UNSUPPORTED = "unsupported"
    #: Context length, 413, image too large: once smaller, then the item fails.
    TOO_BIG = "too_big"
    #: Content filter, refusal, any other 400: no identical retry.
    REFUSED = "refused"
    #: `finish_reason: length`: a candidate is kept but not graded; a grade gets a bigger cap once.
    TRUNCATED = "truncated"
    #: 200 without a usable answer: bounded retries, then the grade is `ungraded`.
    BAD_REPLY = "bad_reply"
    #: The picture itself is no good: the image fails with the reason.
    BAD_IMAGE = "bad_image"


#: Reason of a TRANSIENT error that is neither the item's nor the endpoint's: this process had no
#: memory left for it.
OUT_OF_MEMORY = "out_of_memory"


class UserError(Exception):
    """A user's mistake; its text is the one line that the user sees. Exit code 2."""


class StateError(Exception):
    """The state directory cannot be used: unreadable, locked, foreign or on a network share."""
