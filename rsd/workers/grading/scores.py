"""A judge's answer to a score, or to none: never to a wrong number. Pure.

A whole answer that is one JSON object is believed. JSON among prose is believed when nothing around
it speaks of another score, takes it back, or quotes the candidate. Prose is believed only where it
says `score` and a number, and all such places agree (`verdicts.py`). A number that the candidate
itself calls a score is believed in the form that was asked for, and nowhere else. When in doubt an
answer is unparsable: it is asked for again, which costs little, while a wrong score is in the data
for good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rsd.workers.grading import lenient_json
from rsd.workers.grading import prose as prose_

#: Longest explanation that is kept, in characters.
EXPLANATION_MAX: Final = 4_000
#: Longest answer that is read, in characters; a judge is capped far below. What was cut off might
#: have been the verdict, so a longer one is not read in part.
TEXT_MAX: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Score:
    """A score from 0 to 100 and what the judge said for it."""

    score: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Unparsable:
    """No score can be taken from this answer, and why."""

    why: str


def pointwise(text: str, shown: str = "") -> Score | Unparsable:
    """The score of a call with one candidate. `shown` is the candidate as the judge saw it: a score
    that stands in there as well may be an echo, not a verdict.
    """
    whole = _answer(text)
    if isinstance(whole, Unparsable):
        return whole
    data = lenient_json.whole(whole)
    if data is not None:
        found = _of_object(data)
        if isinstance(found, Score) and _echoed(data, whole, shown):
            return Unparsable("an echo of the candidate")
        return found
    found = _in_text(whole, shown)
    if isinstance(found, Score) and found.score in _claims(shown):
        return Unparsable("perhaps a score that the candidate claims")
    return found


def listwise(text: str, ids: Iterable[str]) -> dict[str, Score]:
    """The scores of a call with several candidates; ids that are missing were unparsable."""
    whole = _answer(text)
    if isinstance(whole, Unparsable):
        return {}
    wanted = {name.casefold(): name for name in ids}
    data = lenient_json.whole(whole)
    rows: list[tuple[str, Score | None]] = []
    if data is not None:
        rows = _rows(data, wanted)
    else:
        among = lenient_json.among_prose(whole, parts=True)
        for document, _ in among.objects:
            rows += _rows(document, wanted)
        said = _lines(among.prose, wanted)
        # Beside JSON, prose counts only where it gives another score.
        rows += [row for row in said if row[1] is not None] if rows else said
        if prose_.second_thoughts(among.tail if among.objects else whole):
            return {}
    found: dict[str, Score] = {}
    doubtful: set[str] = set()
    for name, score in rows:
        if score is None or (name in found and found[name].score != score.score):
            doubtful.add(name)
        else:
            found.setdefault(name, score)
    return {name: score for name, score in found.items() if name not in doubtful}


# ----------------------------------------------------------------------- what is the answer at all

_THOUGHTS: Final = r"(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
_OPENED: Final = re.compile(rf"[<\[◁]{_THOUGHTS}[>\]▷]", re.IGNORECASE)
_CLOSED: Final = re.compile(rf"[<\[◁]/{_THOUGHTS}[>\]▷]", re.IGNORECASE)
#: The channels of gpt-oss, when a server does not take them apart.
_CHANNEL: Final = "<|channel|>"
_FINAL: Final = "<|channel|>final<|message|>"


def _answer(text: str) -> str | Unparsable:
    """The text without thoughts and code fence."""
    if len(text) > TEXT_MAX:
        return Unparsable("too long")
    text = text.lstrip("\ufeff").strip()
    if _CHANNEL in text and lenient_json.whole(text) is None:
        _, final, text = text.partition(_FINAL)
        if not final or _CHANNEL in text:
            return Unparsable("thoughts that do not end, or end twice")
        text = re.sub(r"<\|(?:return|end)\|>\s*$", "", text).strip()
    if (_OPENED.match(text) or _CLOSED.search(text)) and lenient_json.whole(text) is None:
        parts = _CLOSED.split(text, maxsplit=2)
        if len(parts) != 2 or ("{" in parts[0] and not _OPENED.match(text)):
            return Unparsable("thoughts that do not end, or end twice")
        text = parts[1].strip()
    return _unfenced(text) or Unparsable("empty")


def _unfenced(text: str) -> str:
    for _ in range(3):
        match = re.match(r"(`{3,9}|~{3,9})[A-Za-z]{0,12}", text)
        if match is None or len(text) < match.end() + len(match[1]):
            break
        inner = text[match.end() : -len(match[1])]
        if not text.endswith(match[1]) or re.search(rf"(?<!{match[1][0]}){match[1]}(?!`|~)", inner):
            break
        text = inner.strip()
    return text


# ------------------------------------------------------------------------------------ JSON answers

_EXPLANATIONS: Final = (
    *("explanation", "reasoning", "reason", "rationale", "justification", "comment"),
    *("理由", "解释", "说明"),
)
_SCORES: Final = {
    *("score", "final_score", "overall_score", "total_score"),
    *("得分", "分数", "评分", "最终得分"),
}
#: Beside a score these must say the same.
_REVISED: Final = re.compile(
    r"(?:revised|adjusted|corrected|updated|new|actual|true|weighted|normali[sz]ed|scaled)_?score"
)
_LIMIT: Final = ("max_score", "maximum", "max", "out_of", "scale", "maxscore")
_WRAP: Final = ("result", "results", "grade", "grading", "evaluation", "response", "output")
#: Around JSON: the object may be quoted from the candidate, or an example.
_CLAIM: Final = re.compile(
    r"inject|manipulat|\bignor|\bquot|embedded|\bclaim|self-|refus|\bsorry\b|\bunable\b|\bcannot\b|"
    r"can[’']t|for example|e\.g\.|for instance|such as|instruct|it(?:self)? says|"
    r"contains? (?:the|a)\b|\bwrote\b|\basks?\b|\bdemand|\bpretend|"
    r"\battempt(?:s|ed)? to (?:influence|trick|force)",
    re.IGNORECASE,
)


def _fields(data: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().casefold().replace(" ", "_"): v for key, v in data.items()}


def _has_score(data: Any) -> bool:
    return not isinstance(_of_object(data), Unparsable) or (
        isinstance(data, dict) and not _SCORES.isdisjoint(_fields(data))
    )


def _of_object(data: Any, depth: int = 4) -> Score | Unparsable:
    """The score of `{"explanation": ..., "score": ...}`, perhaps inside known wrappers."""
    if isinstance(data, list):
        if len(data) == 1 and depth:
            return _of_object(data[0], depth - 1)
        return Unparsable("a list")
    if not isinstance(data, dict):
        return Unparsable("no object")
    fields = _fields(data)
    if len(fields) < len(data):
        return Unparsable("a key twice")
    given = [fields[key] for key in fields if key in _SCORES]
    if not given:
        if len(fields) == 1 and depth and (inner := next(iter(fields))) in _WRAP:
            return _of_object(fields[inner], depth - 1)
        return Unparsable("JSON without a score")
    given += [fields[key] for key in fields if _REVISED.fullmatch(key)]
    values = {_value(each) for each in given}
    value = values.pop()
    if value is None or values:
        return Unparsable("score is no number from 0 to 100, or there are several")
    limits = [fields[key] for key in _LIMIT if key in fields]
    if any(limit not in (100, "100", "0-100") for limit in limits):
        return Unparsable("a score on a scale of its own")
    total = fields.get("total")
    if isinstance(total, int | float) and total in prose_.SCALES - {100} and value <= total:
        return Unparsable("a score on a scale of its own")
    words = next((w for key in _EXPLANATIONS if isinstance(w := fields.get(key), str)), "")
    return Unparsable("a refusal") if prose_.refuses(words) else Score(value, _kept(words))


def _value(value: Any) -> float | None:
    """A number from 0 to 100, also as a text with its scale; nothing else."""
    if isinstance(value, str):
        return prose_.scaled_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and 0.0 <= number <= 100.0 else None


# ------------------------------------------------------------------------------- JSON among prose


def _in_text(text: str, shown: str) -> Score | Unparsable:
    """The score of an answer that is not one JSON object."""
    among = lenient_json.among_prose(text)
    if not among.objects and re.match(r"\{\s*[\w\"']", text[:200]):
        return _broken(text)
    scored = [(data, raw) for data, raw in among.objects if _has_score(data)]
    plain = prose_.unmarked(among.prose)
    if scored:
        if any(_echoed(data, raw, shown) for data, raw in scored):
            return Unparsable("an echo of the candidate")
        return _among_prose([data for data, _ in scored], among.prose, plain, among.tail)
    if among.objects and not prose_.mentions(plain):
        return Unparsable("JSON without a score")
    verdict = prose_.read(prose_.unmarked(text))
    if isinstance(verdict, str):
        return Unparsable(verdict)
    assert verdict.value is not None
    return Score(verdict.value, "" if prose_.alone(text) else _kept(text))


def _among_prose(scored: list[Any], prose: str, plain: str, tail: str) -> Score | Unparsable:
    results = [_of_object(data) for data in scored]
    values = {r.score if isinstance(r, Score) else None for r in results}
    if len(values) > 1 or None in values:
        return Unparsable("several objects, or one without a right score")
    if _CLAIM.search(prose):
        return Unparsable("it may be a score that the candidate claims")
    if prose_.second_thoughts(tail):
        return Unparsable("second thoughts")
    values |= {mention.value for mention in prose_.mentions(plain)} | prose_.lonely(plain)
    values |= {mention.value for mention, scaled in prose_.totals(plain) if scaled}
    if len(values) > 1:
        return Unparsable("JSON and prose contradict each other")
    best = max((r for r in results if isinstance(r, Score)), key=lambda r: len(r.explanation))
    return Score(best.score, best.explanation or _kept(prose))


def _broken(text: str) -> Score | Unparsable:
    """An object that is cut off, or holds unescaped quotes: believed when the score is its first
    member, or its last one before the closing brace, and no other place names another score.
    """
    quote = re.escape(text[1:].lstrip()[0])
    key = rf"{quote}score{quote}\s{{0,9}}:\s{{0,9}}"
    form = rf"{key}[\"']?(?P<n>[^\s\"',{{}}]{{1,40}})[\"']?\s{{0,9}}"
    first = re.match(rf"\{{\s*+{form},\s{{0,99}}[\"']", text)
    last = re.search(rf"[,\n]\s{{0,9}}{form},?\s{{0,9}}\}}$", text[-300:])
    values = {_value(m.group("n")) for m in (first, last) if m}
    if len(values) != 1 or None in values or text.count("{") > 1:
        return Unparsable("broken JSON")
    value = next(iter(values))
    assert value is not None
    if any(mention.value != value for mention in prose_.mentions(prose_.unmarked(text))):
        return Unparsable("broken JSON with several scores")
    return Score(value, "")


# ------------------------------------------------------------------------------ the candidate's own


def _echoed(data: Any, words: str, shown: str) -> bool:
    """Whether the candidate holds these very words, the same object, or what the object says."""
    if not shown:
        return False
    theirs = _squeezed(shown)
    if _squeezed(words) in theirs:
        return True
    found = _of_object(data)
    if not isinstance(found, Score) or _squeezed(found.explanation) not in theirs:
        return False
    return found.score in _claims(shown)  # last, because it costs most


def _squeezed(text: str) -> str:
    return "".join(text.casefold().split())


def _claims(shown: str) -> set[float | None]:
    """The scores that the candidate gives itself."""
    if not shown:
        return set()
    found = (_of_object(data) for data, _ in lenient_json.among_prose(shown, parts=True).objects)
    return prose_.claimed(shown) | {s.score for s in found if isinstance(s, Score)}


# -------------------------------------------------------------------------------- lists of answers


def _rows(data: Any, wanted: dict[str, str]) -> list[tuple[str, Score | None]]:
    """(id, score) of every entry of a document whose id was asked for; None for no right score."""
    if isinstance(data, list):
        return [row for entry in data for row in _rows(entry, wanted)]
    if not isinstance(data, dict):
        return []
    fields = _fields(data)
    name = fields.get("id")
    if isinstance(name, str):
        known = wanted.get(name.strip().casefold())
        if known is None:
            return []
        score = _of_object(data)
        return [(known, score if isinstance(score, Score) else None)]
    rows: list[tuple[str, Score | None]] = []
    for key, value in fields.items():
        if key in wanted:
            score = _of_object(value if isinstance(value, dict) else {"score": value})
            rows.append((wanted[key], score if isinstance(score, Score) else None))
        elif isinstance(value, list) or key in _WRAP:
            rows += _rows(value, wanted)
    return rows


def _lines(text: str, wanted: dict[str, str]) -> list[tuple[str, Score | None]]:
    """`ID: 85/100`, or a table row, one id a line and nothing but its score after it."""
    rows: list[tuple[str, Score | None]] = []
    for line in text.splitlines():
        plain = prose_.unmarked(line[:2_000]).strip()
        words = re.findall(r"\w+", plain.casefold())
        names = {wanted[word] for word in words if word in wanted}
        if not names:
            continue
        row = prose_.row(plain)
        if row is None and not re.search(r"\d", " ".join(w for w in words if w not in wanted)):
            continue  # it only names the id
        if row is None or row[0].casefold() not in wanted or row[1] is None:
            rows += [(name, None) for name in names]
        else:
            rows.append((wanted[row[0].casefold()], Score(row[1], "")))
    return rows


def _kept(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:EXPLANATION_MAX]
