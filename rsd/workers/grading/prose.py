"""Scores in prose. Pure.

One form is read: a line of its own that is `Score: N`, `Score: N/100`, or `N/100` in a text that
has no other word for a score. Every number that may be another score makes the answer unreadable.
All patterns look at windows of bounded length: the work is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = r"(?P<n>[0-9]{1,3}(?:\.[0-9]{1,20}|,[0-9]{1,2})?)"
_OF_100: Final = r"[ \t]{0,4}(?:/|out of)[ \t]{0,4}100"
_MARKUP: Final = r"[ \t*_`]{0,9}"
_LABEL: Final = r"(?:(?:my|the)[ \t]+)?(?:(?:final|overall|total)[ \t_]+)?score"
_STATEMENT: Final = re.compile(
    rf"^[ \t*_`#]{{0,9}}(?P<label>{_LABEL}{_MARKUP}[:=：])?{_MARKUP}{_NUMBER}{_MARKUP}"
    rf"(?P<of>{_OF_100}{_MARKUP})?[.!]?{_MARKUP}$",
    re.IGNORECASE | re.MULTILINE,
)
_DECIMAL: Final = re.compile(r"\d{1,20}(?:[.,]\d{1,20})?(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_STRING: Final = re.compile(rf"{_NUMBER}(?:{_OF_100}|[ \t]?%|[ \t]points?)?", re.IGNORECASE)
#: Words for a score or for its scale, in the languages of graders; not to be read, only to be wary.
_WORD: Final = (
    r"score|rating|grade|marks?\b|points?\b|total|overall|\bfinal|\bsum\b|verdict|result|average|"
    r"maxim|\bmax\b|\bscale\b|punkt|bewertung|gesamt|puntua|calificaci|punteggio|pontua|\bnote\b|"
    r"оценка|балл|分|スコア|点|점수|评|总|合计|最终|最后"
)
_WORDS: Final = re.compile(_WORD, re.IGNORECASE)
#: A number that may be a score: such a word with at most two others before it, a scale behind it,
#: or a line of its own.
_CALLED: Final = re.compile(
    rf"(?:{_WORD})\w{{0,20}}[^\w\n]{{0,12}}(?:[^\W\d]{{1,20}}[^\w\n]{{1,6}}){{0,2}}(?P<a>\d[\d.,]{{0,20}})"
    r"|(?<![\d.,])(?P<b>\d[\d.,]{0,20})[ \t]{0,4}"
    r"(?:(?:/|out of|of|von)[ \t]{0,4}100(?!\d)|%|points?\b|[分点점])"
    r"|^[ \t*_`#|]{0,9}(?P<c>\d[\d.,]{0,20})[ \t*_`|]{0,9}$",
    re.IGNORECASE | re.MULTILINE,
)
#: Numbers in words; small ones count arrows.
_NUMERAL: Final = (
    r"zero|ten|eleven|twelve|\w{3,5}teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\w{3,5})?|"
    r"hundred"
)
#: What takes a score back.
_REVISION: Final = re.compile(
    r"\b(?:wait|actually|correct(?:ion|ing)|reflection|hmm+|oops|recount|reconsider|revis|rethink|"
    r"let me (?:re|make|check|count|correct)|make (?:that|it)|scratch|second (?:thought|look)|"
    r"on closer|adjust|instead|rather|fairer|should (?:be|have been)|mistake|updat|lower|raise|"
    r"at (?:most|least)|subtract|deduct|minus\b|reduc|penal|hal(?:f|ve)\b|take (?:that|it) back|"
    r"too (?:high|low|generous|harsh|lenient|kind|strict)|mixed up|swap)|"
    rf"\b(?:{_NUMERAL})\b|等等|更正|修正|应该是|重新|扣",
    re.IGNORECASE,
)
#: Whose words it may be, or what for: a score beside these is perhaps not the grader's verdict.
_QUOTED: Final = re.compile(
    r"inject|manipulat|\bignor|\bquot|embedded|\bclaim|self-|for (?:example|instance)|e\.g\.|"
    r"such as|instruct|\bsays\b|contains? (?:the|a)\b|\bwrote\b|\basks?\b|\bdemand|\bpretend|"
    r"attempts? to|attempted to|reply with|\b(?:candidate|answer|text) wants\b",
    re.IGNORECASE,
)
#: How a line begins to speak of a score that the grader does not give.
_SUPPOSED: Final = re.compile(
    r"^\W*(?:if|unless|out of|format|form)\b|\b(?:not|format|range.{0,20}\d)\W*$|"
    r"\b(?<!\bi )(?:would|could) (?:get|have|deserve|earn|score|receive|be worth)\b|"
    r"\b(?:perfect|ideal) answer|\bprevious|\bdraft\b|\binitial|\btemplate\b|\bif all\b",
    re.IGNORECASE,
)
_NO_WORDS: Final = re.compile(r"^[\W_]*(?:json[\W_]*)?$", re.IGNORECASE)
_PICTURE: Final = r"(?:image|picture|photo|drawing|diagram)s?"
_GIVEN: Final = (
    r"(?:provided|attached|given|supplied|included|visible|available|uploaded|found|present|"
    r"accessible|loaded|shown|received|sent|displayed|rendered)\b"
)
_NO_PICTURE: Final = re.compile(
    r"\A\W{0,4}(?:(?:i['’ ]{0,2}(?:a?m )?)?(?:sorry\b|unable to\b|not able to\b|(?:cannot|can['’]t|"
    r"can not|could ?n[o'’]t) (?:see|view|access|open|load|assist|help|evaluate|grade|judge|"
    r"determine|comply|provide))|unfortunately,? i\b|as an ai\b|es tut mir leid|je suis désolé|"
    r"lo siento|抱歉|对不起|很抱歉|申し訳|죄송)|无法(?:查看|看到|打开)|"
    rf"\bno {_PICTURE} (?:was|is|has been|were|to )\b|\bno {_PICTURE} {_GIVEN}|"
    rf"\bthere (?:is|was) no (?:\w{{1,20}} )?{_PICTURE}\b|"
    rf"\bthere (?:isn|wasn)['’]t an?y? (?:\w{{1,20}} )?{_PICTURE}\b|"
    rf"\bi (?:see|have|find|found|received|got) no (?:\w{{1,20}} )?{_PICTURE}\b|"
    r"(?:\b(?:do|did|can|could)(?: not|n['’]t|not)|\bunable to|\bnever) (?:actually |currently )?"
    r"(?:see|view|access|have|find|receive|get|open|load)(?: access to)? (?:any|an?|the|your) "
    rf"(?:\w{{1,20}} )?{_PICTURE}\b|"
    r"(?:\A|[.!?:,;(\n]\s?|\b(?:since|because|as|but|that|and) )(?:(?:the|this|your|an?) )?"
    rf"(?:\w{{1,20}} )?{_PICTURE} (?:(?:(?:is|was) )?(?:not|missing)|(?:is|was)n['’]t)\b"
    rf"(?: (?:been )?(?:actually )?{_GIVEN}|[.,;:!]|\Z)|"
    rf"\b{_PICTURE} (?:could not|cannot|was not|failed to)\b",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether these words are a refusal, or say that there was no picture to look at."""
    return bool(_NO_PICTURE.search(text[:300].lstrip()))


def quotes(text: str) -> bool:
    """Whether this prose speaks of somebody else's words, or of an example."""
    return bool(_QUOTED.search(text))


def supposed(lead: str) -> bool:
    """Whether the last words before a score make it one that is not given, but talked about."""
    lines = lead[-1000:].splitlines()
    last = next((line for line in reversed(lines) if not _NO_WORDS.match(line)), "")
    return bool(_SUPPOSED.search(last[-200:]))


def taken_back(tail: str) -> bool:
    """Whether these words after a score may change it; a number among them always may."""
    return bool(re.search(r"\d", tail) or _REVISION.search(tail))


def called(text: str) -> set[float | None]:
    """Every number that a text may call a score, whatever it means; None for what is no number."""
    return {_number(match.group(match.lastgroup or 0)) for match in _CALLED.finditer(text)}


def claims(text: str, value: float) -> bool:
    """Whether a text that speaks of scores at all holds this number: an order like `give this 100`
    is one. The numbers come first, because few candidates hold this one.
    """
    digits = {*re.findall(r"\d{1,20}", text), *_DECIMAL.findall(text)}
    held = value in map(_number, digits)
    return held and bool(_WORDS.search(text) or _CALLED.search(text))


def of_string(text: str) -> float | None:
    """The number from 0 to 100 that a JSON string holds, perhaps with its scale."""
    match = _STRING.fullmatch(text.strip()[:200])
    value = _number(match.group("n")) if match else None
    return value if value is not None and value <= 100 else None


def read(text: str) -> float | str:
    """The one score from 0 to 100 that a text states, or why there is none."""
    if refuses(text):
        return "a refusal"
    found = [m for m in _STATEMENT.finditer(text) if m.group("label") or m.group("of")]
    if len(found) != 1:
        return "several scores" if found else "no score"
    value = _number(found[0].group("n"))
    if value is None or value > 100:
        return "a score out of its range"
    if not found[0].group("of") and 0 < value <= 10:
        return "perhaps out of ten"
    if called(text) - {value}:
        return "scores that contradict each other"
    if not found[0].group("label") and _WORDS.search(text):
        return "a number, but of what"
    lead = text[: found[0].start()]
    if supposed(lead) or quotes(lead):
        return "perhaps an example, or the words of somebody else"
    if taken_back(text[found[0].end() :]):
        return "second thoughts"
    return value


def _number(digits: str) -> float | None:
    try:
        return float(digits.rstrip(".,").replace(",", "."))
    except ValueError:
        return None
