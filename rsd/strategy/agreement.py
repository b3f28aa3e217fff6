"""What candidates agree on, from their texts alone. Pure, in time linear in the texts.

A text is a set of claims: `(a, ">", b)` for an edge, `(a, "--", b)` for a line without a head, its
ends in order, `(a, ">", b, label)`, and `(name, "=", value)`. A candidate agrees with the others as
far as they claim the same: the expected F1 of its claims against theirs, with votes in place of
pairs (the aggregated form of minimum Bayes risk decoding: Vamvas and Sennrich, "Linear-time minimum
Bayes risk decoding with reference aggregation", 2024).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from typing import Any, Final, TypeVar

import msgspec

#: Characters of a text that are read, of one of its lines, and of a name or a label in it.
MOST_TEXT: Final = 8192
MOST_LINE: Final = 600
MOST_NAME: Final = 80
MOST_LABEL: Final = 60
#: Tokens of a text that are compared when it has no claims, the first ones.
MOST_TOKENS: Final = 2000
#: Claims of a text; of more, the first in their order are kept.
MOST_CLAIMS: Final = 400
#: Objects, lists and values of a JSON text that are visited.
MOST_NODES: Final = 4000
#: Arrows of a line that are followed.
MOST_ARROWS: Final = 16
#: Entries of each memory of a reader; a full one is emptied.
MOST_REMEMBERED: Final = 20_000

Claim = tuple[str, ...]
T = TypeVar("T")

_NONE: Final[frozenset[Claim]] = frozenset()
_BULLET = re.compile(r"(?:[-*+\u2022] |\(?\d{1,3}[.):] ){1,4}")
_RUN = r"[-=\u2500\u2014\u2013]{1,8}"
_ARROW = re.compile(
    rf" ?(?:(?P<two><{_RUN} ?>|[\u2194\u27f7\u21d4])"
    rf"|(?P<forward>{_RUN} ?>|[\u2192\u27f6\u21d2\u2794])"
    rf"|(?P<back><{_RUN}|[\u2190\u27f5\u21d0])) ?"
    r"| (?P<line>-{2,8}|[\u2500\u2014\u2013]{1,8}) "
)
_VERB = re.compile(
    r" (?:(?P<two>(?:is |are )?bidirectionally connected (?:to|with)"
    r"|exchanges? (?:data|signals?) with)"
    r"|(?P<back>(?:receives?|gets?|takes?) (?:\w{1,20} )?from|is (?:driven|fed) by)"
    r"|(?P<forward>(?:is |are )?connect(?:s|ed)? (?:in)?to|feeds?(?: (?:in)?to)?|drives?"
    r"|(?:goes|leads|points|flows|outputs?|sends?(?: \w{1,20})?) (?:in)?to)) ",
    re.IGNORECASE,
)
_VALUE = re.compile(r"([^=]{1,60}?) ?= ?([^=]{1,40})")
_DECORATION = " .,;:!\"'`*_[](){}<>|\\"
_LEAD = re.compile(r"^(?:the|a|an|from|then|block|node|module) ", re.IGNORECASE)
_TAIL = re.compile(r" (?:block|node|module)$", re.IGNORECASE)
_STOP = re.compile(r";|\. ")
#: Scripts without spaces between words: every character is a token, or a sentence would be one.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
#: The usual forms, for which no expression is needed, and what may not stand beside them then.
_USUAL = ((" --> ", "forward"), (" <-> ", "two"), (" -> ", "forward"))
_UNUSUAL: Final = frozenset("><-,(")
_HEADS: Final = frozenset("><\u2190\u2192\u2194")
_SOURCES = ("from", "source", "src", "start", "a")
_TARGETS = ("to", "target", "dst", "dest", "destination", "end", "b")
_LABELS = ("label", "signal", "name")


class Reader:
    """Reads claims out of texts, and remembers names, lines and texts: a cache, nothing more.

    It belongs to one image: what its candidates have in common is read once.
    """

    __slots__ = ("_lines", "_names", "_pairs", "_texts")

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lines: dict[str, tuple[Claim, ...]] = {}
        self._texts: dict[str, frozenset[Claim]] = {}
        self._pairs: dict[str, frozenset[Claim]] = {}

    def claims(self, text: str) -> frozenset[Claim]:
        """At most MOST_CLAIMS; none if fewer than a third of the lines have one. Never raises."""
        found = self._texts.get(text)
        if found is None:
            found = self._read(text[:MOST_TEXT])
            _remember(self._texts, text, found)
        return found

    def words(self, text: str) -> frozenset[Claim]:
        """Pairs of neighbouring tokens of a line, so that direction counts. Never raises."""
        found = self._pairs.get(text)
        if found is None:
            pairs: set[Claim] = set()
            left = MOST_TOKENS
            for line in text[:MOST_TEXT].casefold().splitlines():
                tokens = _TOKEN.findall(line)[:left]
                left -= len(tokens)
                pairs.update(pairwise(tokens))
            found = frozenset(pairs)
            _remember(self._pairs, text, found)
        return found

    def _read(self, text: str) -> frozenset[Claim]:
        if '"' in text and ("{" in text or '["' in text):
            found = self._read_json(text)
            if found:
                return found
        lines = text.splitlines()
        if len(lines) == 1:
            lines = _STOP.split(text)
        claims: set[Claim] = set()
        hits = full = 0
        for line in lines:
            if not line or line.isspace() or line.startswith(("```", "~~~")):
                continue
            full += 1
            of_line = self._line(line)
            if of_line:
                hits += 1
                claims.update(of_line)
        return _bounded(claims) if 3 * hits >= full else _NONE

    def _line(self, line: str) -> tuple[Claim, ...]:
        found = self._lines.get(line)
        if found is None:
            spaced = " ".join(line[:MOST_LINE].split())
            bullet = _BULLET.match(spaced)
            found = self._read_line(spaced[bullet.end() :] if bullet else spaced)
            _remember(self._lines, line, found)
        return found

    def _read_line(self, line: str) -> tuple[Claim, ...]:
        for arrow, kind in _USUAL:
            left, found, rest = line.partition(arrow)
            if found and left:
                if _UNUSUAL.isdisjoint(rest) and _HEADS.isdisjoint(left):
                    right, _, label = rest.partition(": ")
                    return self._edge(left, kind, right, label)
                break
        claims = self._chain(line, _ARROW) or self._chain(line, _VERB)
        if claims or "=" not in line:
            return claims
        value = _VALUE.fullmatch(line.strip(_DECORATION))
        if not value:
            return ()
        name, amount = self._name(value[1]), self._name(value[2])
        return ((name, "=", amount),) if name and amount else ()

    def _chain(self, line: str, expression: re.Pattern[str]) -> tuple[Claim, ...]:
        """A -> B -> C is two edges; so is A -> B, C."""
        parts: list[str] = []
        kinds: list[str] = []
        start = 0
        for match in expression.finditer(line):
            parts.append(line[start : match.start()])
            kinds.append(match.lastgroup or "")
            start = match.end()
            if len(kinds) == MOST_ARROWS:
                break
        if not kinds:
            return ()
        rest, label = line[start:], ""
        if ": " in rest:
            rest, _, label = rest.partition(": ")
        elif rest.rstrip(" .;,").endswith(")") and " (" in rest:
            rest, _, label = rest.rstrip(" .;,)").rpartition(" (")
        claims: list[Claim] = []
        for k, kind in enumerate(kinds):
            last = k + 1 == len(kinds)
            for right in rest.split(",") if last else (parts[k + 1],):
                claims += self._edge(parts[k], kind, right, label)
        return tuple(claims)

    def _edge(self, left: str, kind: str, right: str, label: str = "") -> tuple[Claim, ...]:
        if right.startswith("|"):  # as Mermaid writes a label
            found, _, right = right[1:].partition("|")
        else:  # as Graphviz does
            right, _, found = right.partition(" [label=")
        a, b = self._name(left), self._name(right)
        if not a or not b:
            return ()
        if kind == "back" or (kind == "line" and b < a):
            a, b = b, a
        mark = "--" if kind == "line" else ">"
        claims: tuple[Claim, ...] = ((a, mark, b),)
        if kind == "two":
            claims += ((b, mark, a),)
        label = (label or found).strip(_DECORATION)[:MOST_LABEL].casefold()
        return (*claims, (a, mark, b, label)) if label else claims

    def _name(self, text: str) -> str:
        """Without decoration, articles and the word block; empty if it is too long for a name."""
        found = self._names.get(text)
        if found is None:
            bare = text.strip(_DECORATION)
            if not bare.isalnum():
                # The tail first: what is called A may be an "A block".
                bare = _LEAD.sub("", _TAIL.sub("", bare), count=1).strip(_DECORATION)
            found = bare.casefold() if len(bare) <= MOST_NAME else ""
            _remember(self._names, text, found)
        return found

    def _read_json(self, text: str) -> frozenset[Claim]:
        """Edges are objects with two ends, or pairs of strings, however deep they stand."""
        start = min(k for k in (text.find("["), text.find("{")) if k >= 0)
        end = max(text.rfind("]"), text.rfind("}"))
        try:
            waiting: list[Any] = [msgspec.json.decode(text[start : end + 1])]
        except (msgspec.DecodeError, RecursionError, ValueError):
            return _NONE
        claims: set[Claim] = set()
        for _ in range(MOST_NODES):
            if not waiting:
                break
            node = waiting.pop()
            if isinstance(node, dict):
                keys = {key.casefold(): value for key, value in node.items()}
                source, target = _text_of(keys, _SOURCES), _text_of(keys, _TARGETS)
                if source and target:
                    kind = "two" if keys.get("bidirectional") is True else "forward"
                    claims.update(self._edge(source, kind, target, _text_of(keys, _LABELS)))
                else:
                    waiting.extend(keys.values())
            elif isinstance(node, list):
                if len(node) == 2 and isinstance(node[0], str) and isinstance(node[1], str):
                    claims.update(self._edge(node[0], "forward", node[1]))
                else:
                    waiting.extend(node)
        return _bounded(claims)


def _text_of(keys: dict[str, Any], names: Iterable[str]) -> str:
    """The first of these values that is a text."""
    return next((keys[name] for name in names if isinstance(keys.get(name), str)), "")


def _bounded(claims: set[Claim]) -> frozenset[Claim]:
    return frozenset(claims if len(claims) <= MOST_CLAIMS else sorted(claims)[:MOST_CLAIMS])


def _remember(memory: dict[str, T], key: str, value: T) -> None:
    if len(memory) >= MOST_REMEMBERED:
        memory.clear()
    memory[key] = value


def duplicates(texts: Sequence[str]) -> tuple[int, ...]:
    """For each text the lowest index of an equal one; white space at the end does not count."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(text.rstrip(), i) for i, text in enumerate(texts))


@dataclass(frozen=True, slots=True)
class Features:
    """What a set of texts agrees on. None of it depends on their order but the numbering."""

    group: tuple[int, ...]  #: of each text: texts of one group have the same claims
    size: tuple[int, ...]  #: texts of each group
    agree: tuple[float, ...]  #: of each group with all other texts, 0 to 1
    level: float  #: mean agreement of the texts, 0 to 1
    kind: str  #: `claims`, or `words` when too few texts have any
    sets: tuple[frozenset[Claim], ...]  #: of each group
    vote: dict[Claim, int]  #: texts that have the claim


def features(texts: Sequence[str], reader: Reader | None = None) -> Features:
    """Agreement of every text with all the others.

    agree(c) = 2 sum of p_e over e in c / (size of c + mean size of the others), p_e the share of
    the other texts with claim e. A text without claims among others that have them agrees with
    nobody. When fewer than four fifths of the texts have claims, all are compared by their wording.
    """
    reader = reader or Reader()
    n = len(texts)
    kind, read = "claims", [reader.claims(text) for text in texts]
    if 5 * sum(map(bool, read)) < 4 * n:
        kind, read = "words", [reader.words(text) for text in texts]
    numbers: dict[frozenset[Claim] | str, int] = {}
    group: list[int] = []
    sets: list[frozenset[Claim]] = []
    size: list[int] = []
    for text, claims in zip(texts, read, strict=True):
        # A text without claims is alone, unless it is repeated.
        number = numbers.setdefault(claims or text.rstrip(), len(sets))
        if number == len(sets):
            sets.append(claims)
            size.append(0)
        group.append(number)
        size[number] += 1
    vote: dict[Claim, int] = {}
    for claims, members in zip(sets, size, strict=True):
        for claim in claims:
            vote[claim] = vote.get(claim, 0) + members
    total = sum(len(claims) * members for claims, members in zip(sets, size, strict=True))
    agree: list[float] = []
    for claims in sets:
        own = len(claims)
        others = sum(map(vote.__getitem__, claims)) - own
        agree.append(2 * others / ((n - 1) * own + total - own) if own and n > 1 else 0.0)
    level = fsum(a * members for a, members in zip(agree, size, strict=True)) / n if n else 0.0
    return Features(
        group=tuple(group),
        size=tuple(size),
        agree=tuple(agree),
        level=level,
        kind=kind,
        sets=tuple(sets),
        vote=vote,
    )
