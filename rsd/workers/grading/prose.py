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
_RUN: Final = re.compile(r"\d[\d.,eE+-]*+")
#: A number whose digits are not all that it says.
_POWER: Final = re.compile(r"[0-9][.,]?[eE]")
_DECIMAL: Final = re.compile(r"\d++(?:[.,]\d++)?+(?:[eE][+-]?\d++)?+")
_STRING: Final = re.compile(rf"{_NUMBER}(?:{_OF_100}|[ \t]?%|[ \t]points?)?", re.IGNORECASE)
#: Words for a score or for its scale, in the languages of graders; not to be read, only to be wary.
_WORD: Final = (
    r"score|rating|grade|marks?\b|points?\b|total|overall|\bfinal|\bsum\b|verdict|result|average|"
    r"maxim|\bmax\b|\bscale\b|punkt|bewertung|gesamt|puntua|calificaci|punteggio|pontua|\bnote\b|"
    r"оценка|балл|分|スコア|点|점수|评|总|合计|最终|最后"
)
_WORDS: Final = re.compile(_WORD, re.IGNORECASE)
#: The same anywhere, also inside of words: candidates are searched often, and this is quick.
_WORDS_ANYWHERE: Final = re.compile(_WORD.replace(r"\b", ""))
#: A number that may be a score: with a scale behind it, or on a line of its own.
_SCALED: Final = (
    r"(?<![\d.,])(?P<b>\d[\d.,]{0,20})[ \t]{0,4}"
    r"(?:(?:/|out of|of|von)[ \t]{0,4}100(?!\d)|%|points?\b|[分点점])"
    r"|^[ \t*_`#|]{0,9}(?P<c>\d[\d.,]{0,20})[ \t*_`|]{0,9}$"
)
_SCALES: Final = re.compile(_SCALED, re.IGNORECASE | re.MULTILINE)
#: Or with such a word and at most two others before it.
_CALLED: Final = re.compile(
    rf"(?:{_WORD})\w{{0,20}}[^\w\n]{{0,12}}(?:[^\W\d]{{1,20}}[^\w\n]{{1,6}}){{0,2}}(?P<a>\d[\d.,]{{0,20}})"
    rf"|{_SCALED}",
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
#: A score in such prose is perhaps somebody else's, an example, or not given but talked about.
_NOT_GIVEN: Final = re.compile(
    r"inject|manipulat|\bignor|\bquot|embedded|\bclaim|self-|for (?:example|instance)|e\.g\.|"
    r"such as|instruct|\bsays\b|contains? (?:the|a)\b|\bwrote\b|\basks?\b|\bdemand|\bpretend|"
    r"attempts? to|attempted to|reply with|\b(?:candidate|answer|text) wants\b|"
    r"\b(?<!\bi )(?:would|could) (?:get|have|deserve|earn|score|receive|be worth)\b|"
    r"\b(?:perfect|ideal) answer|\bprevious|\bdraft\b|\binitial|\btemplate\b|"
    r"^[^\w\n]{0,9}(?:if\b|unless\b|format\b|form\b|out of\W+\d+\W*$)|\bif all\b|"
    r"\b(?:not|format|range[^\n]{0,20}\d)[^\w\n]{0,9}$",
    re.IGNORECASE | re.MULTILINE,
)
_PICTURE: Final = r"(?:image|picture|photo|drawing|diagram)s?\b"
_SEEN: Final = (
    r"(?:see|view|access|have|find|found|receive|got|get|open|load|provided|attached|given|supplied|"
    r"included|visible|available|uploaded|present|accessible|loaded|shown|received|sent|displayed|"
    r"rendered)\b"
)
#: That there is no picture, or that it was not seen.
_NO_PICTURE: Final = re.compile(
    rf"(?:no|not|n['’]t|never|without|unable to)"
    rf"(?: (?:actually|currently|to|be|any|an?|the|your|{_SEEN})){{0,5}}"
    rf"(?: \w{{1,20}})? {_PICTURE}(?!['’])"
)
#: That the picture is not there, where it is not "of the picture" what is not.
_NOT_THERE: Final = re.compile(
    rf"{_PICTURE} (?:(?:is|was|were|did|(?:seem|appear)s to be) )?(?:missing|unavailable|"
    rf"(?:not|(?:is|was)n['’]t)(?: been| actually)*(?: {_SEEN}|[.,;:!]|$)|"
    r"could not|cannot|failed to)"
)
_WITHIN: Final = ("of the ", "of this ", "in the ", "in this ", "on the ", "from the ", "to the ")
_REFUSAL: Final = re.compile(
    r"\W{0,4}(?:(?:i['’ ]{0,2}(?:a?m )?)?(?:sorry\b|unable to\b|not able to\b|(?:cannot|can['’]t|"
    r"can not|could ?n[o'’]t) (?:see|view|access|open|load|assist|help|evaluate|grade|judge|"
    r"determine|comply|provide))|unfortunately,? i\b|as an ai\b|es tut mir leid|je suis désolé|"
    r"lo siento|抱歉|对不起|很抱歉|申し訳|죄송|无法(?:查看|看到|打开))"
)


def refuses(text: str) -> bool:
    """Whether these words are a refusal, or say that there was no picture to look at."""
    text = text[:300].lstrip().casefold()
    if _REFUSAL.match(text) or _NO_PICTURE.search(text):
        return True
    gone = _NOT_THERE.finditer(text)
    return any(not text.endswith(_WITHIN, 0, match.start()) for match in gone)


def doubt(lead: str, tail: str, value: float | None) -> str:
    """Why a score between these words may not be the grader's last one; "" where nothing says so.

    A number after it always may be another one.
    """
    around = f"{lead}\n{tail}"
    if called(around) - {value}:
        return "scores that contradict each other"
    if _NOT_GIVEN.search(around) or refuses(around):
        return "perhaps an example, or the words of somebody else"
    return "second thoughts" if re.search(r"\d", tail) or _REVISION.search(tail) else ""


def called(text: str) -> set[float | None]:
    """Every number that a text may call a score, whatever it means; None for what is no number."""
    return {number(match.group(match.lastgroup or 0)) for match in _CALLED.finditer(text)}


def claims(text: str, value: float) -> bool:
    """Whether a text that speaks of scores at all holds this number: an order like `give this 100`
    is one. The numbers come first, because few candidates hold this one.
    """
    if value >= 1 and str(int(value)) not in text and text.isascii() and not _POWER.search(text):
        return False  # as nearly always
    runs = set(_RUN.findall(text))
    if odd := " ".join(run for run in runs if not run.isdecimal()):
        runs |= {*_DECIMAL.findall(odd), *re.findall(r"\d+", odd)}
    if value not in map(number, runs):
        return False
    return bool(_WORDS_ANYWHERE.search(text.casefold()) or _SCALES.search(text))


def of_string(text: str) -> float | None:
    """The number from 0 to 100 that a JSON string holds, perhaps with its scale."""
    match = _STRING.fullmatch(text.strip()[:200])
    value = number(match.group("n")) if match else None
    return value if value is not None and value <= 100 else None


def read(text: str) -> float | str:
    """The one score from 0 to 100 that a text states, or why there is none."""
    found = [m for m in _STATEMENT.finditer(text) if m.group("label") or m.group("of")]
    if len(found) != 1:
        return "several scores" if found else "no score"
    value = number(found[0].group("n"))
    if value is None or value > 100:
        return "a score out of its range"
    if not found[0].group("of") and 0 < value <= 10:
        return "perhaps out of ten"
    if not found[0].group("label") and _WORDS.search(text):
        return "a number, but of what"
    return doubt(text[: found[0].start()], text[found[0].end() :], value) or value


def number(digits: str) -> float | None:
    try:
        return float(digits.rstrip(".,").replace(",", "."))
    except ValueError:
        return None
