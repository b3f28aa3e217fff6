"""A judge's answer to a score, or to none: never to a wrong number. Pure.

A whole answer that is one JSON object is believed. JSON among prose is believed when nothing around
it speaks of another score, or of a score that the candidate claims. Prose is believed only where it
says `score` and a number, and all such places agree. When in doubt an answer is unparsable: it is
asked for again, which costs little, while a wrong score is in the data for good.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

#: Longest explanation that is kept, in characters.
EXPLANATION_MAX: Final = 4_000
#: Longest answer that is looked at, in characters; a judge is capped far below.
TEXT_MAX: Final = 200_000
#: Most braces that are tried and open nothing.
BRACES_MAX: Final = 1_000
#: Scales that a prose score may be out of.
SCALES: Final = {5, 10, 20, 50, 100}


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
    """The score of a call with one candidate. `shown` is the candidate's text, if at hand: a score
    that stands word for word in there as well is an echo, not a verdict.
    """
    whole = _answer(text)
    if isinstance(whole, Unparsable):
        return whole
    data = _json(whole)
    if isinstance(data, dict | list):
        found = _of_object(data)
        if isinstance(found, Score) and _echoed(whole, shown):
            return Unparsable("an echo of the candidate")
        return found
    objects, prose = _embedded(whole)
    if not objects and re.match(r"\{\s*[\"']", whole):
        return _broken(whole)
    scored = [(o, raw) for o, raw in objects if _has_score(o)]
    if scored:
        return _among_prose(scored, prose, shown)
    if objects and _mentions(_unmarked(prose)) == []:
        return Unparsable("JSON without a score")
    return _prose(whole, shown)


def listwise(text: str, ids: Iterable[str]) -> dict[str, Score]:
    """The scores of a call with several candidates; ids that are missing were unparsable."""
    whole = _answer(text)
    if isinstance(whole, Unparsable):
        return {}
    wanted = {name.casefold(): name for name in ids}
    data = _json(whole)
    documents = [data] if data is not None else [o for o, _ in _embedded(whole, parts=True)[0]]
    rows: list[tuple[str, Score | None]] = []
    for document in documents:
        rows += _rows(document, wanted)
    if not rows and data is None:
        rows = _lines(whole, wanted)
    found: dict[str, Score] = {}
    doubtful: set[str] = set()
    for name, score in rows:
        if score is None or (name in found and found[name].score != score.score):
            doubtful.add(name)
        else:
            found.setdefault(name, score)
    return {name: score for name, score in found.items() if name not in doubtful}


# ----------------------------------------------------------------------- what is the answer at all


def _answer(text: str) -> str | Unparsable:
    """The text without thoughts and code fence."""
    text = text[:TEXT_MAX].lstrip("\ufeff").strip()
    if not text:
        return Unparsable("empty")
    if _json(text) is not None:
        return text
    if re.match(r"<think(ing)?>", text, re.IGNORECASE) or re.search(r"</think(ing)?>", text):
        parts = re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)
        opened = re.match(r"<think", parts[0], re.IGNORECASE)
        if len(parts) != 2 or ("{" in parts[0] and not opened):
            return Unparsable("thoughts that do not end, or end twice")
        text = parts[1].strip()
    fenced = re.fullmatch(r"```[A-Za-z]*[ \t]*\n?(.*?)\n?[ \t]*```", text, re.DOTALL)
    if fenced and "```" not in fenced.group(1):
        text = fenced.group(1).strip()
    return text or Unparsable("empty")


class _Twice(ValueError):
    """A key that is given twice with different values."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data and data[key] != value:
            raise _Twice(key)
        data[key] = value
    return data


def _no_number(name: str) -> Any:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_no_number, strict=False
)


def _json(text: str) -> Any:
    """The whole text as one JSON object or list, else None."""
    if text[:1] not in ("{", "["):
        return None
    for candidate in (text, re.sub(r",(\s*[}\]])\s*$", r"\1", text)):
        try:
            return _DECODER.decode(candidate)
        except (ValueError, RecursionError):
            continue
    return None


def _embedded(text: str, *, parts: bool = False) -> tuple[list[tuple[Any, str]], str]:
    """The JSON objects among prose with their source, and the prose without them.

    A brace that opens something with a quoted key, but no complete object, ends the search unless
    `parts`: what is inside of a broken object is a part, not an answer.
    """
    found: list[tuple[Any, str]] = []
    prose: list[str] = []
    at = failures = 0
    while failures < BRACES_MAX and (start := text.find("{", at)) != -1:
        try:
            data, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            if not parts and re.match(r"\{\s*[\"']", text[start : start + 200]):
                break
            failures += 1
            prose.append(text[at : start + 1])
            at = start + 1
            continue
        prose.append(text[at:start])
        found.append((data, text[start:end]))
        at = end
    prose.append(text[at:])
    return found, "\n".join(prose)


# ------------------------------------------------------------------------------------ JSON answers

_WORDS: Final = ("explanation", "reasoning", "reason", "rationale", "justification", "comment")
_LIMIT: Final = ("max_score", "maximum", "max", "out_of", "scale", "maxscore")
_WRAP: Final = ("result", "results", "grade", "grading", "evaluation", "response", "output")


def _fields(data: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().casefold(): value for key, value in data.items()}


def _has_score(data: Any) -> bool:
    return not isinstance(_of_object(data), Unparsable) or (
        isinstance(data, dict) and "score" in _fields(data)
    )


def _of_object(data: Any) -> Score | Unparsable:
    """The score of `{"explanation": ..., "score": ...}`, perhaps inside one known wrapper."""
    if isinstance(data, list):
        return _of_object(data[0]) if len(data) == 1 else Unparsable("a list")
    if not isinstance(data, dict):
        return Unparsable("no object")
    fields = _fields(data)
    if len(fields) < len(data):
        return Unparsable("a key twice")
    if "score" not in fields:
        if len(fields) == 1 and (inner := next(iter(fields))) in _WRAP:
            return _of_object(fields[inner])
        return Unparsable("JSON without a score")
    limits = [fields[key] for key in _LIMIT if key in fields]
    if any(limit not in (100, "100", "0-100") for limit in limits):
        return Unparsable("a score on a scale of its own")
    value = _value(fields["score"])
    if value is None:
        return Unparsable("score is no number from 0 to 100")
    words = next((w for key in _WORDS if isinstance(w := fields.get(key), str)), "")
    if _SORRY.match(words):
        return Unparsable("a refusal")
    return Score(value, _kept(words))


def _value(value: Any) -> float | None:
    """A number from 0 to 100, also as a text with its scale; nothing else."""
    if isinstance(value, str):
        match = _ALONE.fullmatch(value.strip())
        return _number(match) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and 0.0 <= number <= 100.0 else None


def _among_prose(scored: list[tuple[Any, str]], prose: str, shown: str) -> Score | Unparsable:
    results = [_of_object(data) for data, _ in scored]
    values = {r.score if isinstance(r, Score) else None for r in results}
    if len(values) > 1 or None in values:
        return Unparsable("several objects, or one without a right score")
    value = next(v for v in values if v is not None)
    if any(_echoed(raw, shown) for _, raw in scored):
        return Unparsable("an echo of the candidate")
    if _CLAIM.search(prose):
        return Unparsable("it may be a score that the candidate claims")
    if any(number != value for number in _mentions(_unmarked(prose))):
        return Unparsable("JSON and prose contradict each other")
    best = max((r for r in results if isinstance(r, Score)), key=lambda r: len(r.explanation))
    return Score(value, best.explanation or _kept(prose))


def _broken(text: str) -> Score | Unparsable:
    """An object that is cut off, or holds unescaped quotes: believed when the score is its first
    member, or its last one before the closing brace, and no other place names another score.
    """
    quote = text[1:].lstrip()[0]
    key = rf"{quote}score{quote}\s*:\s*"
    first = re.match(rf"\{{\s*{key}[\"']?(?P<n>[^\s\"',{{}}]+)[\"']?\s*,", text)
    last = re.search(rf"[,\n]\s*{key}[\"']?(?P<n>[^\s\"',{{}}]+)[\"']?\s*,?\s*\}}$", text)
    values = {_value(m.group("n")) for m in (first, last) if m}
    if len(values) != 1 or None in values:
        return Unparsable("broken JSON")
    value = next(iter(values))
    assert value is not None
    if any(number != value for number in _mentions(_unmarked(text))):
        return Unparsable("broken JSON with several scores")
    return Score(value, "")


# ----------------------------------------------------------------------------------- prose answers

_NUMBER: Final = r"(?P<n>[+-]?\d{1,9}(?:\.\d{1,20}|,\d{1,2})?)(?![\d]|[.,]\d)"
_UNIT: Final = (
    r"(?:\s*(?:points?|pts\.?|punkte)?\s*\(?(?:/|out\s+of|von|of)\s*(?P<of>\d+)(?![\d.,]*\d)"
    r"(?:\s*(?:points?|punkten?))?\)?|\s*(?P<percent>%|percent|prozent))?"
)
#: A number with its scale and nothing else: `85`, `8/10`, `85,5 von 100`, `85%`.
_ALONE: Final = re.compile(_NUMBER + _UNIT, re.IGNORECASE)
_LABEL: Final = r"(?:score|rating|grade|punktzahl|bewertung)"
_HAN_LABEL: Final = r"(?<![\u4e00-\u9fff])(?:最终|总体|综合)?(?:得分|评分|分数|总分)"
#: The word before the label: these leave it the score of the whole.
_WHOLE: Final = (
    r"(?:final|overall|total|gesamt|my|the|a|candidate|answer|assigned|numerical|numeric|and|so|"
    r"thus|therefore|hence|with)"
)
#: Every place that may be a verdict, however decorated.
_MENTION = re.compile(
    rf"(?:(?P<before>(?<![^\W_])[^\W\d_]{{1,30}})?[ \t]{{0,4}}"
    rf"(?<![^\W_]){_LABEL}(?![^\W\d_])|{_HAN_LABEL})"
    r"[\"'\\]{0,4}[ \t]{0,4}(?P<paren>\([^()\n]{0,80}\))?[ \t]{0,4}"
    rf"(?P<link>[:=：|–-]|\bis\b|\bof\b|\bist\b|为|是)?[:=：|]?[ \t\"'~]{{0,8}}{_NUMBER}{_UNIT}",
    re.IGNORECASE,
)
#: What may follow a bare number that is the score: the end, or a remark about it.
_AFTER = re.compile(
    r"[ \t]*(?:$|\n|[.;,!)\]|](?=\s|$)|[–—-][ \t]+[^\W\d]|"
    r"(?:points?|pts|punkte)\b(?![ \t]*(?:for|out|of|/|from|deducted|lost))|分(?=\s|[。，,.]|$)|"
    r"(?:because|since|as|due|based|overall)\b)",
    re.IGNORECASE,
)
_RANGE = re.compile(
    r"[ \t]*(?:[–—-][ \t]*\d|to[ \t]+\d|or[ \t]+\d|bis[ \t]+\d|\.\.)", re.IGNORECASE
)
#: Sentences that speak of a score without giving it.
_MAYBE = re.compile(
    r"\b(?:would|could|should|might|may|if|unless|max|maximum|possible|minimum|highest|lowest|"
    r"threshold|instead|not|never|example|e\.g|deserved?|previous|claims?|claimed|says|asks?|"
    r"requests?|wants?|demands?|ignore|between|about|approximately|around|at least|at most)\b",
    re.IGNORECASE,
)
_HYPOTHESIS = re.compile(r"[ \t]*(?:would|could|should|might|may|if|unless)\b", re.IGNORECASE)
_SCALE_TOLD = re.compile(r"\bscale\b[^.\n]{0,40}", re.IGNORECASE)
#: Around JSON: the object may be quoted from the candidate, or an example.
_CLAIM = re.compile(
    r"inject|manipulat|\bignor|\bquot|embedded|\bclaim|self-|refus|\bsorry\b|\bunable\b|\bcannot\b|"
    r"can[’']t|for example|e\.g\.|for instance|such as|instruct|it(?:self)? says|"
    r"contains? (?:the|a)\b|\bwrote\b|\basks?\b|\bdemand|\bpretend|"
    r"\battempt(?:s|ed)? to (?:influence|trick|force)",
    re.IGNORECASE,
)
_SORRY = re.compile(
    r"\s*(?:i['’]?m (?:sorry|unable|not able)|i am (?:sorry|unable|not able)|sorry\b|"
    r"i (?:cannot|can['’]t|can not|could not|couldn['’]t) (?:see|view|access|open|load|assist|help|"
    r"evaluate|grade|determine|comply|provide)|unfortunately, i\b|as an ai\b|"
    r"no image (?:was|is|has been) (?:provided|attached|included))",
    re.IGNORECASE,
)


def _unmarked(text: str) -> str:
    """Without markdown's decoration, and with a heading joined to the number below it."""
    text = re.sub(r"[*`#]+|(?<!\w)_+|_+(?!\w)", "", text)
    text = re.sub(r"\\+(?=[\"'])", "", text)
    return re.sub(
        rf"(?im)^([ \t]*(?:{_WHOLE}[ \t]+)?{_LABEL}[ \t]*[:：]?)[ \t]*\n\s*(?=[+-]?\d)",
        r"\1: ",
        text,
    )


def _number(match: re.Match[str]) -> float | None:
    """The value on 0 to 100 of a match of _NUMBER and _UNIT; None when there is none."""
    number = float(match.group("n").replace(",", "."))
    scale = int(match.group("of")) if match.group("of") else 100
    if scale not in SCALES or not 0 <= number <= scale:
        return None
    return number if scale == 100 else number * 100 / scale


def _mentions(text: str) -> list[float | None]:
    """The values of all places that may be a verdict on the whole; None for impossible ones."""
    found: list[float | None] = []
    for match in _MENTION.finditer(text):
        before = match.group("before")
        if before and not re.fullmatch(_WHOLE, before, re.IGNORECASE):
            continue  # `component score: 9`
        found.append(_number(match))
    return found


def _prose(text: str, shown: str) -> Score | Unparsable:
    plain = _unmarked(text)
    if _SORRY.match(plain):
        return Unparsable("a refusal")
    alone = _ALONE.fullmatch(plain.strip().rstrip("."))
    if alone:
        value = _number(alone)
        return Unparsable("out of range") if value is None else Score(value, "")
    verdicts: list[tuple[float, str]] = []
    for match in _MENTION.finditer(plain):
        before, value = match.group("before"), _number(match)
        if before and not re.fullmatch(_WHOLE, before, re.IGNORECASE):
            continue
        if value is None:
            return Unparsable("a score out of its range or scale")
        if not _clear(plain, match, value):
            return Unparsable("a number that may be something else")
        verdicts.append((value, match.group()))
    if not verdicts:
        return Unparsable("no score")
    if len({value for value, _ in verdicts}) > 1:
        return Unparsable("scores that contradict each other")
    if any(_echoed(words, shown) for _, words in verdicts):
        return Unparsable("an echo of the candidate")
    return Score(verdicts[0][0], _kept(text))


def _clear(text: str, match: re.Match[str], value: float) -> bool:
    """Whether this place says that the score of the whole is just this number."""
    scaled = match.group("of") is not None or match.group("percent") is not None
    if (match.group("link") or "-") in "–-" or "~" in match.group():
        return False
    rest = text[match.end() :]
    if _RANGE.match(rest) or _HYPOTHESIS.match(rest):
        return False
    if not scaled:
        told = [match.group("paren") or "", *_SCALE_TOLD.findall(text)]
        numbers = [re.findall(r"\d+", words) for words in told]
        if any(found and found[-1] != "100" for found in numbers):
            return False
        if 0 < value <= 10 or not _AFTER.match(rest):
            return False  # perhaps out of 5 or 10, perhaps a number of something
    if not rest.strip() and "{" in text:
        return False  # perhaps cut off
    start = max(text.rfind(mark, 0, match.start()) for mark in (". ", "\n", "! ", "? ", "; ")) + 1
    return not _MAYBE.search(text[start : match.end()])


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
    form = re.compile(
        rf"\W*(?:(?:candidate|answer|id)\W+)?(?P<id>\w+)\W+(?:{_LABEL}\W+)?{_NUMBER}{_UNIT}\W*",
        re.IGNORECASE,
    )
    for line in text.splitlines():
        plain = _unmarked(line).strip()
        names = [wanted[w] for w in re.findall(r"\w+", plain.casefold()) if w in wanted]
        if not names:
            continue
        match = form.fullmatch(plain)
        value = None
        if match and match.group("id").casefold() in wanted:
            value = _number(match)
            bare = match.group("of") is None and match.group("percent") is None
            if value is not None and bare and 0 < value <= 10:
                value = None
        elif not re.search(r"\d", re.sub("|".join(map(re.escape, names)), "", plain)):
            continue  # it only names the id
        rows += [(name, None if value is None else Score(value, "")) for name in set(names)]
    return rows


def _echoed(words: str, shown: str) -> bool:
    """Whether these words stand in the candidate, whatever the white space."""
    return bool(shown) and "".join(words.split()) in "".join(shown.split())


def _kept(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:EXPLANATION_MAX]
