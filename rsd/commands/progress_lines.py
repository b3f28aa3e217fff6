"""How far a pass is, in lines on stderr."""

from __future__ import annotations

import sys
import time

from rsd.protocol.status import Status
from rsd.settings.fields import Settings

#: Seconds between two progress lines when stderr is no terminal.
LINE_SECONDS = 10.0


class Lines:
    """Progress of `--once`, in lines on stderr."""

    live = False  #: whether it draws, so that log lines would spoil it

    def __init__(self) -> None:
        self.last: Status | None = None
        self._next_line: float | None = None  # monotonic
        self._printed = False

    def close(self) -> None:
        """Leave the screen as it was; here nothing was drawn."""

    def show(self, status: Status) -> None:
        """Take a status document; the first line waits until there is something to report, but no
        longer than the second would.
        """
        self.last = status
        now = time.monotonic()
        if self._next_line is None:
            self._next_line = now + LINE_SECONDS if starting(status) else now
        if now >= self._next_line or (not self._printed and not starting(status)):
            self._next_line, self._printed = now + LINE_SECONDS, True
            images = status.images
            self.print_line(f"{images.ended}/{images.seen} images {facts_of(status)}")

    def print_line(self, line: str) -> None:
        """One line."""
        print(line, file=sys.stderr, flush=True)

    def summarise(self, settings: Settings) -> None:
        """The last lines of a run."""
        if self.last is None:
            return
        images = self.last.images
        self.print_line(
            f"{images.high_quality} high quality, {images.low_quality} low quality, "
            f"{images.failed} failed, {images.duplicate} duplicates, {images.open} open; "
            f"{self.last.candidates.generated} candidates. Results: {settings.output_dir}"
        )
        for reason in self.last.reasons:
            self.print_line(f"  {reason}")


def starting(status: Status) -> bool:
    """Whether all that could be reported is that nothing was seen or reached yet."""
    unknown = sum(e.state == "unknown" for e in status.endpoints)  # each is one of the reasons
    return (not status.images.seen or unknown > 0) and len(status.reasons) <= unknown


def facts_of(status: Status) -> str:
    """Rate, quality, recent scores and time left, in a few words."""
    images = status.images
    parts = [f"{images.high_quality} high, {images.low_quality} low"]
    if images.failed:
        parts.append(f"{images.failed} failed")
    if status.rates.images_per_second:
        parts.append(f"{60 * status.rates.images_per_second:.1f}/min")
    done = images.high_quality + images.low_quality  # counts only what is durable
    if recent := [f"{r.score:.0f}" for r in status.recent_scores[-4:] if done]:
        parts.append("best " + " ".join(recent))
    if status.eta_seconds:
        minutes, seconds = divmod(int(status.eta_seconds), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    if status.reasons:
        parts.append(status.reasons[0])
    return " · ".join(parts)
