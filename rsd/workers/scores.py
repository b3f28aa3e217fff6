"""A judge's answer to a score, or to none: never to a wrong number. Pure.

JSON is believed when it is unambiguous; prose only where it says `score` and a number with its
scale, and all such places agree. When in doubt an answer is unparsable: it is asked for again,
which costs little, while a wrong score is in the data for good.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

#: Longest explanation that is kept, in characters.
EXPLANATION_MAX: Final = 4_000

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
#: `score: 85`, `**Score:** 85/100`, `final score = 85 out of 100`, `Bewertung: 85,5 von 100`.
_SCORE = re.compile(
    r"(?<![\w])(?:final|overall|total|gesamt)?[\s_*-]*(?:score|punktzahl|bewertung|得分|评分|分数|总分)"
    r"[\s*_`\"']*(?:is|of|ist|为|是)?[\s*_`\"']*[:=：]?[\s*_`\"']*"
    r"(\d{1,4}(?:[.,]\d{1,3})?)(?![\d.,]*\d)\s*[*_`]*\s*"
    r"(?:(?:/|out\s+of|von|of)\s*(\d{1,4})(?!\d))?(\s*%)?",
    re.IGNORECASE,
)
_SCALES: Final = {5, 10, 20, 50, 100}


@dataclass(frozen=True, slots=True)
class Score:
    """A score from 0 to 100 and what the judge said for it."""

    score: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Unparsable:
    """No score can be taken from this answer, and why."""

    why: str


def pointwise(text: str) -> Score | Unparsable:
    """The score of a call with one candidate."""
    text = _THINK.sub("", text).strip()
    if not text:
        return Unparsable("empty")
    objects = _objects(text)
    scored = [o for o in objects if "score" in o]
    if scored:
        found = {_value(o["score"]) for o in scored}
        if len(found) > 1:
            return Unparsable("several objects with different scores")
        value = found.pop()
        if value is None:
            return Unparsable("score is no number from 0 to 100")
        return Score(value, _words(scored[-1].get("explanation")))
    if objects:
        nested = [o for o in objects if isinstance(o.get("results"), list)]
        if len(nested) == 1 and len(nested[0]["results"]) == 1:
            entry = nested[0]["results"][0]
            if isinstance(entry, dict) and (value := _value(entry.get("score"))) is not None:
                return Score(value, _words(entry.get("explanation")))
        return Unparsable("JSON without a score")
    if text.lstrip("`json \n").startswith(("{", "[")):
        return Unparsable("broken JSON")
    return _prose(text)


def listwise(text: str, ids: list[str]) -> dict[str, Score]:
    """The scores of a call with several candidates; ids that are missing were unparsable."""
    text = _THINK.sub("", text).strip()
    entries: dict[str, set[float | None]] = {}
    words: dict[str, str] = {}
    for row in _entries(_objects(text)):
        name = row.get("id")
        if isinstance(name, str) and name.strip() in ids:
            name = name.strip()
            entries.setdefault(name, set()).add(_value(row.get("score")))
            words[name] = _words(row.get("explanation"))
    found: dict[str, Score] = {}
    for name, values in entries.items():
        value = next(iter(values))
        if len(values) == 1 and value is not None:
            found[name] = Score(value, words[name])
    return found


def _entries(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for data in objects:
        results = data.get("results")
        if isinstance(results, list):
            rows += [r for r in results if isinstance(r, dict)]
        elif "id" in data and "score" in data:
            rows.append(data)
        else:
            rows += [
                {"id": name, **value} for name, value in data.items() if isinstance(value, dict)
            ]
    return rows


def _objects(text: str) -> list[dict[str, Any]]:
    """Every complete JSON object of the text that is not inside another one.

    An object whose keys repeat is ambiguous; it comes back with the value that repeats removed.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=lambda _: None)
    found: list[dict[str, Any]] = []
    at = 0
    while (at := text.find("{", at)) != -1:
        try:
            data, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(data, dict):
            found.append(data)
        at = end
    # What is left of a broken object may hold complete ones: those are parts, not answers.
    opened = text.find("{")
    whole = opened != -1 and _starts_object(decoder, text, opened)
    return found if whole or not found or _only_prose_before(text) else []


def _starts_object(decoder: json.JSONDecoder, text: str, at: int) -> bool:
    try:
        decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return False
    return True


def _only_prose_before(text: str) -> bool:
    """Whether the first brace belongs to prose (`{A} --> {B}`), not to a broken JSON answer."""
    head = text[text.find("{") + 1 :].lstrip()
    return not head.startswith('"')


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        data[key] = None if key in data and data[key] != value else value
    return data


def _value(value: Any) -> float | None:
    """A number from 0 to 100, also as a text; nothing else."""
    if isinstance(value, str):
        text = value.strip().removesuffix("%").strip()
        match = re.fullmatch(r"(\d{1,3}(?:[.,]\d{1,3})?)(?:\s*/\s*100)?", text)
        if not match:
            return None
        value = float(match.group(1).replace(",", "."))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) and 0.0 <= number <= 100.0 else None


def _prose(text: str) -> Score | Unparsable:
    found: set[float | None] = set()
    for match in _SCORE.finditer(text):
        number = float(match.group(1).replace(",", "."))
        scale = int(match.group(2)) if match.group(2) else 100
        if scale not in _SCALES or number > scale:
            found.add(None)
        elif match.group(2) is None and not match.group(3) and _unclear(text, match, number):
            return Unparsable("a number without a scale")
        else:
            found.add(number * 100 / scale)
    if not found:
        return Unparsable("no score")
    if len(found) > 1 or None in found:
        return Unparsable("scores that contradict each other or their scale")
    value = found.pop()
    assert value is not None
    return Score(value, _words(text))


def _unclear(text: str, match: re.Match[str], number: float) -> bool:
    """A bare small number may be out of 5 or 10; a sentence about a sub-score is no score."""
    after = text[match.end() : match.end() + 12].lstrip(" *_`").lower()
    return (0 < number <= 10) or after.startswith(("points for", "for ", "to ", "-", "–"))


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text[:EXPLANATION_MAX]
