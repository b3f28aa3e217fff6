"""How long a server wants to be left alone, and what it will still take. Pure.

Headers first; the words of a refusal say it where a proxy dropped them.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from rsd.protocol.vocabulary import RateWindow

#: Longest time that a server's wish to wait is believed, in seconds.
RETRY_AFTER_MAX: Final = 3600.0

#: Servers whose headers a proxy dropped still say it in words.
_AGAIN_IN = re.compile(
    r"(?:try again|retry) (?:in|after) "
    r"(\d+(?:\.\d+)?(?:ms|[dhms][\d.dhms]*)?)(?: ?(second|minute)s?)?",
    re.IGNORECASE,
)
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)


def names_a_limit(headers: Mapping[str, str]) -> bool:
    """Whether `x-ratelimit-*` headers describe a limit. Azure has sent -1 and 0: those do not."""
    for name, value in headers.items():
        if name.lower().startswith("x-ratelimit-") and (duration(value) or 0.0) > 0:
            return True
    return False


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, the largest that the server names, at most RETRY_AFTER_MAX; None if none.

    Retry-After is seconds or an HTTP date (RFC 9110, 10.2.3). `x-ratelimit-reset-*` counts unless
    the same limit's `remaining` says that it is not spent. `now` is Unix seconds.
    """
    waits: list[float] = []
    low = {name.lower(): value.strip() for name, value in headers.items()}
    for name, value in low.items():
        if name == "retry-after":
            wait = duration(value)
            if wait is None:
                with contextlib.suppress(ValueError, TypeError, OverflowError):
                    wait = parsedate_to_datetime(value).timestamp() - now
            waits.append(wait or 0.0)
        elif name == "retry-after-ms":
            waits.append((duration(value) or 0.0) / 1000)
        elif name.startswith("x-ratelimit-reset"):
            left = duration(low.get(name.replace("reset", "remaining"), "0"))
            wait = duration(value) or 0.0
            if wait > 1e11:  # OpenRouter: milliseconds since 1970
                wait = wait / 1000 - now
            elif wait > 1e9:
                wait -= now
            if not left or left <= 0:
                waits.append(wait)
    longest = max((w for w in waits if w > 0), default=None)
    return None if longest is None else min(longest, RETRY_AFTER_MAX)


def rate_windows(headers: Mapping[str, str], now: float) -> tuple[RateWindow, ...]:
    """What is left by the `x-ratelimit-*` of an answer; `now` is Unix seconds.

    Some servers send -1 and 0 for "no limit": only positive numbers are believed.
    """
    found: list[RateWindow] = []
    low = {name.lower(): value for name, value in headers.items()}
    for name, value in low.items():
        if not name.startswith("x-ratelimit-remaining"):
            continue
        left = duration(value) or 0.0
        wait = duration(low.get(name.replace("remaining", "reset"), "")) or 0.0
        if wait > 1e11:  # milliseconds since 1970
            wait = wait / 1000 - now
        elif wait > 1e9:
            wait -= now
        if left > 0 and 0 < wait <= RETRY_AFTER_MAX:
            tokens = "token" in name
            found.append(RateWindow(remaining=left, seconds=wait, tokens=tokens))
    return tuple(found)


def wait_in_words(message: str) -> float | None:
    """Seconds to wait as the text of a refusal names them, at most RETRY_AFTER_MAX."""
    match = _AGAIN_IN.search(message)
    wait = duration(match[1].rstrip(".")) if match else None
    if not match or not wait or wait <= 0:
        return None
    return min(wait * (60.0 if (match[2] or "").lower() == "minute" else 1.0), RETRY_AFTER_MAX)


def duration(text: str) -> float | None:
    """Seconds of `6m0s`, `120ms`, `1h2m` or a plain number, finite; None for anything else."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        match = _DURATION.fullmatch(text)
        if not match or not any(match.groups()):
            return None
        days, hours, minutes, seconds, millis = (float(g) if g else 0.0 for g in match.groups())
        number = ((days * 24 + hours) * 60 + minutes) * 60 + seconds + millis / 1000
    return number if math.isfinite(number) else None
