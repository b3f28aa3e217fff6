"""Prepared pictures at hand: read from the spool, mapped, shared by the call threads."""

from __future__ import annotations

import base64
import contextlib
import mmap
import os
import threading
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError
from rsd.workers import images
from rsd.workers.api.replies import CallFailed

#: Encoded pictures at hand per process, in bytes; how many of them may be mapped (each is an open
#: file); and from how many bytes on they are.
CACHE_BYTES = 64 * 1024 * 1024
MAPS_MAX, MAP_FROM = 32, 64 * 1024


#: A picture as it stands in a request: bytes, or a file mapped into memory.
Url = bytes | mmap.mmap


class Pictures:
    """The data URLs of the spool, the latest at hand. Large ones are mapped: all processes that
    send a picture share the memory that holds it.
    """

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self._capacity = capacity
        self.named = False  #: whether names are wanted: a hash costs about as much as the encoding
        self._lock = threading.Lock()  # call threads share it
        self._reading = threading.Lock()
        self._urls: OrderedDict[str, tuple[Url, str]] = OrderedDict()
        self._bytes = 0
        self._maps = 0

    def get(self, spool: Path, sha256: str, *, reduced: bool) -> tuple[Url, str]:
        """The data URL of a picture, and a name that only these bytes have if it was made for
        `named`. Raises CallFailed when its spool file is gone.
        """
        key = f"{sha256}:half" if reduced else sha256
        found = self._known(key)
        if found is not None:
            return found
        with self._reading:  # threads that want the same picture wait for the first of them
            found = self._known(key)
            if found is not None:
                return found
            url = _data_url(images.spooled(spool, sha256))
            if reduced:
                whole = base64.b64decode(bytes(url).partition(b",")[2])
                url = images.data_url(images.halved(whole))
            found = url, blake2b(url, digest_size=16).hexdigest() if self.named else ""
            with self._lock:
                self._urls[key] = found
                self._count(url, +1)
                while self._full and len(self._urls) > 1:
                    self._count(self._urls.popitem(last=False)[1][0], -1)
        return found

    @property
    def _full(self) -> bool:
        return self._bytes > self._capacity or self._maps > MAPS_MAX

    def _count(self, url: Url, by: int) -> None:
        self._bytes += by * len(url)
        self._maps += by * isinstance(url, mmap.mmap)

    def _known(self, key: str) -> tuple[Url, str] | None:
        with self._lock:
            found = self._urls.get(key)
            if found is not None:
                self._urls.move_to_end(key)
            return found

    def drop(self, sha256: str) -> None:
        """This picture is not needed any more."""
        with self._lock:
            for key in (sha256, f"{sha256}:half"):
                found = self._urls.pop(key, None)
                if found is not None:
                    self._count(found[0], -1)


def _data_url(path: Path) -> Url:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size >= MAP_FROM:
                with contextlib.suppress(OSError):  # no more open files: then it is read
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()
    except FileNotFoundError:
        raise CallFailed(
            CallError(
                error=ErrorClass.TRANSIENT,
                message="the prepared picture is gone and is made again",
                reason="spool_missing",
            )
        ) from None
