"""What the simulator knows of pictures: their decoded pixels, and the graph that they show.

Pictures with truth are matched by pixels, so a re-encoded copy is the same picture. Any other
picture gets a graph that its pixels' hash decides.
"""

from __future__ import annotations

import base64
import binascii
import io
import random
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
from PIL import Image, ImageOps

#: Data URLs whose pixels are remembered.
DECODED_MAX: Final = 4_096
_WORDS: Final = [
    "CPU",
    "BUS",
    "RAM",
    "DMA",
    "UART",
    "PLL",
    "ADC",
    "DAC",
    "ROM",
    "GPIO",
    "SPI",
    "I2C",
    "CACHE",
    "FIFO",
    "ALU",
    "MMU",
    "NIC",
    "PHY",
    "FLASH",
    "TIMER",
    "LCD",
    "OSC",
    "MIXER",
    "FILTER",
    "AMP",
    "SENSOR",
    "LOGGER",
    "QUEUE",
    "SCHED",
    "PARSER",
    "ROUTER",
]

Image.MAX_IMAGE_PIXELS = None


class NotAnImage(Exception):
    """The bytes do not decode; the text is what vLLM would say."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Labels, and edges as (from, to, label)."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str, str], ...]
    directed: bool = True


def pixels_of(data: bytes) -> str:
    """A digest of the picture as a viewer shows it: EXIF applied, transparency on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                ground.alpha_composite(rgba)
                image = ground
            rgb = image.convert("RGB")
    except Exception as e:
        raise NotAnImage(f"Failed to load image: {e}") from None
    size = b"%dx%d" % rgb.size
    return blake2b(size + rgb.tobytes(), digest_size=16).hexdigest()


class Pictures:
    """Pixels of data URLs, decoded once per distinct byte string, and the graphs behind them."""

    def __init__(self, folders: list[Path]) -> None:
        self._decoded: OrderedDict[bytes, str] = OrderedDict()
        self._truth: dict[str, Graph] = {}
        for folder in folders:
            self._load(folder)

    def __len__(self) -> int:
        return len(self._truth)

    def _load(self, folder: Path) -> None:
        for path in sorted([*folder.glob("*.json"), *folder.glob("truth/*.json")]):
            data = msgspec.json.decode(path.read_bytes())
            if not isinstance(data, dict) or "nodes" not in data or "edges" not in data:
                continue
            home = path.parent.parent if path.parent.name == "truth" else path.parent
            named = data.get("image")
            candidates = [home / named] if named else []
            candidates += [home / f"{path.stem}{s}" for s in (".png", ".jpg", ".webp", ".gif")]
            picture = next((p for p in candidates if p.is_file()), None)
            if picture is not None:
                self._truth[pixels_of(picture.read_bytes())] = graph_of(data)

    def pixels(self, url: str) -> tuple[str, bytes]:
        """(digest of the pixels, digest of the URL's bytes). Raises NotAnImage."""
        raw = url.encode()
        key = blake2b(raw, digest_size=16).digest()
        found = self._decoded.get(key)
        if found is not None:
            return found, key
        head, comma, body = url.partition(",")
        if not comma or not head.startswith("data:") or not head.endswith(";base64"):
            raise NotAnImage("Only base64 data URLs are supported for now.")
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise NotAnImage("Failed to load image: Non-base64 digit found") from None
        pixels = pixels_of(data)
        self._decoded[key] = pixels
        if len(self._decoded) > DECODED_MAX:
            self._decoded.popitem(last=False)
        return pixels, key

    def graph(self, pixels: str) -> Graph:
        """The truth of a picture, or a graph made from its pixels' hash."""
        return self._truth.get(pixels) or invented(pixels)


def graph_of(data: dict[str, Any]) -> Graph:
    """Both truth forms: objects with ids and labels, or plain names and pairs."""
    labels: dict[str, str] = {}
    for node in data["nodes"]:
        if isinstance(node, dict):
            labels[str(node["id"])] = str(node.get("label") or node["id"])
        else:
            labels[str(node)] = str(node)
    edges = []
    for edge in data["edges"]:
        if isinstance(edge, dict):
            start, end, label = str(edge["from"]), str(edge["to"]), str(edge.get("label") or "")
        else:
            start, end, label = str(edge[0]), str(edge[1]), ""
        edges.append((labels.get(start, start), labels.get(end, end), label))
    return Graph(tuple(labels.values()), tuple(edges), bool(data.get("directed", True)))


def invented(pixels: str) -> Graph:
    """A connected graph of five to nine nodes."""
    rng = random.Random(f"graph:{pixels}")
    nodes = rng.sample(_WORDS, rng.randint(5, 9))
    edges = [(nodes[rng.randrange(k)], nodes[k], "") for k in range(1, len(nodes))]
    for _ in range(rng.randint(0, 3)):
        a, b = rng.sample(nodes, 2)
        if not any({a, b} == {x, y} for x, y, _ in edges):
            edges.append((a, b, ""))
    return Graph(tuple(nodes), tuple(edges))
