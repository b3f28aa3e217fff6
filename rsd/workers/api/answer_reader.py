"""The bytes of an answer, as they come, to status, headers and body: HTTP/1.1, bounded. Pure.

Answers are parsed by httptools, which is node's parser.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import zlib
from typing import Any, Final

import httptools
import urllib3.exceptions

from rsd.workers.api.transport import MAX_BODY_BYTES, AnswerTooLong

#: Longest status line and headers of an answer, with all interim answers before it; as many bytes
#: may come between two pieces of the body, or as trailers after it.
MAX_HEAD_BYTES: Final = 256 * 1024
#: Most bytes of what is no HTTP that are shown.
SHOWN_BYTES: Final = 80
#: Most gzip members of one answer.
MEMBERS_MAX: Final = 10_000
#: Bytes of a member that zlib is given first.
FIRST_WINDOW: Final = 1024
#: What zlib takes for "gzip or zlib, as its head says", and for deflate without a head.
_ANY_WRAPPER: Final = zlib.MAX_WBITS | 32
_BARE: Final = -zlib.MAX_WBITS
_ZEROS: Final = re.compile(rb"\0*")


class AnswerReader:
    """What the parser says of an answer."""

    def __init__(self) -> None:
        self.parser: Any = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()  #: as it came; one object, however small its pieces are
        self.headed = False  #: the headers are whole
        self.done = False
        self.kept = False  #: the connection may be used again
        self._head_bytes = 0  #: since the last piece of the body: head, framing, trailers
        self.first = b""  #: what came first, for a message

    def expect(self) -> None:
        """An answer is about to come."""
        self.parser = httptools.HttpResponseParser(self)
        # What http.client forgives, and every browser.
        self.parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_keep_alive=True,
            lenient_transfer_encoding=True,
            lenient_data_after_close=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )

    def take(self, data: bytes) -> None:
        """Bytes that have come. Raises what is wrong with them."""
        size = len(self.body)
        self._head_bytes += len(data)
        if not self.headed and self._head_bytes > MAX_HEAD_BYTES:
            raise http.client.LineTooLong("header")
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as e:
            raise e.__context__ or e from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            if self.done:  # what comes after the answer is none of ours
                self.kept = False
                return
            if self.headed:
                raise http.client.IncompleteRead(b"") from e
            raise http.client.BadStatusLine(_shown(self.first or data)) from None
        finally:
            self.first = self.first or data
        if len(self.body) > size:
            self._head_bytes = 0
        elif self.headed and not self.done and self._head_bytes > MAX_HEAD_BYTES:
            raise AnswerTooLong(f"more than {MAX_HEAD_BYTES} bytes of the answer are no body")

    @property
    def open_ended(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return not self.headers.keys() & {"content-length", "transfer-encoding"}

    def on_message_begin(self) -> None:
        """One answer was asked for: where another follows nobody knows what the next will be."""
        if self.done:
            self.kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line. Trailers say nothing that rsd wants, and replace nothing."""
        if self.headed:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The body follows, unless it was an interim answer."""
        if self.done:
            return
        self.status = self.parser.get_status_code()
        if self.status < 200:
            self.headers = {}
            return
        self.headed = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.done:
            return
        if len(self.body) + len(data) > MAX_BODY_BYTES:
            raise AnswerTooLong(f"the answer is longer than {MAX_BODY_BYTES} bytes")
        self.body += data

    def on_message_complete(self) -> None:
        """An interim answer or the answer itself is whole."""
        if self.headed and not self.done:
            self.done = True
            self.kept = self.parser.should_keep_alive()

    def end(self) -> None:
        """The connection has ended. Raises what that means when the answer is not whole."""
        if not self.headed and not self.first:
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        if not self.headed:
            raise http.client.BadStatusLine(_shown(self.first))
        if not self.open_ended:
            length = self.headers.get("content-length", "")
            missing = int(length) - len(self.body) if length.isdecimal() else None
            raise http.client.IncompleteRead(bytes(self.body), missing)
        self.done = True

    def whole(self) -> bytes:
        """The body, decompressed. Raises AnswerTooLong, urllib3's DecodeError."""
        data = bytes(self.body)
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if not data or encoding not in ("gzip", "x-gzip", "deflate"):
            return data
        try:
            return _unpacked(data, _ANY_WRAPPER)
        except zlib.error as e:
            if encoding == "deflate":
                with contextlib.suppress(zlib.error):
                    return _unpacked(data, _BARE)
            raise urllib3.exceptions.DecodeError(f"{encoding}: {e}") from e


def _shown(data: bytes) -> str:
    return data.partition(b"\n")[0][:SHOWN_BYTES].decode("latin-1")


def _unpacked(data: bytes, kind: int) -> bytes:
    """The content of all members: gzip allows several in a row, and zeros between them.

    A member is given to zlib in pieces that grow from small ones, because zlib copies what lies
    behind a member's end.
    """
    found: list[bytes] = []
    size = at = members = 0
    while at < len(data):
        members += 1
        if members > MEMBERS_MAX:
            raise zlib.error(f"more than {MEMBERS_MAX} members")
        packer = zlib.decompressobj(kind)
        window = FIRST_WINDOW
        while not packer.eof:
            piece = data[at : at + window]
            if not piece:
                raise zlib.error("incomplete or truncated stream")
            part = packer.decompress(piece, MAX_BODY_BYTES + 1 - size)
            found.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise AnswerTooLong(f"the answer is longer than {MAX_BODY_BYTES} bytes")
            at += len(piece) - len(packer.unused_data)
            window *= 2
        at = _ZEROS.match(data, at).end()  # type: ignore[union-attr]
    return b"".join(found)
