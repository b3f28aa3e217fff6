"""Whether a child still answers, and what it says that it is at. Pure; times are monotonic seconds,
given.
"""

from __future__ import annotations

import os

#: Seconds between two pings.
PING_SECONDS = 5.0
#: Seconds without an answer, or at one thing, after which a child counts as hung.
HUNG_SECONDS = float(os.environ.get("RSD_TEST_HUNG_SECONDS", "120"))
#: Seconds without an answer after which a child is called silent, and the systemd watchdog is not
#: fed any more if it is the writer.
SILENT_SECONDS = 30.0


class Heartbeat:
    """Of one child. `patience`: seconds that it may be at one thing."""

    def __init__(self, patience: float = HUNG_SECONDS) -> None:
        self._patience = patience
        self._busy = 0.0
        self._heard_at = self._pinged_at = self._looked_at = 0.0

    def started(self, now: float) -> None:
        """A new process: nothing is known of it."""
        self._busy = 0.0
        self._heard_at = self._pinged_at = self._looked_at = now

    def heard(self, now: float) -> None:
        """A message of it came."""
        self._heard_at = now

    def busy(self, seconds: float) -> None:
        """For how long it has been at one thing, as it says; 0 when it is at none."""
        self._busy = seconds

    def ping_due(self, now: float) -> bool:
        """Whether to ask it now. A hub that was itself stopped for a while has asked nothing
        meanwhile, and begins to wait anew.
        """
        if now - self._looked_at > PING_SECONDS:
            self._heard_at = now
        self._looked_at = now
        due = now - self._pinged_at >= PING_SECONDS
        if due:
            self._pinged_at = now
        return due

    def hung(self, now: float) -> str:
        """Why it has to go, in words; "" when it has not."""
        if self._busy >= self._patience:
            return f"it has been at one thing for {self._busy:.0f} s"
        silence = now - self._heard_at
        return f"it has said nothing for {silence:.0f} s" if silence >= HUNG_SECONDS else ""

    def silent(self, now: float) -> bool:
        """Whether it has not been heard lately."""
        return now - self._heard_at >= SILENT_SECONDS
