"""The link between a worker and its hub, whatever it is made of."""

from __future__ import annotations

from typing import Protocol

import msgspec

from rsd.protocol.tasks import ToWorker


class Channel(Protocol):
    """A worker's end of its link to the hub. The process ends by itself when the link breaks, so
    neither method reports that; a message that cannot be decoded ends it with an exception.
    """

    def get(self) -> ToWorker:
        """Block until the next message is there. One thread may call it."""

    def reply(self, message: msgspec.Struct) -> None:
        """Send a message; returns when it is on its way. Any thread may call it."""
