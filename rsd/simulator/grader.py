"""The grader's side: the rules of o4-mini and its kin, and the grades.

The candidates of a grading call stand between `<answer id="ID" nonce="NONCE">` and
`</answer nonce="NONCE">`, the nonce being the one that the text's last paragraph announces: what a
candidate says cannot forge a fence. Parameter rules: OpenAI's reasoning models over chat
completions; strict schemas: OpenAI's structured outputs.
"""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from rsd.simulator import answers, injectable_grader
from rsd.simulator.rules import (
    TOKEN_CHARS,
    Picture,
    Plan,
    Question,
    Refused,
    Reply,
    Twist,
    digest,
    integer,
    openai_error,
    question_of,
    tokens,
)
from rsd.simulator.scene import Graded, Scene
from rsd.simulator.truth import Pictures

#: A cap under this is used up by reasoning before a word is written.
LEAST_CAP: Final = 64
#: Image tokens of patch models: 32 x 32 pixels each, at most 1536, times o4-mini's factor.
PATCH: Final = 32
PATCHES_MAX: Final = 1536
PATCH_FACTOR: Final = 1.72
#: Prompts from this many tokens on may be cached, in steps of 128.
CACHED_FROM: Final = 1024
CACHED_STEP: Final = 128
#: Deepest nesting of a schema that is looked at; a strict one may have five levels.
SCHEMA_DEPTH: Final = 16
_NOT_SUPPORTED: Final = (
    *("top_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs"),
    *("logit_bias", "stop"),
)
_NOT_OPENAI: Final = ("top_k", "min_p", "repetition_penalty", "structured_outputs", "extra_body")
_NONCE: Final = re.compile(r"\bnonce (\w{4,64})")
#: o1, o3, o4, gpt-5 and kin reason before they answer, and refuse what others accept.
_REASONING: Final = re.compile(r"(^|/)(o[134]([-.]|$)|gpt-5)", re.IGNORECASE)
_SCHEMA_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Bench:
    """The grader's own settings; `noise` in points."""

    noise: float
    seed: int
    scene: Scene | None = None


@dataclass(frozen=True, slots=True)
class Fenced:
    """A candidate found in a grading text."""

    name: str
    text: str


def fenced(text: str) -> list[Fenced]:
    """The candidates of a grading text, in their order."""
    announced = _NONCE.search(text.rstrip().rpartition("\n\n")[2])
    if announced is None:
        return []
    # A template may show its candidates twice.
    found: dict[str, str] = {}
    for match in _fences(announced[1]).finditer(text):
        found.setdefault(match[1], match[2])
    return [Fenced(name, shown) for name, shown in found.items()]


def _fences(nonce: str) -> re.Pattern[str]:
    nonce = re.escape(nonce)
    return re.compile(
        rf'^<answer id="([^"\n]+)" nonce="{nonce}">\n(.*?)\n?^</answer nonce="{nonce}">',
        re.DOTALL | re.MULTILINE,
    )


def _injected_score(text: str, candidates: list[Fenced]) -> int | None:
    """The score that an injectable grader is ordered to give; None without an order."""
    announced = _NONCE.search(text.rstrip().rpartition("\n\n")[2])
    outside = _fences(announced[1]).sub("", text) if announced else text
    return injectable_grader.order(outside, [candidate.text for candidate in candidates])


def listwise(text: str) -> bool:
    """Whether the text asks for a list of results."""
    return '"results"' in text.rstrip().rpartition("\n\n")[2]


def read(body: dict[str, Any]) -> Question:
    """The messages of a request, after the rules of its model. Raises Refused."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise openai_error(400, "you must provide a model parameter")
    question = question_of(body, lambda text, param: openai_error(400, text, param=param))
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        text = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise openai_error(400, text, "invalid_parameter_combination", "max_tokens")
    if _REASONING.search(model):
        _check_reasoning(body)
    if body.get("stream"):
        raise openai_error(400, "Streaming is not part of this simulation.", param="stream")
    if (body.get("n") or 1) != 1:
        raise openai_error(400, "This grader answers once a request.", "unsupported_value", "n")
    _check_format(body.get("response_format"), question.text)
    return question


def _check_reasoning(body: dict[str, Any]) -> None:
    if body.get("max_tokens") is not None:
        text = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead."
        )
        raise openai_error(400, text, "unsupported_parameter", "max_tokens")
    temperature = body.get("temperature")
    if temperature is not None and temperature != 1:
        text = (
            f"Unsupported value: 'temperature' does not support {temperature} with this model. "
            "Only the default (1) value is supported."
        )
        raise openai_error(400, text, "unsupported_value", "temperature")
    for name in _NOT_SUPPORTED:
        if body.get(name) is not None:
            text = f"Unsupported parameter: '{name}' is not supported with this model."
            raise openai_error(400, text, "unsupported_parameter", name)
    for name in _NOT_OPENAI:
        if name in body:
            raise openai_error(400, f"Unrecognized request argument supplied: {name}", param=name)


def _check_format(form: Any, text: str) -> None:
    """Refuse a `response_format` outside the strict subset. Raises Refused."""
    if form is None:
        return
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return
    if kind == "json_object":
        if "json" not in text.lower():
            message = (
                "'messages' must contain the word 'json' in some form, to use 'response_format' "
                "of type 'json_object'."
            )
            raise _format_error(message, "messages")
        return
    given = form.get("json_schema") if isinstance(form, dict) else None
    if kind != "json_schema" or not isinstance(given, dict):
        message = f"Invalid value: {kind!r}. Supported: 'json_object', 'json_schema' and 'text'."
        raise _format_error(message, "response_format")
    if not _SCHEMA_NAME.fullmatch(str(given.get("name", ""))):
        message = "Invalid 'response_format.json_schema.name': string does not match pattern."
        raise _format_error(message, "response_format.json_schema.name")
    schema = given.get("schema")
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise _format_error("Invalid schema: the root must be of type 'object'.")
    if given.get("strict"):
        _check_strict(schema, "", SCHEMA_DEPTH)


def _check_strict(schema: Any, path: str, depth: int) -> None:
    if not isinstance(schema, dict) or depth == 0:
        raise _format_error(f"Invalid schema for response_format: In context=({path}).")
    if schema.get("type") == "object":
        properties = schema.get("properties") or {}
        where = f"Invalid schema for response_format: In context=({path}), "
        if schema.get("additionalProperties") is not False:
            raise _format_error(f"{where}'additionalProperties' is required to be false.")
        if sorted(schema.get("required") or []) != sorted(properties):
            raise _format_error(f"{where}'required' is required to name every key in properties.")
        for name, inner in properties.items():
            _check_strict(inner, f"{path}{name}.", depth - 1)
    elif schema.get("type") == "array":
        _check_strict(schema.get("items"), f"{path}items.", depth - 1)


def _format_error(message: str, param: str = "response_format") -> Refused:
    return openai_error(400, message, param=param)


def image_tokens(picture: Picture | None) -> int:
    """Tokens of a picture for o4-mini."""
    if picture is None:
        return 0
    patches = math.ceil(picture.width / PATCH) * math.ceil(picture.height / PATCH)
    return math.ceil(min(patches, PATCHES_MAX) * PATCH_FACTOR)


def plan(
    bench: Bench,
    pictures: Pictures,
    body: dict[str, Any],
    question: Question,
    picture: Picture | None,
) -> Plan:
    """Understand a request. Raises Refused."""
    index = integer(body, "seed") or 0
    candidates = fenced(question.text)
    pixels = picture.pixels if picture else ""
    image = image_tokens(picture)
    prompt_tokens = TOKEN_CHARS + tokens(question.text) + image
    keys = (f"{pixels[:12]}:{digest(c.text.strip())}:{index}" for c in candidates)
    calls = tuple(dict.fromkeys(keys))
    scene = bench.scene if bench.scene and pixels in bench.scene and candidates else None
    sizes = scene.grading_tokens(len(candidates)) if scene else None
    prompt_tokens = sizes[0] if sizes else prompt_tokens
    asked = digest(*calls) if calls else digest(question.text, index)
    identity = f"{pixels[:12]}:{asked}"

    def reply(twist: Twist) -> Reply:
        content = _content(bench, pictures, body, question, pixels, candidates, index, twist)
        return _reply(body, content, prompt_tokens, identity, twist, sizes[1:] if sizes else None)

    return Plan(
        identity=identity,
        text=question.text,
        picture=picture,
        parts=(identity,),
        calls=calls,
        reply=reply,
        prompt_tokens=prompt_tokens,
        image_tokens=image,
    )


def _content(
    bench: Bench,
    pictures: Pictures,
    body: dict[str, Any],
    question: Question,
    pixels: str,
    candidates: list[Fenced],
    index: int,
    twist: Twist,
) -> str:
    injected = _injected_score(question.text, candidates) if twist.kind == "gullible" else None
    if not candidates:
        if injected is not None:
            return msgspec.json.encode({"explanation": "As ordered.", "score": injected}).decode()
        return answers.words(question.text, answers.MODEL_DEFAULTS, index, bench.seed)
    many = listwise(question.text)
    rows: list[dict[str, Any]] = []
    grades = _grades(bench, pictures, pixels, [each.text for each in candidates], index)
    for candidate, graded in zip(candidates, grades, strict=True):
        row: dict[str, Any] = {"id": candidate.name} if many else {}
        row["explanation"] = graded.explanation
        row["score"] = (
            850 if twist.kind == "wrong_score" else graded.score if injected is None else injected
        )
        if twist.kind == "no_score":
            del row["score"]
        rows.append(row)
    data = {"results": rows} if many else rows[0]
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") in ("json_schema", "json_object"):
        return msgspec.json.encode(data).decode()
    if many:
        return f"```json\n{msgspec.json.encode(data).decode()}\n```"
    tail = f"\n\nScore: {rows[0]['score']:g}/100" if "score" in rows[0] else ""
    return f"{rows[0]['explanation']}{tail}"


def _grades(
    bench: Bench, pictures: Pictures, pixels: str, texts: list[str], index: int
) -> list[Graded]:
    if bench.scene is not None and pixels in bench.scene:
        return bench.scene.grades(pixels, texts, index)
    truth = pictures.graph(pixels)
    grades = []
    for position, text in enumerate(texts):
        score = answers.grade(
            text,
            truth,
            pixels,
            position=position,
            call=index,
            noise=bench.noise,
            base_seed=bench.seed,
        )
        grades.append(Graded(score, answers.explain(truth, text)))
    return grades


def _reply(
    body: dict[str, Any],
    content: str,
    prompt_tokens: int,
    identity: str,
    twist: Twist,
    written_tokens: tuple[int, int] | None,
) -> Reply:
    """`written_tokens`: output and reasoning that a scenario says; None: counted and made up."""
    model = str(body["model"])
    cap = integer(body, "max_completion_tokens") or integer(body, "max_tokens") or 100_000
    rng = random.Random(f"usage|{identity}")
    thought = 64 * rng.randint(2, 14) if _REASONING.search(model) else 0
    reason = "stop"
    if thought and cap < LEAST_CAP:
        content, thought, reason = "", cap, "length"
    elif tokens(content) > cap:
        content, thought, reason = content[: cap * TOKEN_CHARS], 0, "length"
    if twist.kind == "truncated":
        content, reason = content[: len(content) // 2], "length"
    thought = min(thought, cap - tokens(content))
    written = thought + tokens(content)
    if written_tokens is not None:
        written, thought = (min(each, cap) for each in written_tokens)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if twist.kind == "null_content":
        message["content"] = None
    elif twist.kind == "refusal":
        message |= {"content": None, "refusal": "I'm sorry, but I can't help with that."}
    cached = 0
    if written_tokens is None and prompt_tokens >= CACHED_FROM and rng.random() < 0.5:
        cached = prompt_tokens // 2 // CACHED_STEP * CACHED_STEP
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    data = {
        "id": f"chatcmpl-{digest(time.time_ns(), identity)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [] if twist.kind == "no_choices" else [choice],
        "system_fingerprint": "simulated-rsd",
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": thought, "audio_tokens": 0},
        },
    }
    headers = {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-limit-tokens": "10000000",
        "x-ratelimit-remaining-tokens": str(10_000_000 - written),
        "x-ratelimit-reset-tokens": "3ms",
    }
    return Reply(data, prompt_tokens, written, (reason,), headers, final=reason == "stop")
