"""Netlists as text: what a candidate claims, and how much of it is right. Pure.

One edge a line: `A --> B`, `A <-> B`, `A -- B` (undirected), each with an optional ` : label`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: Texts whose edges are remembered: a grader scores a text and explains the score.
PARSED_MAX: Final = 256
#: Longest first, so that `<-->` is not read as `<--` and `>`.
ARROW: Final = re.compile(r"<-->|<->|<=>|↔|-->|->|==>|=>|→|<--|<-|<==|←|---|--")
_BULLET: Final = re.compile(r"^\s*(?:[-*•]\s+|\d{1,4}[.)]\s+)?")
_PIPE_LABEL: Final = re.compile(r"^\|[^|]*\|")
_QUOTES: Final = " \t`*\"'“”;,"


@dataclass(frozen=True, slots=True)
class Edge:
    """A connection between two labelled nodes; `label` is the text on it, "" for none."""

    source: str
    target: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """What a picture shows: labels in reading order, and the edges between them."""

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    directed: bool = True


def normalise(label: str) -> str:
    """A node's name as it is compared: casefolded, quotes off, white space collapsed."""
    return " ".join(label.strip(_QUOTES).casefold().split())


def plain_label(label: str) -> str:
    """A label that survives the line form: one line, without arrows and ` : `."""
    text = ARROW.sub("-", " ".join(label.split()))
    return text.replace(" : ", ": ").strip(_QUOTES) or "?"


@functools.lru_cache(maxsize=PARSED_MAX)
def edges_of(text: str, *, directed: bool = True) -> frozenset[tuple[str, str]]:
    """The edges that an answer claims, as normalised (source, target); prose is left out.

    `A --> B --> C` is two edges, `A <-> B` is one in each direction, an edge without a head counts
    in the order it is written. Undirected, the two names are sorted.
    """
    found: set[tuple[str, str]] = set()
    for line in text.splitlines():
        for source, arrow, target in _links(line):
            if not directed:
                found.add((min(source, target), max(source, target)))
                continue
            back = arrow[0] in "<←↔"
            if arrow[-1] in ">→↔" or not back:
                found.add((source, target))
            if back:
                found.add((target, source))
    return frozenset(found)


def _links(line: str) -> Iterator[tuple[str, str, str]]:
    body = line[_end(_BULLET, line) :]
    arrows = list(ARROW.finditer(body))
    bounds = [0, *(m.end() for m in arrows)]
    stops = [*(m.start() for m in arrows), len(body)]
    names = [_name(body[a:b]) for a, b in zip(bounds, stops, strict=True)]
    for k, arrow in enumerate(arrows):
        if names[k] and names[k + 1]:
            yield names[k], arrow.group(), names[k + 1]


def _end(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0


def _name(text: str) -> str:
    text = text.strip()
    return normalise(text[_end(_PIPE_LABEL, text) :].partition(" : ")[0])


def truth_edges(graph: Graph) -> frozenset[tuple[str, str]]:
    """The edges of a graph in the form of `edges_of`."""
    pairs = ((normalise(e.source), normalise(e.target)) for e in graph.edges)
    if graph.directed:
        return frozenset(pairs)
    return frozenset((min(pair), max(pair)) for pair in pairs)


def edge_f1(text: str, truth: Graph) -> float:
    """F1 of the edges of an answer against the truth, 0 to 1: 2 * hits / (claimed + true)."""
    got, want = edges_of(text, directed=truth.directed), truth_edges(truth)
    if not got and not want:
        return 1.0
    return 2 * len(got & want) / (len(got) + len(want))


def lines_of(edges: list[Edge], *, directed: bool) -> list[str]:
    """Edges as lines; a directed pair without labels becomes one `<->`."""
    pairs = {(e.source, e.target) for e in edges if not e.label}
    lines: list[str] = []
    done: set[tuple[str, str]] = set()
    for e in edges:
        arrow = "-->" if directed else "--"
        if directed and not e.label and e.source != e.target and (e.target, e.source) in pairs:
            if (e.target, e.source) in done:
                continue
            done.add((e.source, e.target))
            arrow = "<->"
        lines.append(f"{e.source} {arrow} {e.target}" + (f" : {e.label}" if e.label else ""))
    return lines
