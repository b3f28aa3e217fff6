"""How far a pass is, in lines on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from rsd.settings.fields import Settings

#: Seconds between two progress lines when stderr is no terminal.
LINE_SECONDS = 10.0


class Lines:
    """Progress of `--once`, in lines on stderr."""

    live = False  #: whether it draws, so that log lines would spoil it

    def __init__(self) -> None:
        self.last: dict[str, Any] | None = None
        self._line_at = 0.0

    def close(self) -> None:
        """Leave the screen as it was; here nothing was drawn."""

    def show(self, document: dict[str, Any]) -> None:
        """Take a status document."""
        self.last = document
        if time.monotonic() - self._line_at >= LINE_SECONDS:
            self._line_at = time.monotonic()
            done, images = done_of(document), document["images"]
            self.say(f"{done}/{images['seen']} images {facts_of(document)}")

    def say(self, line: str) -> None:
        """One line."""
        print(line, file=sys.stderr, flush=True)

    def summarise(self, settings: Settings) -> None:
        """The last word of a run."""
        if self.last is None:
            return
        images = self.last["images"]
        self.say(
            f"{images['high_quality']} high quality, {images['low_quality']} low quality, "
            f"{images['failed']} failed, {images['duplicate']} duplicates, "
            f"{images['queued'] + images['active']} open; "
            f"{self.last['candidates']['generated']} candidates. Results: {settings.output_dir}"
        )
        for reason in self.last["reasons"]:
            self.say(f"  {reason}")


def done_of(document: dict[str, Any]) -> int:
    """Images that are at their end."""
    images = document["images"]
    return sum(int(images[k]) for k in images if k not in ("seen", "queued", "active"))


def facts_of(document: dict[str, Any]) -> str:
    """Rate, quality, recent scores and time left, in a few words."""
    images, rates = document["images"], document["rates"]
    parts = [f"{images['high_quality']} high, {images['low_quality']} low"]
    if images["failed"]:
        parts.append(f"{images['failed']} failed")
    if rates["images_per_second"]:
        parts.append(f"{rates['images_per_second'] * 60:.1f}/min")
    recent = [f"{r['score']:.0f}" for r in document["recent_scores"][-4:]]
    if recent:
        parts.append("best " + " ".join(recent))
    if document["eta_seconds"]:
        minutes, seconds = divmod(int(document["eta_seconds"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    if document["reasons"]:
        parts.append(document["reasons"][0])
    return " · ".join(parts)
