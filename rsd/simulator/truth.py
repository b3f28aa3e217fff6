"""What pictures show: truth files read, and a graph invented for every other picture.

Pictures with truth are known by their decoded pixels, so a re-encoded copy is the same picture.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any, Final

import msgspec

from rsd.errors import UserError
from rsd.simulator.netlist import Edge, Graph, plain_label
from rsd.simulator.pictures import NotAPicture, Reader

#: Most pictures with truth: each costs a few kilobytes, and their reading delays the start.
TRUTHS_MAX: Final = 100_000
#: Invented graphs that are remembered, about a kilobyte each.
INVENTED_MAX: Final = 4_096
_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_PARTS: Final = (
    *("CPU", "Bus", "RAM", "DMA", "UART", "PLL", "ADC", "DAC", "ROM", "GPIO", "SPI", "Cache"),
    *("FIFO", "ALU", "MMU", "NIC", "PHY", "Flash", "Timer", "LCD", "Mixer", "Filter", "Amplifier"),
    *("Sensor", "Logger", "Queue", "Scheduler", "Parser", "Router", "Arbiter", "Decoder"),
)


class Pictures:
    """The graphs behind pictures, by the digest of their pixels."""

    def __init__(self, folders: list[Path], reader: Reader | None = None) -> None:
        """Reads the folders. Raises UserError for one that is none, or a file that is no truth."""
        self._reader = reader or Reader()
        self._graphs: dict[str, Graph] = {}
        for folder in folders:
            self._load(folder)

    def __len__(self) -> int:
        return len(self._graphs)

    def graph(self, pixels: str) -> Graph:
        """The truth of a picture, or the graph that its pixels' digest decides."""
        return self._graphs.get(pixels) or invented(pixels)

    def _load(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--truth {folder}: no such folder")
        for path in sorted([*folder.glob("*.json"), *folder.glob("truth/*.json")]):
            try:
                data = msgspec.json.decode(path.read_bytes())
            except (msgspec.DecodeError, OSError) as e:
                raise UserError(f"--truth {path}: not readable: {e}") from None
            if not isinstance(data, dict) or not {"nodes", "edges"} <= data.keys():
                continue
            picture = _picture_of(path, data)
            if picture is None or len(self._graphs) >= TRUTHS_MAX:
                continue
            try:
                self._graphs[self._reader.read(picture.read_bytes()).pixels] = graph_of(data)
            except (NotAPicture, KeyError, IndexError, TypeError) as e:
                raise UserError(f"--truth {path}: no usable truth: {e!r}") from None


def _picture_of(path: Path, data: dict[str, Any]) -> Path | None:
    """The picture that a truth file is about: named in it, or of the same stem, here or above."""
    names = [str(data["image"])] if data.get("image") else []
    names += [path.stem + suffix for suffix in _SUFFIXES]
    homes = [path.parent, path.parent.parent] if path.parent.name == "truth" else [path.parent]
    return next((h / n for h in homes for n in names if (h / n).is_file()), None)


def pixels_of(data: bytes) -> str:
    """The digest that a picture's bytes are known by. Raises NotAPicture."""
    return Reader().read(data).pixels


def graph_of(data: dict[str, Any]) -> Graph:
    """A graph from either form: nodes with `id` and `label` and edges with `from` and `to`, or
    plain names and pairs of names. Raises KeyError, IndexError or TypeError for any other.
    """
    labels: dict[str, str] = {}
    for node in data["nodes"]:
        if isinstance(node, dict):
            labels[str(node["id"])] = plain_label(str(node.get("label") or node["id"]))
        else:
            labels[str(node)] = plain_label(str(node))
    edges: list[Edge] = []
    for edge in data["edges"]:
        if isinstance(edge, dict):
            ends, label = (str(edge["from"]), str(edge["to"])), str(edge.get("label") or "")
        else:
            ends, label = (str(edge[0]), str(edge[1])), ""
        source, target = (labels.get(e, plain_label(e)) for e in ends)
        edges.append(Edge(source, target, plain_label(label) if label else ""))
    return Graph(tuple(labels.values()), tuple(edges), bool(data.get("directed", True)))


@functools.lru_cache(maxsize=INVENTED_MAX)
def invented(pixels: str) -> Graph:
    """A connected directed graph of four to eight nodes that a picture's digest decides."""
    rng = random.Random(f"graph:{pixels}")
    nodes = rng.sample(_PARTS, rng.randint(4, 8))
    pairs = [(nodes[rng.randrange(k)], nodes[k]) for k in range(1, len(nodes))]
    for _ in range(rng.randint(0, 3)):
        a, b = rng.sample(nodes, 2)
        if (a, b) not in pairs:
            pairs.append((a, b))
    return Graph(tuple(nodes), tuple(Edge(a, b) for a, b in pairs))
