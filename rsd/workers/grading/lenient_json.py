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


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a key is given twice with different values."""
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data and (data[key] != value or type(data[key]) is not type(value)):
            raise ValueError(key)
        data[key] = value
    return data


#: `NaN` and its kin become words: they are no numbers here.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=str, strict=False)
_SPACE: Final = re.compile(r"(?:\s++|//[^\n]*+|#[^\n]*+|/\*(?:[^*]|\*(?!/))*+\*/)*+")
_STRING: Final = re.compile(r"'((?:[^'\\]|\\.)*+)'|\"((?:[^\"\\]|\\.)*+)\"", re.DOTALL)
_NAME: Final = re.compile(r"[^\W\d]\w{0,40}+(?=\s*+:)")
_TOKEN: Final = re.compile(rf"{_STRING.pattern}|(//[^\n]*+|#[^\n]*+|/\*.*?\*/)", re.DOTALL)
_BARE: Final = re.compile(r"[^\s,:{}\[\]\"'#/]++(?:/\d++)?+")


def whole(text: str) -> Any:
    """The whole text as one object or list; None when it is none."""
    read = _document_at(text, 0) if text[:1] in ("{", "[") else None
    return read[0] if read and _SPACE.fullmatch(text, read[1]) else None


@dataclass(frozen=True, slots=True)
class Found:
    """The documents of a text, the prose around them, what follows them, and their comments."""

    objects: list[Any]
    prose: str = ""
    tail: str = ""
    comments: str = ""


def objects(text: str) -> Found:
    """The whole text as one document, or the objects among its prose.

    A brace that opens something with a key, but no complete object, makes it none at all: what is
    inside of a broken object is a part, not an answer. So does a last brace that nothing closes.
    """
    document = whole(text)
    if document is not None:
        return Found([document], comments=_comments(text))
    found: list[Any] = []
    prose: list[str] = []
    comments: list[str] = []
    at = look = failures = 0
    while failures < BRACES_MAX and (start := text.find("{", look)) != -1:
        read = _document_at(text, start)
        if read is None:
            if _opens(text, start):
                return Found([], text, text)
            failures += 1
            look = start + 1
            continue
        prose.append(text[at:start])
        found.append(read[0])
        comments.append(_comments(text[start : read[1]]))
        at = look = read[1]
    prose.append(text[at:])
    if found and prose[-1].rfind("{") > prose[-1].rfind("}"):
        return Found([], text, text)
    return Found(found, "\n".join(prose), prose[-1], "\n".join(comments))


def _opens(text: str, start: int) -> bool:
    """Whether a key follows the brace that stands here."""
    at = _past_space(text, start + 1)
    return text[at : at + 1] in ('"', "'", "“", "‘") or bool(_NAME.match(text, at))


def _comments(document: str) -> str:
    if "#" not in document and "/" not in document:
        return ""
    return "\n".join(match[3] for match in _TOKEN.finditer(document) if match[3])


def _document_at(text: str, start: int) -> tuple[Any, int] | None:
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
    try:
        return _DECODER.decode(bare.group()), bare.end()
    except ValueError:
        return bare.group(), bare.end()


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
    body = double if single is None else single.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{body}"', strict=False))
    except ValueError:
        return body
