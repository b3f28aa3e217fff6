"""JSON as models write it: in fences, among prose, with comments, odd quotes, a comma too many.

Strict JSON first; what is not strict is read by its own small grammar, not by guesses: a text that
the grammar does not allow is no JSON. Pure, and linear in the length of the text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

#: Most braces among prose that are tried and open nothing.
BRACES_MAX: Final = 100
#: Deepest nesting that is read; answers have two or three levels.
DEPTH_MAX: Final = 32


class _Twice(ValueError):
    """A key that is given twice with different values."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data and (data[key] != value or type(data[key]) is not type(value)):
            raise _Twice(key)
        data[key] = value
    return data


def _no_number(name: str) -> Any:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_no_number, strict=False
)
_SPACE: Final = re.compile(r"(?:\s++|//[^\n]*+|#[^\n]*+|/\*(?:[^*]|\*(?!/))*+\*/)*+")
_STRING: Final = re.compile(r"'((?:[^'\\]|\\.)*+)'|\"((?:[^\"\\]|\\.)*+)\"", re.DOTALL)
_NAME: Final = re.compile(r"[^\W\d]\w{0,40}+(?=\s*+:)")
_BARE: Final = re.compile(r"[^\s,:{}\[\]\"'#/]++(?:/\d++)?+")
_WORDS: Final = {"true": True, "false": False, "null": None}


def whole(text: str) -> Any:
    """The whole text as one object or list; None when it is none."""
    if text[:1] not in ("{", "["):
        return None
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        pass
    try:
        value, end = _value(text, 0, 0)
    except ValueError:
        return None
    return value if _SPACE.fullmatch(text, end) else None


@dataclass(frozen=True, slots=True)
class Found:
    """The objects among prose with their source, the prose around them, and what follows them."""

    objects: list[tuple[Any, str]]
    prose: str
    tail: str


def among_prose(text: str, *, parts: bool = False) -> Found:
    """The objects in a text.

    A brace that opens something with a quoted key, but no complete object, ends the search unless
    `parts`: what is inside of a broken object is a part, not an answer.
    """
    found: list[tuple[Any, str]] = []
    prose: list[str] = []
    at = look = failures = 0
    while failures < BRACES_MAX and (start := text.find("{", look)) != -1:
        read = _object_at(text, start)
        if read is None:
            if not parts and re.match(r"\{\s*[\"']", text[start : start + 200]):
                break
            failures += 1
            look = start + 1
            continue
        prose.append(text[at:start])
        found.append((read[0], text[start : read[1]]))
        at = look = read[1]
    prose.append(text[at:])
    return Found(found, "\n".join(prose), prose[-1])


def _object_at(text: str, start: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        pass
    try:
        return _value(text, start, 0)
    except ValueError:
        return None


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """The value that starts here, and where it ends. Raises ValueError."""
    if depth > DEPTH_MAX:
        raise ValueError("nested too deeply")
    opening = text[at : at + 1]
    if opening in ("{", "["):
        return _container(text, at + 1, depth + 1, "}" if opening == "{" else "]")
    string = _STRING.match(text, at)
    if string:
        return _unescaped(string), string.end()
    bare = _BARE.match(text, at)
    if bare is None:
        raise ValueError("no value")
    return _scalar(bare.group()), bare.end()


def _container(text: str, at: int, depth: int, closing: str) -> tuple[Any, int]:
    pairs: list[tuple[str, Any]] = []
    items: list[Any] = []
    while True:
        at = _past_space(text, at)
        if text[at : at + 1] == closing:
            return (_pairs(pairs) if closing == "}" else items), at + 1
        if pairs or items:
            if text[at : at + 1] != ",":
                raise ValueError("no comma")
            at = _past_space(text, at + 1)
            if text[at : at + 1] == closing:
                continue
        if closing == "}":
            key, at = _key(text, at)
            value, at = _value(text, at, depth)
            pairs.append((key, value))
        else:
            value, at = _value(text, at, depth)
            items.append(value)


def _key(text: str, at: int) -> tuple[str, int]:
    """A key, quoted or a plain name, and where its value starts. Raises ValueError."""
    match = _STRING.match(text, at) or _NAME.match(text, at)
    if match is None:
        raise ValueError("no key")
    key = _unescaped(match) if match.re is _STRING else match.group()
    at = _past_space(text, match.end())
    if text[at : at + 1] != ":":
        raise ValueError("no colon")
    return key, _past_space(text, at + 1)


def _past_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _unescaped(match: re.Match[str]) -> str:
    single, double = match.groups()
    body = (
        double
        if single is None
        else re.sub(r"\\'|\"", lambda m: '\\"' if m[0] == '"' else "'", single)
    )
    try:
        return str(json.loads(f'"{body}"', strict=False))
    except ValueError:
        return body


def _scalar(word: str) -> Any:
    """A word without quotes: strict where it is a number, else the word itself."""
    folded = word.casefold()
    if folded in _WORDS or folded == "none":
        return _WORDS.get(folded)
    try:
        return _DECODER.decode(word)
    except ValueError:
        return word
