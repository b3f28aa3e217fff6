"""Pictures: opened safely, verified, hashed, turned the right way up, written into the spool.

Every picture is fully decoded here before any model sees it: vLLM shows the model a black picture
for a damaged PNG and answers 200. Bytes that are acceptable as they are go through untouched.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError

from rsd.errors import ErrorClass
from rsd.protocol.tasks import HALF, WHOLE
from rsd.protocol.vocabulary import FOLDER_AWAY, VANISHED, CallError, ImageInfo
from rsd.system.files import refusal
from rsd.workers import spool

#: Pillow's names of the formats behind the listed extensions; all other readers stay shut (EPS
#: would start ghostscript). MPO comes through JPEG.
FORMATS: Final = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
#: Formats that every OpenAI-compatible endpoint takes as they are.
PASSED: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
#: Ink this bright would vanish on white; grey level.
NEARLY_WHITE: Final = 230
#: Alpha from which a pixel counts as ink.
OPAQUE: Final = 32
#: A PNG's end chunk must lie within this many bytes of the file's end (some append things to it).
END_BYTES: Final = 64 * 1024
#: Most scans of a JPEG. Progressive ones have about ten; each is a pass over all pixels, however
#: few bytes the file has for it. And most segments that are looked at to count them.
SCANS_MAX: Final = 100
SEGMENTS_MAX: Final = 10_000
#: Reason of a picture that wants more memory than decoding may take.
TOO_MUCH_MEMORY: Final = "too_much_memory"
#: EXIF's name of the orientation.
ORIENTATION: Final = 0x0112

#: A marker of JPEG that begins a segment: neither a stuffed byte of the picture's data nor one that
#: stands alone.
_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"

# Pillow's own limit is far above ours and none at all between its warning and its error.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What is acceptable: pixels, bytes, pixels of the shorter side, long side / short side."""

    max_pixels: int
    max_file_bytes: int
    min_side: int
    max_aspect: float
    background: str  #: `auto`, `white` or `black`


class BadImage(Exception):
    """The picture is no good; `error` says why."""

    def __init__(self, reason: str, message: str, sha256: str | None = None) -> None:
        super().__init__(message)
        self.error = CallError(
            error=ErrorClass.BAD_IMAGE, message=message[:300], reason=reason, sha256=sha256
        )


class SpoolRefused(Exception):
    """The disk under the spool takes nothing; the text says why."""


def prepare(
    image_dir: bytes,
    path: bytes,
    spool_dir: Path,
    limits: Limits,
    before_decode: Callable[[], None],
    *,
    variant: str = WHOLE,
    plain: bool = False,
) -> ImageInfo:
    """Verify the picture at `path` (relative to `image_dir`) and spool the exact bytes to send, or
    with variant HALF the same picture at half its width and height. The info is of what is spooled.

    They are spooled as a data URL, which all processes then map: a picture is encoded once. With
    `plain` the bytes of the whole lie beside it. `before_decode` is called right before Pillow
    touches the bytes. Raises BadImage; SpoolRefused when the disk does not take it.
    """
    data, mtime_ns = read(image_dir, path, limits.max_file_bytes)
    sha256 = hashlib.sha256(data).hexdigest()
    if not data:
        raise BadImage("empty", "the file is empty", sha256)
    before_decode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = decode(data, limits)
            if variant == HALF:
                width, height = _half(decoded.width, decoded.height)
                small = halved(decoded.sent)
                decoded = replace(decoded, sent=small, width=width, height=height)
    except BadImage as e:
        raise BadImage(e.error.reason, e.error.message, sha256) from None
    except MemoryError:
        raise BadImage(TOO_MUCH_MEMORY, "decoding it takes too much memory", sha256) from None
    sent = decoded.sent
    if len(sent) > limits.max_file_bytes:
        size = f"{len(sent)} bytes as it would be sent; at most {limits.max_file_bytes >> 20} MiB"
        raise BadImage("file_too_large", size, sha256)
    try:
        # The bytes first: they are checked against their data URL.
        if plain and variant == WHOLE:
            spool.store(spool.plain_path(spool_dir, sha256), sent)
        spool.store(spool.url_path(spool_dir, sha256, variant), spool.data_url(sent))
    except OSError as e:
        raise SpoolRefused(refusal("state_dir", spool_dir, e.strerror or str(e))) from None
    return ImageInfo(
        sha256=sha256,
        width=decoded.width,
        height=decoded.height,
        format=decoded.format,
        bytes=len(data),
        frames=decoded.frames,
        mtime_ns=mtime_ns,
        sent_sha256=sha256 if sent is data else hashlib.sha256(sent).hexdigest(),
        sent_bytes=len(sent),
    )


@dataclass(frozen=True, slots=True)
class Decoded:
    """A verified picture: what is sent, and its size as the user sees it."""

    sent: bytes
    width: int
    height: int
    format: str
    frames: int


def decode(data: bytes, limits: Limits) -> Decoded:
    """Decode the first frame completely and decide what is sent. Raises BadImage, MemoryError."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        foreign = _foreign_format(data)
        if foreign:
            raise BadImage("format_not_allowed", f"{foreign} is no listed format") from None
        raise BadImage("not_an_image", "no picture of a known format") from None
    except MemoryError:
        raise
    except Exception as e:
        raise _bad(e) from None
    width, height = image.size
    _check_size(width, height, limits)
    if image.format in ("JPEG", "MPO"):
        _check_scans(data)
    try:
        # First of all: getexif() loads too, and a second load after a failed one shows black.
        image.load()
    except MemoryError:
        raise
    except Exception as e:
        raise _bad(e) from None
    orientation, frames = _orientation(image), _frames(image)
    kind = image.format or ""
    whole = kind != "PNG" or b"IEND" in data[-END_BYTES:]
    plain = image.mode in ("RGB", "L", "1", "P") and "transparency" not in image.info
    if kind in PASSED and frames == 1 and orientation in (0, 1) and plain and whole:
        return Decoded(data, width, height, kind, frames)
    out = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
        flat = flatten(upright, limits.background)
        flat.info = {}  # a colour profile, for one, is that of the mode before
        flat.save(out, "PNG")
    except (OSError, ValueError, SyntaxError) as e:
        raise _bad(e) from None
    return Decoded(out.getvalue(), flat.width, flat.height, kind, frames)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1  # a damaged EXIF block does not damage the pixels


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1  # damage behind the first frame, which is all that is sent


def flatten(image: Image.Image, background: str) -> Image.Image:
    """8-bit RGB or grey, without transparency, as a viewer would show it."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return _scaled(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, _ground(rgba, background))
        ground.alpha_composite(rgba)
        return ground.convert("RGB")
    if image.mode in ("RGB", "L"):
        plain = image.copy()
        plain.info = {}
        return plain
    return image.convert("L" if image.mode == "1" else "RGB")


def halved(data: bytes) -> bytes:
    """The same picture at half its width and height, as PNG, for servers that find it too big."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.load()
    flat = flatten(image, "white")
    out = io.BytesIO()
    flat.resize(_half(flat.width, flat.height), Image.Resampling.LANCZOS).save(out, "PNG")
    return out.getvalue()


def _half(width: int, height: int) -> tuple[int, int]:
    return max(1, width // 2), max(1, height // 2)


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit and float grey to 8 bits; convert() would clip everything above 255 to white."""
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda v: v * (1 / 257)).convert("L")
    low, high = (float(v) for v in image.getextrema())  # type: ignore[arg-type]
    if image.mode == "I" and low >= 0 and high > 255:
        high, low = max(high, 65535.0), 0.0
    elif low >= 0 and high <= 1 and image.mode == "F":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    factor = 255.0 / ((high - low) or 1.0)
    return image.convert("F").point(lambda v: v * factor + (-low * factor)).convert("L")


def _ground(image: Image.Image, background: str) -> tuple[int, int, int, int]:
    """White, unless all the ink is so bright that it would vanish on white."""
    white, black = (255, 255, 255, 255), (0, 0, 0, 255)
    if background == "white":
        return white
    if background == "black":
        return black
    alpha = image.getchannel("A")
    ink = alpha.point(lambda a: 255 if a >= OPAQUE else 0)
    if ink.getextrema()[0] == 255 or ink.getbbox() is None:
        return white  # nothing is transparent, or nothing is drawn
    # The darkest ink: everything that is no ink counts as white.
    grey = ImageChops.lighter(image.convert("RGB").convert("L"), ImageChops.invert(ink))
    darkest = grey.getextrema()[0]
    return black if isinstance(darkest, int | float) and darkest >= NEARLY_WHITE else white


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f"{width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise BadImage("too_many_pixels", f"{size}; at most {limits.max_pixels / 1e6:g} megapixels")
    if min(width, height) < limits.min_side:
        raise BadImage("too_small", f"{size}; sides of at least {limits.min_side}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise BadImage("too_elongated", f"{size}; at most {limits.max_aspect:g} times as long")


def _check_scans(data: bytes) -> None:
    """Count the scans of a JPEG as its decoder finds them, up to its end: without decoding."""
    at = scans = 0
    for _ in range(SEGMENTS_MAX):
        found = _SEGMENT.search(data, at)
        if found is None or found[0] == _END_OF_IMAGE:
            return
        scans += found[0] == _START_OF_SCAN
        if scans > SCANS_MAX:
            raise BadImage("too_many_scans", f"more than {SCANS_MAX} scans")
        at = found.end()
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise BadImage("too_many_scans", f"more than {SEGMENTS_MAX} segments")


def _bad(e: Exception) -> BadImage:
    text = f"{type(e).__name__}: {e}"
    low = text.lower()
    if isinstance(e, Image.DecompressionBombError):
        return BadImage("too_many_pixels", text)
    reason = "truncated" if "truncated" in low or "not enough" in low else "corrupt"
    return BadImage(reason, text)


def _foreign_format(data: bytes) -> str:
    """The name of a format that is known but not allowed, by its first bytes."""
    known = {
        b"%!PS": "PostScript",
        b"%PDF": "PDF",
        b"8BPS": "Photoshop",
        b"DDS ": "DDS",
        b"BLP": "BLP",
        b"\x00\x00\x01\x00": "an icon",
        b"\x01\xda": "SGI",
        b"\x0a\x05\x01": "PCX",
        b"v/1\x01": "OpenEXR",
        b"#?RADIANCE": "Radiance",
        b"qoif": "QOI",
    }
    return next((name for magic, name in known.items() if data.startswith(magic)), "")


def read(image_dir: bytes, path: bytes, max_bytes: int) -> tuple[bytes, int]:
    """The bytes of a file below `image_dir`, and its mtime in ns. Raises BadImage.

    No component may be a link (a link swapped in after the scan wins nothing), nothing but a
    regular file is read, and a FIFO does not block.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        folder = os.open(image_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise BadImage(FOLDER_AWAY, f"image_dir cannot be opened: {e.strerror}") from None
    try:
        *parents, name = path.split(b"/")
        for parent in parents:
            deeper = os.open(parent, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        fd = os.open(name, flags, dir_fd=folder)
    except OSError as e:
        raise _unopened(e) from None
    finally:
        os.close(folder)
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise BadImage("not_a_file", "no regular file")
        if about.st_size > max_bytes:
            raise BadImage(
                "file_too_large", f"{about.st_size} bytes; at most {max_bytes // 1048576} MiB"
            )
        try:
            data = file.read(max_bytes + 1)
        except OSError as e:
            raise _unopened(e) from None
    if len(data) > max_bytes:
        raise BadImage("file_too_large", f"at most {max_bytes // 1048576} MiB")
    return data, about.st_mtime_ns


def _unopened(e: OSError) -> BadImage:
    if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return BadImage(VANISHED, "the file is not there any more")
    if e.errno in (errno.ELOOP, errno.EMLINK):
        return BadImage("not_a_file", "a link, not a file")
    return BadImage("unreadable", f"cannot be read: {e.strerror}")
