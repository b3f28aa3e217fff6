"""What the simulated servers have in common: error bodies, reading a request, its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import msgspec

#: Characters of English or netlist text that one token stands for.
TOKEN_CHARS: Final = 4
_LONGEST_INTEGER: Final = 2**63


class Refused(Exception):
    """An answer other than 200: status, JSON body, headers."""

    def __init__(
        self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body, self.headers = status, body, headers or {}


def vllm_error(
    status: int, message: str, type_: str = "BadRequestError", param: str | None = None
) -> Refused:
    """In vLLM's form: `code` repeats the status."""
    error = {"message": message, "type": type_, "param": param, "code": status}
    return Refused(status, {"error": error})


def openai_error(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    type_: str = "invalid_request_error",
) -> Refused:
    """In OpenAI's form: `code` is a word or null."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return Refused(status, {"error": error})


@dataclass(frozen=True, slots=True)
class Question:
    """A request's messages: all text in order, and the URL of the (last) picture."""

    text: str
    url: str | None
    images: int
    uuid: str = ""  #: the caller's name of that picture


#: How a request is refused: status, message, type or code, param.
Refuse = Callable[[str, str | None], Refused]


def question_of(body: dict[str, Any], refuse: Refuse) -> Question:
    """Read the messages; `refuse(message, param)` makes the error. Raises Refused."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise refuse("1 validation error: messages: Field required, a valid list", "body.messages")
    if not messages:
        raise refuse("Cannot apply chat template to an empty conversation.", None)
    texts: list[str] = []
    urls: list[tuple[str | None, str]] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            for part in content:
                _read_part(part, texts, urls, refuse)
        else:
            raise refuse("1 validation error: messages: content is missing", "body.messages")
    url, uuid = urls[-1] if urls else (None, "")
    return Question("\n\n".join(texts), url, len(urls), uuid)


def _read_part(
    part: Any, texts: list[str], urls: list[tuple[str | None, str]], refuse: Refuse
) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        texts.append(part["text"])
        return
    picture = part.get("image_url") if kind == "image_url" else None
    uuid = part.get("uuid") if kind == "image_url" else None
    name = uuid if isinstance(uuid, str) else ""
    if picture is None and name:
        urls.append((None, name))
        return
    if not isinstance(picture, dict) or not isinstance(picture.get("url"), str):
        raise refuse(f"1 validation error: messages: unusable part of type {kind!r}", "body")
    urls.append((picture["url"], name))


def number(body: dict[str, Any], name: str, default: float) -> float:
    """A float field, absent and null alike `default`; numeric texts are taken, as pydantic does."""
    value = body.get(name)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _invalid(name, "Input should be a valid number", value) from None


def integer(body: dict[str, Any], name: str) -> int | None:
    """An integer field, None when absent or null. Raises Refused in vLLM's words."""
    value = body.get(name)
    if value is None:
        return None
    try:
        whole = int(value)
        if isinstance(value, float) and value != whole:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise _invalid(name, "Input should be a valid integer", value) from None
    if not -_LONGEST_INTEGER <= whole < _LONGEST_INTEGER:
        raise _invalid(name, "Input should be less than or equal to 9223372036854775807", value)
    return whole


def _invalid(name: str, why: str, value: Any) -> Refused:
    text = f"1 validation error: {{'loc': ('body', '{name}'), 'msg': '{why}', 'input': {value!r}}}"
    return vllm_error(400, text[:500], "Bad Request", f"body.{name}")


def tokens(text: str) -> int:
    """How many tokens a text counts, about four characters each."""
    return -(-len(text) // TOKEN_CHARS)


def digest(*parts: object) -> str:
    """12 hex digits that the parts decide, in their order."""
    joined = msgspec.json.encode([str(part) for part in parts])
    return blake2b(joined, digest_size=6).hexdigest()


def share(*parts: object) -> float:
    """A number from 0 up to 1 that the parts decide."""
    return int(digest(*parts), 16) / 16.0**12


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as both models know it."""

    pixels: str  #: digest of the decoded pixels, 32 hex digits
    sha256: str  #: of the bytes that were sent
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Twist:
    """What a fault changes about an answer that is otherwise made as usual."""

    kind: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A 200 answer: its body, and what it adds to the figures."""

    body: dict[str, Any]
    prompt_tokens: int
    output_tokens: int
    finish_reasons: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)
    final: bool = True  #: False for a grade that was cut off: it is rightly asked for again


@dataclass(frozen=True, slots=True)
class Plan:
    """A valid request, understood: what it costs to serve, what it counts as, how it is answered.

    `identity` names what was asked, whenever and in whatever order it arrived; `parts` the same for
    each answer drawn (a service time each); `calls` the logical calls that an answer pays for.
    """

    identity: str
    text: str
    picture: Picture | None
    parts: tuple[str, ...]
    calls: tuple[str, ...]
    reply: Callable[[Twist], Reply]
    prompt_tokens: int = 0
    image_tokens: int = 0
