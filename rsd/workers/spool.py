"""Prepared pictures in the spool: where they lie, in which form, and whether a file holds one.

A power loss may leave a file under its final name with no bytes, with too few, or with zeros in
their place. So whoever reads one checks it, and a damaged one is prepared again.
"""

from __future__ import annotations

import base64
import contextlib
import mmap
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from rsd.protocol.tasks import HALF
from rsd.system.files import ENCODED, HALVED, TEMPORARY

#: A data URL in memory, or a file that holds it, mapped.
Url = bytes | mmap.mmap

#: Longest beginning of a data URL up to and with its comma, in bytes.
HEAD_MAX: Final = 64
#: The last chunk of a PNG, and the base64 digits at the end that hold all of it.
PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
PNG_END_DIGITS: Final = 20
#: Bytes that are compared at a time.
CHUNK: Final = 1024 * 1024

_HEAD = re.compile(rb"data:image/[a-z0-9.+-]+;base64,")


def url_path(spool: Path, sha256: str, variant: str) -> Path:
    """Where the data URL of a variant lies; `sha256` is that of the source file."""
    return spool / f"{sha256}{HALVED if variant == HALF else ENCODED}"


def plain_path(spool: Path, sha256: str) -> Path:
    """Where the bytes of the whole picture lie for servers that read files."""
    return spool / sha256


def data_url(data: bytes) -> bytes:
    """A picture as it stands in a request."""
    return b"data:%s;base64,%s" % (media_type(data).encode(), base64.b64encode(data))


def media_type(data: bytes) -> str:
    """MIME type of prepared bytes, by content."""
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data.startswith(b"GIF8"):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/png"


def is_sound(url: Url, variant: str, sent_bytes: int) -> bool:
    """Whether these bytes are a whole data URL. `sent_bytes`: size of the whole picture, 0 when it
    is not known; that of a half is not, but a half is always a PNG and has a last chunk.
    """
    comma = url.find(b",", 0, HEAD_MAX)
    if comma < 0 or not _HEAD.fullmatch(url[: comma + 1]):
        return False
    digits = len(url) - comma - 1
    if variant == HALF:
        right = digits % 4 == 0 and _ends_a_png(url[-PNG_END_DIGITS:])
    elif sent_bytes:
        right = digits == -(-sent_bytes // 3) * 4
    else:
        right = digits > 0 and digits % 4 == 0
    return right and url.find(b"\0") < 0


def _ends_a_png(digits: bytes) -> bool:
    try:
        return base64.b64decode(digits, validate=True).endswith(PNG_END)
    except ValueError:
        return False


def store(target: Path, data: bytes) -> None:
    """Put a file in its place whole, unless it holds these very bytes already. Raises OSError."""
    if _holds(target, data):
        return
    target.parent.mkdir(exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=".", suffix=TEMPORARY, dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _holds(target: Path, data: bytes) -> bool:
    try:
        with target.open("rb") as file:
            if os.fstat(file.fileno()).st_size != len(data):
                return False
            return all(
                file.read(CHUNK) == data[at : at + CHUNK] for at in range(0, len(data), CHUNK)
            )
    except OSError:
        return False
