"""A grader's answer to a score, or to none: never to a wrong number. Pure.

JSON is believed in any wrapping, when nothing around it gives another score, takes it back, or
quotes the candidate. Of prose one form is read, alone in its answer (`prose.py`). A number that
the candidate itself calls a score is believed only in the form that was asked for. Every other
answer is unparsable: it is asked for again, which costs little, while a wrong score is in the data
for good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rsd.workers.grading import lenient_json, prose

#: Longest explanation that is kept, in characters.
EXPLANATION_MAX: Final = 4_000
#: Longest answer that is read, in characters; a grader is capped far below. What was cut off might
#: have been the verdict, so a longer one is not read in part.
TEXT_MAX: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Score:
    """A score from 0 to 100 and the grader's reasons."""

    score: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Unparsable:
    """No score can be taken from this answer, and why."""

    why: str


def pointwise(text: str, shown: str = "") -> Score | Unparsable:
    """The score of a call with one candidate. `shown` is the candidate as the grader saw it: a
    score that stands in there as well may be an echo, not a verdict.
    """
    found = _read(text)
    if isinstance(found, Unparsable):
        return found
    score = _in_json(found) if found.objects else _in_prose(found.tail)
    if isinstance(score, Unparsable) or not prose.claims(shown, score.score):
        return score
    if found.objects and found.alone:
        theirs, words = _squeezed(shown), score.explanation
        raw = json.dumps(words, ensure_ascii=False)[1:-1]
        if not any(_squeezed(own) in theirs for own in (text, words, raw)):
            return score
    return Unparsable("perhaps a score that the candidate claims")


def _in_json(found: lenient_json.Found) -> Score | Unparsable:
    best: Score | None = None
    for score in map(_of_object, found.objects):
        if isinstance(score, Unparsable):
            return score
        if best and best.score != score.score:
            return Unparsable("scores that contradict each other")
        best = max(best or score, score, key=lambda each: len(each.explanation))
    assert best is not None
    if not found.alone and (why := prose.doubt(found.lead, found.tail, best.score)):
        return Unparsable(why)
    return Score(best.score, best.explanation or _kept(found.lead + found.tail))


def _in_prose(text: str) -> Score | Unparsable:
    value = prose.read(text)
    return Unparsable(value) if isinstance(value, str) else Score(value, _kept(text))


def listwise(text: str, ids: Iterable[str]) -> dict[str, Score]:
    """The scores of a call with several candidates; ids that are missing were unparsable."""
    wanted = {name.casefold(): name for name in ids}
    found = _read(text)
    if isinstance(found, Unparsable) or not wanted:
        return {}
    around = re.sub("|".join(map(re.escape, wanted)), "", f"{found.lead}\n{found.tail}".casefold())
    if prose.doubt("", around, None):
        return {}
    scores: dict[str, Score] = {}
    doubtful: set[str] = set()
    for entry in (entry for data in found.objects for entry in _entries(data)):
        name = wanted.get(str(entry["id"]).strip().casefold())
        score = _of_object(entry)
        if name and (isinstance(score, Unparsable) or scores.setdefault(name, score) != score):
            doubtful.add(name)
    values = sorted(score.score for score in scores.values())
    if len(values) > 1 and values == list(range(1, len(values) + 1)):
        return {}  # ranks
    return {name: score for name, score in scores.items() if name not in doubtful}


# ---------------------------------------------------------------------------------------- thoughts

_THOUGHTS: Final = r"(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
_OPENED: Final = re.compile(rf"[<\[◁]{_THOUGHTS}[>\]▷]", re.IGNORECASE)
_CLOSED: Final = re.compile(rf"[<\[◁]/{_THOUGHTS}[>\]▷]", re.IGNORECASE)
#: The channels of gpt-oss, when a server does not take them apart.
_CHANNEL: Final = "<|channel|>"
_FINAL: Final = "<|channel|>final<|message|>"


def _read(text: str) -> lenient_json.Found | Unparsable:
    """The objects and the prose of an answer without its thoughts."""
    if len(text) > TEXT_MAX:
        return Unparsable("too long")
    text = text.lstrip("\ufeff").strip()
    found = lenient_json.read(text)
    if found and found.objects and found.alone:
        return found
    if _CHANNEL in text:
        _, final, text = text.partition(_FINAL)
        if not final or _CHANNEL in text:
            return Unparsable("thoughts that do not end, or end twice")
        text = re.sub(r"<\|(?:return|end)\|>\s*$", "", text).strip()
    if _OPENED.match(text) or _CLOSED.search(text):
        parts = _CLOSED.split(text, maxsplit=2)
        if len(parts) != 2 or ("{" in parts[0] and not _OPENED.match(text)):
            return Unparsable("thoughts that do not end, or end twice")
        text = parts[1].strip()
    found = lenient_json.read(text)
    if _OPENED.search(text) and not (found and found.alone):
        return Unparsable("thoughts that do not end, or end twice")
    return (found or Unparsable("broken JSON")) if text else Unparsable("empty")


# ------------------------------------------------------------------------------------ JSON answers

_EXPLANATIONS: Final = ("explanation", "reasoning", "reason", "rationale", "comment", "理由")
_SCORES: Final = {"score", "final_score", "overall_score", "total_score", "得分", "评分", "分数"}
#: A second verdict beside the score, where it holds a number.
_VERDICT: Final = re.compile(
    r"(?:final|overall|corrected|revised|adjusted|updated)(?:_\w+)?|(?:\w*ed|new|actual|true)_?score|"
    r"score_\w+|grade|verdict"
)
#: The end of the scale.
_SCALE: Final = re.compile(
    r"max(?:_?(?:imum|possible|score|points|marks|value))*|out_?of|full_marks|total|"
    r"(?:(?:score|total|points)_?)?(?:max|maximum|possible|range|scale)(?:_max|_points)?"
)
_HUNDRED: Final = (100, "100", "0-100", [0, 100], "0 to 100")
#: A number of another scale than 100.
_FRACTION: Final = re.compile(r"([\d.,]{1,7}) ?(?:/|out of) ?(?!100\b)\d")
_PLAIN: Final = {*_SCORES, *_EXPLANATIONS, "id"}
_WRAP: Final = ("result", "results", "grade", "grading", "evaluation", "response", "output")


def _inner(data: Any) -> Any:
    """What is inside of known wrappers and of lists of one."""
    while isinstance(data, dict | list) and len(data) == 1:
        key: Any = next(iter(data)) if isinstance(data, dict) else 0
        if isinstance(data, dict) and key not in _WRAP:
            break
        data = data[key]
    return data


def _entries(data: Any) -> list[dict[str, Any]]:
    """The objects with an id of a document that is one of them, or a list of them."""
    data = _inner(data)
    entries = data if isinstance(data, list) else [data]
    return [each for each in entries if isinstance(each, dict) and isinstance(each.get("id"), str)]


def _of_object(data: Any) -> Score | Unparsable:
    """The score of `{"explanation": ..., "score": ...}`, perhaps wrapped."""
    data = _inner(data)
    given = data.keys() & _SCORES if isinstance(data, dict) else ()
    if len(given) != 1:
        return Unparsable("JSON without a score, or with several")
    value = _value(data[next(iter(given))])
    if value is None:
        return Unparsable("score is no number from 0 to 100")
    for key in data.keys() - _PLAIN:
        other = data[key]
        if _SCALE.fullmatch(key):
            if other not in _HUNDRED:
                return Unparsable("a score on a scale of its own")
        elif _VERDICT.fullmatch(key) and _value(other) != value:
            if isinstance(other, dict | list) or re.search(r"\d", str(other)[:40]):
                return Unparsable("a score beside another")
        elif key in ("error", "refusal") and other:
            return Unparsable("a refusal")
    words = next((w for key in _EXPLANATIONS if isinstance(w := data.get(key), str)), "")
    if prose.refuses(words):
        return Unparsable("a refusal")
    if any(prose.number(match[1]) == value > 0 for match in _FRACTION.finditer(words)):
        return Unparsable("perhaps a score on a scale of its own")
    return Score(value, _kept(words))


def _value(value: Any) -> float | None:
    """A number from 0 to 100, also as a text with its scale; nothing else."""
    if isinstance(value, str):
        return prose.of_string(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 100 else None


def _kept(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:EXPLANATION_MAX]


def _squeezed(text: str) -> str:
    return "".join(text.casefold().split())
