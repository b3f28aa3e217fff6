"""A grader's answer to a score, or to none: never to a wrong number. Pure.

JSON is believed in any wrapping, when nothing around it gives another score, takes it back, or
quotes the candidate. Of prose one form is read, alone in its answer (`prose.py`). A number that
the candidate itself calls a score is believed only in the form that was asked for. Every other
answer is unparsable: it is asked for again, which costs little, while a wrong score is in the data
for good.
"""

from __future__ import annotations

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
    answer = _without_thoughts(text)
    if isinstance(answer, Unparsable):
        return answer
    theirs = _squeezed(shown)
    if _squeezed(answer) in theirs:
        return Unparsable("an echo of the candidate")
    found = lenient_json.objects(answer)
    if found.objects:
        score = _among_prose(found)
    elif "{" in answer:
        return Unparsable("broken JSON")
    else:
        value = prose.read(answer)
        score = Unparsable(value) if isinstance(value, str) else Score(value, _kept(answer))
    if isinstance(score, Unparsable) or not prose.claims(shown, score.score):
        return score
    own = found.objects and not _WORDS.search(found.prose)
    if own and _squeezed(score.explanation) not in theirs:
        return score
    return Unparsable("perhaps a score that the candidate claims")


def _among_prose(found: lenient_json.Found) -> Score | Unparsable:
    scored: list[Score] = []
    for score in map(_of_object, found.objects):
        if isinstance(score, Unparsable):
            return score
        scored.append(score)
    if len(prose.called(found.prose) | {score.score for score in scored}) > 1:
        return Unparsable("scores that contradict each other")
    lead = found.prose.removesuffix(found.tail)
    if prose.quotes(found.prose) or prose.refuses(found.prose) or prose.supposed(lead):
        return Unparsable("perhaps an example, or the words of somebody else")
    if prose.taken_back(found.tail) or _commented(found):
        return Unparsable("second thoughts")
    best = max(scored, key=lambda score: len(score.explanation))
    return Score(best.score, best.explanation or _kept(found.prose))


def _commented(found: lenient_json.Found) -> bool:
    """Whether the comments in JSON may change what it says; they may name the scale."""
    return prose.taken_back(re.sub(r"\b100\b", "", found.comments))


def listwise(text: str, ids: Iterable[str]) -> dict[str, Score]:
    """The scores of a call with several candidates; ids that are missing were unparsable."""
    answer = _without_thoughts(text)
    if isinstance(answer, Unparsable):
        return {}
    wanted = {name.casefold(): name for name in ids}
    named = re.compile("|".join(map(re.escape, wanted)) or r"\Z.")
    found = lenient_json.objects(answer)
    if prose.taken_back(named.sub("", found.tail.casefold())) or _commented(found):
        return {}
    if prose.quotes(found.prose) or prose.refuses(found.prose):
        return {}
    scores: dict[str, Score] = {}
    doubtful: set[str] = set()
    for line in found.prose.casefold().splitlines():
        if re.search(r"\d", named.sub("", line)):
            doubtful.update(wanted[name] for name in named.findall(line))
    for name, score in (row for data in found.objects for row in _rows(data, wanted)):
        if isinstance(score, Unparsable) or score.score != scores.setdefault(name, score).score:
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


def _without_thoughts(text: str) -> str | Unparsable:
    if len(text) > TEXT_MAX:
        return Unparsable("too long")
    text = text.lstrip("\ufeff").strip()
    if lenient_json.whole(text) is not None:
        return text
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
    if _OPENED.search(text) and lenient_json.whole(text) is None:
        return Unparsable("thoughts that do not end, or end twice")
    return text or Unparsable("empty")


# ------------------------------------------------------------------------------------ JSON answers

_EXPLANATIONS: Final = ("explanation", "reasoning", "reason", "rationale", "comment", "理由")
_SCORES: Final = {"score", "final_score", "overall_score", "total_score", "得分", "评分", "分数"}
#: Beside a score these must say the same.
_REVISED: Final = re.compile(r"(?:\w*ed|new|actual|true)_?score")
#: So must these where they are numbers.
_VERDICTS: Final = re.compile(
    r"(?:final|overall|corrected|revised|adjusted|updated)(?:_\w+)?|"
    r"score_(?:final|overall|total|revised|adjusted|corrected|after_?\w*|new)|grade|verdict"
)
_LIMIT: Final = re.compile(
    r"max_?(?:imum)?(?:_(?:possible|score|points|marks|value))*|maxscore|out_?of|scale|full_marks|"
    r"(?:score|total)_?(?:max|maximum|possible|range|scale)|scale_max|range|(?:points_)?possible"
    r"(?:_points)?"
)
_WRAP: Final = ("result", "results", "grade", "grading", "evaluation", "response", "output")
#: Words beside JSON that are not a fence.
_WORDS: Final = re.compile(r"(?!json\b)\b\w", re.IGNORECASE)


def _fields(data: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().casefold().replace(" ", "_"): v for key, v in data.items()}


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
    also = (_value(fields[key]) for key in fields if _VERDICTS.fullmatch(key))
    values = {_value(each) for each in given} | {each for each in also if each is not None}
    value = values.pop()
    if value is None or values:
        return Unparsable("score is no number from 0 to 100, or there are several")
    total = fields.get("total", 100)
    more = isinstance(total, int | float) and (value <= total <= 50 or value < total)
    if _own_scale(fields) or (more and total != 100):
        return Unparsable("a score on a scale of its own")
    words = next((w for key in _EXPLANATIONS if isinstance(w := fields.get(key), str)), "")
    if prose.refuses(words) or fields.get("error") or fields.get("refusal"):
        return Unparsable("a refusal")
    if any(_number(m) == value > 0 for m in _FRACTION.finditer(words)):
        return Unparsable("perhaps a score on a scale of its own")
    return Score(value, _kept(words))


#: A number of another scale than 100.
_FRACTION: Final = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{1,3})?) ?(?:/|out of) ?(?!100\b)\d")


def _number(match: re.Match[str]) -> float:
    return float(match[1])


def _own_scale(fields: dict[str, Any]) -> bool:
    """Whether an object names the end of its scale, and that is not 100."""
    hundred = (100, "100", "0-100", [0, 100], "0 to 100")
    return any(_LIMIT.fullmatch(key) and fields[key] not in hundred for key in fields)


def _value(value: Any) -> float | None:
    """A number from 0 to 100, also as a text with its scale; nothing else."""
    if isinstance(value, str):
        return prose.of_string(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 100 else None


# -------------------------------------------------------------------------------- lists of answers


def _rows(data: Any, wanted: dict[str, str]) -> list[tuple[str, Score | Unparsable]]:
    """(id, score) of every entry of a document whose id was asked for."""
    if isinstance(data, list):
        return [row for entry in data for row in _rows(entry, wanted)]
    if not isinstance(data, dict):
        return []
    fields = _fields(data)
    if isinstance(name := fields.get("id"), str):
        known = wanted.get(name.strip().casefold())
        return [(known, _of_object(data))] if known else []
    if _own_scale(fields):
        return []
    rows: list[tuple[str, Score | Unparsable]] = []
    for key, value in fields.items():
        if key in wanted:
            score = _of_object(value if isinstance(value, dict) else {"score": value})
            if isinstance(value, dict) and str(value.get("id", key)).strip().casefold() != key:
                score = Unparsable("two ids")
            rows.append((wanted[key], score))
        elif isinstance(value, list) or key in _WRAP:
            rows += _rows(value, wanted)
    return rows


def _kept(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:EXPLANATION_MAX]


def _squeezed(text: str) -> str:
    return "".join(text.casefold().split())
