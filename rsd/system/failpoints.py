"""Named points at which a test kills the process."""

from __future__ import annotations

import os
import signal


def failpoint(name: str, number: int = signal.SIGKILL) -> None:
    """Kill this process (with SIGKILL) if the environment names this point (crash tests only).

    `RSD_FAILPOINT=name` kills at the first passage, `name:3` at the third. The variable is read
    once: points lie on the path of every message.
    """
    if _WANTED is None:
        return
    point, _, count = _WANTED.partition(":")
    if point != name:
        return
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] == int(count or 1):
        os.kill(os.getpid(), number)


_WANTED = os.environ.get("RSD_FAILPOINT")
_passages: dict[str, int] = {}
