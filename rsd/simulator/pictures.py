"""Pictures that requests carry: data URLs decoded once, and told apart by their pixels."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import warnings
from collections import OrderedDict
from concurrent.futures import Executor
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from PIL import Image, ImageOps

from rsd.simulator.rules import Picture, Refused, vllm_error

#: Data URLs whose picture is remembered; an entry is a few hundred bytes, the URL is not kept.
REMEMBERED_MAX: Final = 200_000
#: Side ratio that vLLM's image processor refuses.
ASPECT_MAX: Final = 200
#: Size that is assumed of a picture when decoding is off, in pixels.
ASSUMED_SIZE: Final = (1024, 768)


class NotAPicture(Exception):
    """Bytes that do not decode; the text says why."""


class TooManyPixels(NotAPicture):
    """A decompression bomb."""


class Reader:
    """Bytes to a Picture; without `decode` the bytes' own hash stands for the pixels."""

    def __init__(self, *, decode: bool = True) -> None:
        self._decode = decode

    def read(self, data: bytes) -> Picture:
        """Raises NotAPicture. Turned by EXIF and put on white first, as vLLM's model sees it."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self._decode:
            return Picture(sha256[:32], sha256, *ASSUMED_SIZE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rgb = _rgb(data)
        except Image.DecompressionBombError as e:
            raise TooManyPixels(str(e)) from None
        except Exception as e:  # Pillow's readers raise nearly anything on damaged bytes
            text = str(e).partition(" <")[0] or type(e).__name__
            raise NotAPicture(f"Failed to load image: {text}") from None
        digest = hashlib.blake2b(b"%dx%d:" % rgb.size, digest_size=16)
        digest.update(rgb.tobytes())
        return Picture(digest.hexdigest(), sha256, rgb.width, rgb.height)


def _rgb(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode == "I":
        upright = upright.convert("I").point(lambda level: level / 256).convert("L")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.new("RGBA", rgba.size, "white")
        upright.alpha_composite(rgba)
    return upright.convert("RGB")


class DataUrls:
    """The pictures behind data URLs, each distinct URL decoded once, off the event loop."""

    def __init__(self, reader: Reader, executor: Executor, local_media: str = "") -> None:
        self._reader = reader
        self._executor = executor
        self._local_media = local_media
        self._held: dict[str, Picture] = {}  # by the callers' names
        self._known: OrderedDict[tuple[int, int, str], Picture] = OrderedDict()
        self._pending: dict[tuple[int, int, str], asyncio.Future[Picture]] = {}

    async def of(self, url: str | None, uuid: str = "") -> Picture:
        """A picture by its URL, or by the name under which it came before (then the URL is not
        even looked at, as with vLLM). Raises Refused, worded as vLLM does.
        """
        held = self._held.get(uuid) if uuid else None
        if held is not None:
            return held
        if url is None:
            text = "Cache miss for image at index 0 but data is not provided."
            raise vllm_error(400, text)
        picture = await self._of(url)
        if uuid and len(self._held) < REMEMBERED_MAX:
            self._held[uuid] = picture
        return picture

    async def _of(self, url: str) -> Picture:
        # Python's own 64-bit hash of a text: far cheaper than sha256 on each request's picture.
        key = (hash(url), len(url), url[-32:])
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        pending = self._pending.get(key)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = loop.run_in_executor(self._executor, self._read, url)
            self._pending[key] = pending
            pending.add_done_callback(lambda done: self._settle(key, done))
        # A client that leaves must not cancel the decoding that others wait for.
        return await asyncio.shield(pending)

    def _settle(self, key: tuple[int, int, str], done: asyncio.Future[Picture]) -> None:
        self._pending.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._known[key] = done.result()
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)

    def _read(self, url: str) -> Picture:
        try:
            picture = self._reader.read(bytes_of(url, self._local_media))
        except TooManyPixels as e:
            raise vllm_error(500, str(e), "InternalServerError") from None
        except NotAPicture as e:
            raise vllm_error(400, str(e)) from None
        sides = sorted((picture.width, picture.height))
        if sides[1] > ASPECT_MAX * sides[0]:
            raise vllm_error(400, "Failed to apply the image processor on the given picture.")
        return picture


def bytes_of(url: str, local_media: str = "") -> bytes:
    """The bytes of a data URL, or of a file below `local_media` when that is allowed. Raises
    Refused with the status that vLLM gives.
    """
    if url.startswith("file://") and local_media:
        path = Path(unquote(url.removeprefix("file://"))).resolve()
        if not path.is_relative_to(Path(local_media).resolve()):
            raise vllm_error(400, "The file path must be a subpath of the allowed local media path")
        try:
            return path.read_bytes()
        except OSError as e:
            raise vllm_error(500, str(e), "InternalServerError") from None
    if not url.startswith("data:"):
        raise _foreign(url)
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        text = "Only base64 data URLs are supported for now."
        raise vllm_error(501, text, "NotImplementedError")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise vllm_error(400, "Non-base64 digit found") from None


def _foreign(url: str) -> Refused:
    scheme = url.partition(":")[0] if ":" in url[:8] else ""
    if scheme == "file":
        text = "Cannot load local files without `--allowed-local-media-path`."
        return vllm_error(500, text, "InternalServerError")
    if scheme in ("http", "https"):
        return vllm_error(500, "Cannot connect to host: simulated", "InternalServerError")
    return vllm_error(400, "The URL must be either a HTTP, data or file URL.")
