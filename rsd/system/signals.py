"""Signals outside the hub's main loop: before it listens, while a child starts, when all is over.

The hub turns signals into events of its queue (`listen`). Until then nothing has been begun: `run`
ends at once, and quietly.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

#: What a terminal, a service manager or an operator sends.
WANTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Exit codes of a run that is stopped: the daemon has done its duty, a pass has not.
STOPPED, INTERRUPTED = 0, 130

_code = STOPPED
_hung_up = False


def end_early(words: Sequence[str]) -> None:
    """Before the imports of `run`: SIGTERM and SIGINT end the process with its exit code, a SIGHUP
    waits for the hub. Other commands keep the system's ways. `words`: the command line.
    """
    global _code
    if words[:1] != ["run"]:
        return
    _code = INTERRUPTED if "--once" in words else STOPPED
    for number in WANTED:
        signal.signal(number, _end_now)


def end_orderly() -> None:
    """After the imports: end by SystemExit, which lets `finally` have its way. An exception out of
    a half-done import might be swallowed, so `end_early` does without.
    """
    for number in WANTED:
        if signal.getsignal(number) is _end_now:
            signal.signal(number, _end)


def _end_now(number: int, frame: FrameType | None) -> None:
    if not _noted(number):
        os._exit(_code)


def _end(number: int, frame: FrameType | None) -> None:
    if not _noted(number):
        raise SystemExit(_code)


def _noted(number: int) -> bool:
    global _hung_up
    if number == signal.SIGHUP:
        _hung_up = True
    return number == signal.SIGHUP


def listen(put: Callable[[int], None]) -> dict[int, Any]:
    """From now on signals leave a note and do nothing else; returns the old handlers. A SIGHUP that
    came before is noted now: the settings may have been read before they were changed.
    """
    global _hung_up

    def note(number: int, frame: FrameType | None) -> None:
        put(number)

    previous: dict[int, Any] = {n: signal.signal(n, note) for n in WANTED}
    if _hung_up:
        _hung_up = False
        put(signal.SIGHUP)
    return previous


def forget(previous: dict[int, Any]) -> None:
    """The hub has ended. In `run` nothing is left that a signal could stop, and the exit code is
    decided; elsewhere the old handlers come back.
    """
    for number, handler in previous.items():
        signal.signal(number, signal.SIG_IGN if handler in (_end, _end_now) else handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Start a child in this block: until it calls `ignore`, what a terminal sends to the whole
    group waits for it, and does not kill it in its imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WANTED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """In a child: the hub alone decides what a signal to the group means."""
    for number in WANTED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WANTED)
