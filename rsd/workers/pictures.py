"""The bytes of prepared pictures: at hand, checked, shared by the call threads."""

from __future__ import annotations

import base64
import contextlib
import logging
import mmap
import os
import threading
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from rsd.errors import ErrorClass
from rsd.protocol.tasks import HALF, WHOLE, Configure
from rsd.protocol.vocabulary import CallError
from rsd.workers import spool
from rsd.workers.api.replies import CallFailed
from rsd.workers.spool import Url

log = logging.getLogger(__name__)

#: Encoded pictures at hand per process, in bytes; how many of them may be mapped (each is an open
#: file); and from how many bytes on they are.
CACHE_BYTES = 64 * 1024 * 1024
MAPS_MAX, MAP_FROM = 32, 64 * 1024
#: Files compared with their data URL that are remembered; the oldest is compared again.
FILES_MAX = 10_000
#: Reason of a call whose picture is to be prepared again.
SPOOL_MISSING = "spool_missing"


class PictureSource(Protocol):
    """Where a worker gets prepared pictures from. Any thread may ask; `sha256` is that of the
    source file, `sent_bytes` the size of the whole picture as it is sent (0: not known).
    """

    def configure(self, configuration: Configure) -> None:
        """First of all, and again after a reload."""

    def get(self, sha256: str, *, variant: str, sent_bytes: int) -> tuple[Url, str]:
        """The data URL of a picture, and a name that only these bytes have, "" when names are not
        wanted. Raises CallFailed (`spool_missing`) for one that is to be prepared again.
        """

    def file(self, sha256: str, *, sent_bytes: int) -> Path | None:
        """A file with the bytes of the whole picture, for a server that reads files; None when
        there is none. Raises CallFailed (`spool_missing`) as `get` does.
        """

    def drop(self, sha256: str) -> None:
        """This picture is not needed any more."""


class SpooledPictures:
    """The data URLs of the spool, the latest at hand, each checked when it is read. Large ones are
    mapped: all processes that send a picture share the memory that holds it.
    """

    def __init__(self, folder: Path = Path(), capacity: int = CACHE_BYTES) -> None:
        self._folder = folder
        self._capacity = capacity
        self._named = False  # a name is a hash, which costs about as much as the encoding
        self._lock = threading.Lock()  # call threads share it
        self._reading = threading.Lock()
        self._urls: OrderedDict[tuple[str, str], tuple[Url, str]] = OrderedDict()
        self._bytes = 0
        self._maps = 0
        self._checked: OrderedDict[str, None] = OrderedDict()  # files compared with their data URL

    def configure(self, configuration: Configure) -> None:
        """See PictureSource."""
        self._folder = Path(configuration.spool_dir)
        self._named = configuration.pictures == "uuid"

    def get(self, sha256: str, *, variant: str = WHOLE, sent_bytes: int = 0) -> tuple[Url, str]:
        """See PictureSource."""
        key = sha256, variant
        found = self._known(key)
        if found is not None:
            return found
        with self._reading:  # threads that want the same picture wait for the first of them
            found = self._known(key)
            if found is not None:
                return found
            url = _read(spool.url_path(self._folder, sha256, variant), variant, sent_bytes)
            found = url, blake2b(url, digest_size=16).hexdigest() if self._named else ""
            with self._lock:
                self._urls[key] = found
                self._count(url, +1)
                while self._full and len(self._urls) > 1:
                    self._count(self._urls.popitem(last=False)[1][0], -1)
        return found

    def file(self, sha256: str, *, sent_bytes: int) -> Path | None:
        """See PictureSource. It was prepared together with its data URL, which it must equal."""
        path = spool.plain_path(self._folder, sha256)
        if sha256 in self._checked:
            return path
        if not path.exists():  # prepared before the setting changed
            return None
        url, _ = self.get(sha256, sent_bytes=sent_bytes)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if base64.b64encode(data) != bytes(url).partition(b",")[2]:
            with contextlib.suppress(OSError):
                path.unlink()
            raise _missing()
        with self._lock:
            self._checked[sha256] = None
            while len(self._checked) > FILES_MAX:
                self._checked.popitem(last=False)
        return path

    def drop(self, sha256: str) -> None:
        """See PictureSource."""
        with self._lock:
            self._checked.pop(sha256, None)
            for variant in (WHOLE, HALF):
                found = self._urls.pop((sha256, variant), None)
                if found is not None:
                    self._count(found[0], -1)

    @property
    def _full(self) -> bool:
        return self._bytes > self._capacity or self._maps > MAPS_MAX

    def _count(self, url: Url, by: int) -> None:
        self._bytes += by * len(url)
        self._maps += by * isinstance(url, mmap.mmap)

    def _known(self, key: tuple[str, str]) -> tuple[Url, str] | None:
        with self._lock:
            found = self._urls.get(key)
            if found is not None:
                self._urls.move_to_end(key)
            return found


def _read(path: Path, variant: str, sent_bytes: int) -> Url:
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            url: Url | None = None
            if about.st_size >= MAP_FROM:
                with contextlib.suppress(OSError):  # no more open files: then it is read
                    url = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            url = file.read() if url is None else url
    except FileNotFoundError:
        raise _missing() from None
    if not spool.is_sound(url, variant, sent_bytes):
        log.warning("the prepared picture %s is damaged (%d bytes)", path.name, about.st_size)
        with contextlib.suppress(OSError):
            if path.stat().st_ino == about.st_ino:  # else another process has put a new one there
                path.unlink()
        raise _missing()
    return url


def _missing() -> CallFailed:
    return CallFailed(
        CallError(
            error=ErrorClass.TRANSIENT,
            message="the prepared picture is gone and is made again",
            reason=SPOOL_MISSING,
        )
    )
