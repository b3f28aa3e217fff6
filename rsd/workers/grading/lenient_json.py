"""JSON as models write it: whole, in a fence or among prose; strict, or nearly so.

What is not strict is rewritten token by token, and read once more. A text that is no JSON then is
unreadable as a whole, because what is inside of a broken object is a part, not an answer. Pure, and
linear in the length of the text.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Found:
    """The objects of a text, what stands before the last one, and what follows it."""

    objects: list[dict[str, Any]]
    lead: str
    tail: str

    @property
    def alone(self) -> bool:
        """Whether nothing but a fence is around the objects."""
        return not (_WORDS.search(self.lead) or _WORDS.search(self.tail))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, its keys in one spelling. Raises ValueError for two values of a key."""
    data: dict[str, Any] = {}
    for key, value in pairs:
        key = key.strip().casefold().replace(" ", "_")
        if data.setdefault(key, value) is not value and repr(data[key]) != repr(value):
            raise ValueError(key)
    return data


#: `NaN` and its kin become words: they are no numbers here.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=str, strict=False)
#: A string, which stays; one in other quotes; a comment; a comma before a closing bracket; a key or
#: a number that wants quotes.
_TOKEN: Final = re.compile(
    r'(?P<strict>"(?:[^"\\]|\\.)*+(?:"|\\?\Z))'
    r"|'(?P<single>(?:[^'\\]|\\.)*+)(?:'|\\?\Z)|“(?P<curly>[^”]*+)(?:”|\Z)"
    r"|(?P<comment>//[^\n]*+|\#[^\n]*+|/\*.*?(?:\*/|\Z))|(?P<comma>,)(?=\s*+[}\]])"
    r"|(?P<key>[^\W\d]\w{0,40}+)(?=\s*+:)"
    r"|(?<![\w.,-])(?P<number>0\d{1,2}|\d{1,3}(?:/100|%))(?=\s*+[,}])",
    re.DOTALL,
)
#: A set of names in prose, like `{A, B}`, or the first of two braces: no JSON, and no part of any.
_SET: Final = re.compile(r"\{(?=\{)|\{[^\W\d]\w*+(?:, ?[^\W\d]\w*+)*+\}")
_WORDS: Final = re.compile(r"(?!json\b)\b\w", re.IGNORECASE)


def read(text: str) -> Found | None:
    """The objects of a text, none where it has no braces; None when its JSON is broken."""
    found = _strict(text)
    if found is None:
        lead, _, rest = text.partition("{")
        comments: list[str] = []
        found = _strict(lead + _TOKEN.sub(functools.partial(_rewritten, comments), "{" + rest))
        if found and comments:
            return Found(found.objects, found.lead, "\n".join([found.tail, *comments]))
    return found


def _rewritten(comments: list[str], match: re.Match[str]) -> str:
    token, kind = match[match.lastgroup or 0], match.lastgroup
    if kind == "comment":
        comments.append(token)
    if kind in ("comment", "comma"):
        return " "
    return token if kind == "strict" else json.dumps(token.replace("\\'", "'"), ensure_ascii=False)


def _strict(text: str) -> Found | None:
    objects: list[dict[str, Any]] = []
    lead = at = 0
    prose: list[str] = []
    while (start := text.find("{", at)) != -1:
        if among := _SET.match(text, start):
            at = among.end()
            continue
        try:
            found, at = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return None
        objects.append(found)
        prose.append(text[lead:start])
        if prose[-1].rstrip().endswith(('":', "':")):
            return None
        lead = at
    return Found(objects, "\n".join(prose), text[lead:])
