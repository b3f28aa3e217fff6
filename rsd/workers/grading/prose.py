"""Scores in prose: where a text says `score` and a number, and whether it means just that. Pure.

Every place that may be a verdict is a mention; a mention is clear when nothing on its line speaks
of a part, a range, another scale, a condition, or somebody else's words. All patterns look at
windows of bounded length: the work is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: Scales that a prose score may be out of.
SCALES: Final = {5, 10, 20, 50, 100}
#: Characters around a label that are looked at.
BEFORE: Final = 160
AFTER: Final = 400
#: Most mentions of a text; a judge that says it more often has fallen into a loop.
MENTIONS_MAX: Final = 200
#: From so many places on they are a list of parts.
PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Mention:
    """A number that is called a score; `value` is on 0 to 100, None outside of its scale."""

    value: float | None
    words: str
    start: int
    end: int
    doubt: str = ""  #: why it may be something else


_NUMBER: Final = r"(?P<n>[+-]?\d{1,9}(?:\.\d{1,20}|,\d{1,2})?)(?!\d|[.,]\d)"
_POINTS: Final = r"(?:points?|pts\.?|punkten?|分|点|점|puntos|punti|pontos|баллов)"
_GAP: Final = r"[ \t]{0,4}"
_OUT_OF: Final = r"(?:/|out[ \t]+of(?:[ \t]+a[ \t]+possible)?|von|of)"
_UNIT: Final = (
    rf"(?:{_GAP}{_POINTS}?{_GAP}\(?{_OUT_OF}{_GAP}(?P<of>\d+)(?![\d.,]*\d)(?:{_GAP}{_POINTS})?\)?|"
    rf"{_GAP}(?P<percent>%|percent|prozent)|{_GAP}(?P<points>{_POINTS})(?!\w))?"
)
#: A number with its scale and nothing else: `85`, `8/10`, `85,5 von 100`, `85%`.
_ALONE: Final = re.compile(_NUMBER + _UNIT, re.IGNORECASE)
_ROW: Final = re.compile(
    r"[|•(\[-]?\s{0,4}(?:\d{1,2}[.)]\s{1,4})?(?:(?:candidate|answer|id)[\s:]{1,4})?(?P<id>\w{1,40})"
    r"[)\]]?\s{0,4}(?:[:=|]|is\b|[–—-](?=\s))\s{0,4}(?:(?:score|rating|grade)\s{0,4}[:=]?\s{0,4})?"
    rf"{_NUMBER}{_UNIT}\s{{0,4}}[|.,;]?",
    re.IGNORECASE,
)
_LABEL: Final = (
    r"(?:score|rating|grade|punktzahl|bewertung|puntuación|calificación|punteggio|pontuação|оценка)"
    r"(?![^\W\d])"
)
_EAST: Final = r"(?:最终|总体|综合)?(?:得分|评分|分数)|スコア|得点|点数|점수"
_LABELS: Final = re.compile(rf"{_LABEL}|{_EAST}", re.IGNORECASE)
#: Words for the whole that are scores only with `/100` behind them, or when they contradict.
_TOTALS: Final = re.compile(
    r"(?<![^\W_])(?:overall|total|final|sum|verdict|result|marks?|average|gesamt|summe)(?![^\W\d])|"
    r"总分|合计|总计|最终|最后",
    re.IGNORECASE,
)
#: The word before a label: these leave it the score of the whole,
_WHOLE: Final = re.compile(
    r"final|overall|total|gesamt|my|the|a|candidate|answer|assigned|numerical|numeric|and|so|"
    r"thus|therefore|hence|with|die|la|il|итоговая|최종|最終",
    re.IGNORECASE,
)
#: these say that another place is outdated, any other that it is the score of a part.
_REVISED: Final = re.compile(
    r"new|revised|adjusted|corrected|updated|actual|true|real|reduced|lowered|better|fair(?:er)?|"
    r"weighted|normali[sz]ed|scaled",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(r"max(?:imum|imal)?|possible|full|top|best", re.IGNORECASE)
_BEFORE: Final = re.compile(r"(?<![^\W_])([^\W\d_]{1,30})[ \t_'’-]{0,4}\Z")
_NEXT: Final = re.compile(
    r"[\"'\\]{0,4}[ \t]{0,4}(?P<paren>\([^()\n]{0,80}\))?[\"']{0,2}[ \t]{0,4}"
    rf"(?P<link>[:=|–-]|\bis\b|\bof\b|\bist\b|为|是)?[:=|]?[ \t\"'~]{{0,8}}{_NUMBER}{_UNIT}",
    re.IGNORECASE,
)
#: What may follow a number that is the score: the end, a sign, or a remark about it.
_CLOSED: Final = re.compile(
    r"[ \t]*(?:$|\n|[.;,!)\]|。](?=\s|$)|[,;!。](?=[^\W\d])|[–—-][ \t]+[^\W\d]|\([^()\d\n]*\)|"
    r"(?:because|since|as|due|based|overall)\b|"
    r"[^\w\s.;,:/%+*=<>~^°$€({\[\"'?–—-]{1,8}[ \t]*(?:$|\n))",
    re.IGNORECASE,
)
_RANGE: Final = re.compile(
    r"[ \t]*(?:[–—-][ \t]*\d|(?:to|or|bis)[ \t]+\d|\.\.|[±~])", re.IGNORECASE
)
#: A score that is taken apart again on its own line.
_LESS: Final = re.compile(
    r"\b(?:minus|less|deduct\w*|subtract\w*|penal\w*|lost?|but|for)\b|[=→]|->|扣", re.IGNORECASE
)
#: Sentences that speak of a score without giving it.
_MAYBE: Final = re.compile(
    r"\b(?:would|could|should|might|may|if|unless|max|maximum|possible|minimum|highest|lowest|"
    r"threshold|instead|not|never|example|e\.g|deserved?|previous|claims?|claimed|says|said|asks?|"
    r"requests?|wants?|demands?|ignore|between|about|approximately|around|at least|at most|"
    r"ends?|writes?|wrote|contains?|pleads?|begs?|instructs?|states|includes?|line|quote[sd]?)\b|"
    r"声称|要求|如果|自称",
    re.IGNORECASE,
)
_HYPOTHESIS: Final = re.compile(r"[ \t]*(?:would|could|should|might|may|if|unless)\b", re.I)
_SCALE_TOLD: Final = re.compile(r"\bscale\b[^.\n]{0,40}", re.IGNORECASE)
#: `Names: score: 40` is a part; these words before a colon are not.
_HEAD: Final = re.compile(r"(?P<head>[^\W\d_]{1,30})[^\w\n]{0,3}(?:[:|]|\s[–—-])[ \t|]*\Z")
_HEAD_WHOLE: Final = re.compile(
    r"final|verdict|result|conclusion|summary|overall|total|grade|assessment|evaluation|"
    r"judge?ment|candidate|therefore|answer|grading",
    re.IGNORECASE,
)
_SECOND: Final = re.compile(
    r"\b(?:wait|actually|correction|reflection|hmm+|oops|recount\w*|reconsider\w*|revis\w+|rethink|"
    r"let me (?:re|make)|make (?:that|it)|scratch that|"
    r"(?:second|closer|further) (?:thought|look)s?|"
    r"adjust\w*|instead|rather|fairer|should (?:be|have been)|mistaken?|correcting|updat\w+|"
    r"(?:lower|raise|reduc|chang)\w* (?:it|this|that|the|my|to))\b|"
    r"\b(?:deduct|minus|subtract|penal)\w*[^.\n]{0,40}\d|等等|更正|修正|应该是|重新|扣",
    re.IGNORECASE,
)
_SORRY: Final = re.compile(
    r"\W{0,4}(?:i['’]?m (?:sorry|unable|not able)|i am (?:sorry|unable|not able)|sorry\b|"
    r"i (?:cannot|can['’]t|can not|could not|couldn['’]t) (?:see|view|access|open|load|assist|help|"
    r"evaluate|grade|judge|determine|comply|provide)|"
    r"cannot (?:view|evaluate|grade|judge|comply|assist)|unfortunately,? i\b|as an ai\b|"
    r"(?:unable|not able|impossible) to (?:see|view|access|open|load|evaluate|grade|judge)|"
    r"es tut mir leid|ich kann (?:das|dabei|die)\b|je suis désolé|lo siento|抱歉|对不起|很抱歉|"
    r"申し訳|죄송)",
    re.IGNORECASE,
)
_NO_PICTURE: Final = re.compile(
    r"\bno (?:image|picture|drawing|diagram) (?:was|is|has been|were) "
    r"(?:provided|attached|included|given|supplied)|"
    r"\b(?:image|picture|drawing|diagram) (?:could not be|cannot be|was not|failed to) "
    r"(?:loaded|load|opened|open|provided|attached|displayed)|"
    r"无法(?:查看|看到|打开)",
    re.IGNORECASE,
)
_FULL_WIDTH: Final = {0xFF01 + k: 0x21 + k for k in range(94)}


def refuses(text: str) -> bool:
    """Whether these words are a refusal, or say that there was no picture to look at."""
    head = text[:300]
    return bool(_SORRY.match(head.lstrip()) or _NO_PICTURE.search(head))


def second_thoughts(text: str) -> bool:
    """Whether this, said after a verdict, may take it back."""
    return bool(_SECOND.search(text))


def alone(text: str) -> Mention | None:
    """A text that is a number with its scale and nothing else."""
    plain = unmarked(text[:200]).strip().rstrip(".。")
    match = _ALONE.fullmatch(plain) if len(text) <= 200 else None
    if match is None:
        return None
    value = _number(match)
    doubt = "" if _scaled(match) or value is None else _small(value)
    return Mention(value, match.group(), 0, len(text), doubt)


def scaled_number(text: str) -> float | None:
    """The number from 0 to 100 that a JSON string holds, perhaps with its scale."""
    match = _ALONE.fullmatch(text.strip()[:200])
    return _number(match) if match else None


def row(line: str) -> tuple[str, float | None] | None:
    """The name and the score of an `unmarked` line that is `NAME: 85/100` or a row of a table; the
    score is None where it may be something else.
    """
    match = _ROW.fullmatch(line)
    if match is None:
        return None
    value = _number(match)
    if value is not None and not _scaled(match) and _small(value):
        value = None
    return match.group("id"), value


def unmarked(text: str) -> str:
    """Without decoration (markdown, boxes, tags), with a heading joined to the number below it."""
    text = text.translate(_FULL_WIDTH)
    text = re.sub(r"\$?\\boxed\{([^{}\n]{1,40})\}\$?", r" \1 ", text)
    text = re.sub(r"<(score|rating|grade)>\s{0,9}([^<>\n]{1,40})</\1>", r"\n\1: \2\n", text)
    # Between two digits a gap remains: `9*9` is no 99.
    text = re.sub(r"(?<=[\d.,])(?:[*`#]|</?\w{1,6}>)+(?=[\d.,])", " ", text)
    text = re.sub(r"</?(?:b|i|u|em|p|strong|br|h[1-6])\s?/?>", "", text)
    text = re.sub(r"(?<=[\d.,])[*`#]+(?=[\d.,])", " ", text)
    text = re.sub(r"[*`#]+|(?<!_)_++(?!\w)|(?<!\w)_++", "", text)
    text = re.sub(r"(?<!\\)\\++(?=[\"'])", "", text)
    return re.sub(
        rf"(?im)^([ \t]*+(?:(?:{_WHOLE.pattern})[ \t]++)?(?:{_LABEL}|{_EAST})[ \t]*+:?)"
        r"[ \t]*+\n\s*+(?=[+-]?\d)",
        r"\1: ",
        text,
    )


def mentions(text: str) -> list[Mention]:
    """All places of an `unmarked` text that may be a verdict on the whole."""
    found: list[Mention] = []
    for label in _LABELS.finditer(text):
        mention = _at(text, label)
        if mention is not None:
            found.append(mention)
            if len(found) > MENTIONS_MAX:
                break
    return found


def totals(text: str) -> Iterator[tuple[Mention, bool]]:
    """`Total: 71` and its kin in an `unmarked` text, and whether each says its scale of 100."""
    for count, label in enumerate(_TOTALS.finditer(text)):
        window = text[label.end() : label.end() + AFTER]
        match = _NEXT.match(window)
        if match is None or (match.group("link") or "-") in "–-" or count > MENTIONS_MAX:
            continue
        if _CLOSED.match(window, match.end()):
            end = label.end() + match.end()
            mention = Mention(_number(match), text[label.start() : end], label.start(), end)
            yield mention, match.group("of") == "100"


def claimed(text: str) -> set[float | None]:
    """Every score that a candidate's own words may seem to give."""
    plain = unmarked(text)
    values = {mention.value for mention, _ in totals(plain)}
    for label in _LABELS.finditer(plain):
        match = _NEXT.match(plain[label.end() : label.end() + AFTER])
        if match:
            values.add(_number(match))
    return values - {None}


def read(text: str) -> Mention | str:
    """The one verdict of an `unmarked` text, or why there is none."""
    if refuses(text):
        return "a refusal"
    only = alone(text)
    if only is not None:
        return only if only.value is not None and not only.doubt else "a number, but of what"
    found = mentions(text)
    weak = list(totals(text))
    if not found:
        found = [mention for mention, scaled in weak if scaled]
    if not found:
        return "no score"
    doubt = next(
        (m.doubt or "a score out of its range" for m in found if m.doubt or m.value is None), ""
    )
    if doubt:
        return doubt
    if len({m.value for m in found} | {m.value for m, _ in weak} | lonely(text)) > 1:
        return "scores that contradict each other"
    if len(found) >= PARTS:
        return "a list of scores"
    if second_thoughts(text[found[0].end :]):
        return "second thoughts"
    return found[0]


def lonely(text: str) -> set[float | None]:
    """The values of lines that are a number and nothing else."""
    lines = (line.strip() for line in text.splitlines())
    found = (alone(line) for line in lines if line[:1].isdigit() and len(line) < 40)
    return {mention.value for mention in found if mention is not None}


# -------------------------------------------------------------------------------------- one mention


def _at(text: str, label: re.Match[str]) -> Mention | None:
    """The mention of this label; None when it names no number, or the score of a part."""
    before = text[max(0, label.start() - BEFORE) : label.start()]
    after = text[label.end() : label.end() + AFTER]
    if before[-1:].isalnum():
        return None  # `subscore`, or a Chinese word that ends so
    match = _NEXT.match(after)
    if match is None:
        return None
    value, start, end = _number(match), label.start(), label.end() + match.end()
    qualifier = _BEFORE.search(before)
    doubt = ""
    if qualifier and _LIMIT.fullmatch(qualifier[1]) and value != 100:
        doubt = "another scale"
    elif qualifier and _REVISED.fullmatch(qualifier[1]):
        doubt = "a score that was revised"
    elif qualifier and not _WHOLE.fullmatch(qualifier[1]):
        return None
    doubt = doubt or _doubt(text, before, after, match, value)
    return Mention(value, text[start:end], start, end, doubt)


def _doubt(text: str, before: str, after: str, match: re.Match[str], value: float | None) -> str:
    """Why the number of this place may be something else than the score of the whole; "" if not."""
    if (match.group("link") or "-") in "–-" or "~" in match.group():
        return "a score or a dash"
    rest = after[match.end() :]
    if _RANGE.match(rest) or _HYPOTHESIS.match(rest):
        return "a range or a condition"
    if not _CLOSED.match(rest):
        return "a number that may be something else"
    line = re.split(r"\n|[.!?;。](?:\s|$)", rest, maxsplit=1)[0]
    if _scaled(match):
        if re.search(r"\d", line) and _LESS.search(line):
            return "a score that is taken apart"
    else:
        told = [match.group("paren") or "", *_SCALE_TOLD.findall(text[:20_000])]
        numbers = [re.findall(r"\d+", words) for words in told]
        if any(found and found[-1] != "100" for found in numbers):
            return "another scale"
        if value is not None and _small(value):
            return _small(value)
        if set(re.findall(r"\d+", line)) - ({"100"} if "|" in line else set()):
            return "several numbers"
    if match.group("paren") and not re.search(r"\d", match.group("paren")):
        return "the score of a part"
    return _quoted(before, text, after[: match.end()])


def _quoted(before: str, text: str, words: str) -> str:
    """Why this may be a part's score, or not the judge's own words; "" if it is neither."""
    line = before.rpartition("\n")[2]
    if re.match(r"\s*>", line):
        return "a quotation"
    if before.rfind("{") > before.rfind("}") or (words[:1] in "\"'" and "{" in text):
        return "a piece of JSON"
    sentence = re.split(r"[.!?;。]\s", line)[-1]
    head = _HEAD.search(sentence)
    if head and not _HEAD_WHOLE.search(sentence):
        return "the score of a part"
    return "a score that is spoken of" if _MAYBE.search(sentence + words) else ""


def _scaled(match: re.Match[str]) -> bool:
    return match.group("of") is not None or match.group("percent") is not None


def _small(value: float) -> str:
    return "perhaps out of ten" if 0 < value <= 10 else ""


def _number(match: re.Match[str]) -> float | None:
    """The value on 0 to 100 of a match of _NUMBER and _UNIT; None when there is none."""
    number = float(match.group("n").replace(",", "."))
    scale = int(match.group("of")[:9]) if match.group("of") else 100
    if scale not in SCALES or not 0 <= number <= scale:
        return None
    return number if scale == 100 else number * 100 / scale
