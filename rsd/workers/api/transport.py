"""What carries a request and brings its answer: the seam below everything that knows a model.

Who implements `Transport` keeps connections, one deadline for all of an exchange, and the bounds.
"""

from __future__ import annotations

import mmap
from typing import Final, NamedTuple, Protocol

#: Longest answer body in bytes, before and after decompression; 2,048 tokens are a few kilobytes.
MAX_BODY_BYTES: Final = 16 * 1024 * 1024

#: A request's body in pieces, sent from where they lie: copying megabytes costs as much as sending.
Piece = bytes | mmap.mmap
Body = tuple[Piece, ...]


class Answer(NamedTuple):
    """Status, headers (names in small letters, the last of equal ones), body decompressed."""

    status: int
    headers: dict[str, str]
    body: bytes


class ExchangeFailed(Exception):
    """An open connection failed, which `__cause__` explains; the fields are what had come of the
    answer. `status` is None before its headers are whole.
    """

    def __init__(self, status: int | None, headers: dict[str, str], body: bytes) -> None:
        super().__init__("the exchange failed")
        self.status, self.headers, self.body = status, headers, body


class AnswerTooLong(Exception):
    """The answer passes a bound, which the text names; its head was within bounds."""


class Transport(Protocol):
    """Carries requests to one endpoint; threads share it."""

    def exchange(self, head: bytes, body: Body, seconds: float) -> Answer:
        """The answer to a request, whatever its status, after at most so many seconds.

        `head` is the request line and the headers, each with its line break; the empty line and the
        length of the body are the transport's. Raises ExchangeFailed when an open connection fails,
        and what urllib3 and the operating system raise when none can be opened.
        """
