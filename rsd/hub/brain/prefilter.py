"""Candidates that no grader need see: empty, refused, merely begun, in a loop. Pure.

A grader can be talked into points by a text that holds nothing, so such a text never meets one. No
netlist grammar is known here: the prompts, and so the form of the answers, are the user's own.
"""

from __future__ import annotations

import re
from typing import Final

from rsd.protocol.tasks import Completion

#: A loop: one piece of at most so many characters, again and again at the end of the text, ...
UNIT_MAX: Final = 200
#: ... so many characters long and at least so many times.
LOOP_MIN: Final = 400
LOOP_TIMES: Final = 8
#: Longest refusal, in characters; a longer text explains something.
REFUSAL_MAX: Final = 1_000

_REFUSAL: Final = re.compile(
    r"\W{0,4}(?:(?:i['’]?m|i am) (?:(?:very |so )?sorry|unable|not able)|sorry\b[,.]|"
    r"i apologi[sz]e\b|unfortunately,? i\b|as an ai\b|"
    r"i (?:can['’]?t|cannot|can not|won['’]?t|must decline)\b|"
    r"es tut mir leid|ich kann (?:dabei|ihnen|dir|das)\b|je suis désolée?|je ne peux pas|lo siento|"
    r"mi dispiace|desculpe|抱歉|很抱歉|非常抱歉|对不起|我无法|我不能|申し訳|죄송|извините|"
    r"к сожалению)",
    re.IGNORECASE,
)
_CONNECTION: Final = re.compile(r"--|->|<-|=>|[←→↔]")
#: Words that open an answer and are none: graders have given them full marks.
_OPENER: Final = re.compile(
    r"[^\n:：]{0,120}[:：]|"
    r"(?:solution|answer|let['’]?s (?:think|solve|work)[^\n]{0,80}|解|解答|答案)\W*",
    re.IGNORECASE,
)


def rejection_of(completion: Completion) -> str:
    """Why an answer is not worth a grader's money; "" if it is."""
    if completion.finish_reason == "length":
        return "truncated"
    text = completion.content.strip()
    if not text:
        return "empty"
    if not any(c.isalnum() for c in text):
        return "no_text"
    if len(text) <= REFUSAL_MAX and _REFUSAL.match(text) and not _CONNECTION.search(text):
        return "refusal"
    if _OPENER.fullmatch(text):
        return "opener"
    return "repetition" if loops(text) else ""


def loops(text: str) -> bool:
    """Whether the text ends in a loop: one piece, again and again."""
    # The end of a loop stands one piece earlier as well: only such lengths are looked at.
    end = text[-1:]
    at = len(text) - 1
    while (at := text.rfind(end, max(0, len(text) - 1 - UNIT_MAX), at)) >= 0:
        unit = len(text) - 1 - at
        needed = max(LOOP_MIN, LOOP_TIMES * unit)
        if len(text) < needed:
            return False
        if text[-needed:-unit] == text[unit - needed :]:
            return True
    return False
