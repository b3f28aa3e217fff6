"""The generator's side: what vLLM accepts, how it refuses, what it answers.

Statuses, messages and fields follow vLLM 0.32's OpenAI-compatible server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from rsd.simulator import answers
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
    number,
    question_of,
    tokens,
    vllm_error,
)
from rsd.simulator.scene import Scene
from rsd.simulator.truth import Pictures
from rsd.simulator.world import Made

#: Most answers of one request, as vLLM has it.
N_MAX: Final = 16_384
#: Pixels per side of one image token of Qwen2.5-VL, and most of them per picture.
PATCH: Final = 28
IMAGE_TOKENS_MAX: Final = 16_384
#: Tokens that the chat template adds.
TEMPLATE_TOKENS: Final = 14
#: Most pictures of one request.
IMAGES_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Served:
    """The generator's own settings."""

    model: str
    any_model: bool
    max_model_len: int
    seed: int
    scene: Scene | None = None


def check_model(served: Served, body: dict[str, Any]) -> str:
    """The model that answers. Raises Refused."""
    asked = body.get("model")
    if not asked or served.any_model or asked == served.model:
        return str(asked or served.model)
    text = f"The model `{asked}` does not exist. Valid aliases: {served.model}."
    raise vllm_error(404, text, "NotFoundError", "model")


def sampling_of(body: dict[str, Any]) -> answers.Params:
    """What the request draws with; what it leaves out comes from the model. Raises Refused."""
    own = answers.MODEL_DEFAULTS
    top_k = integer(body, "top_k")
    params = answers.Params(
        temperature=number(body, "temperature", own.temperature),
        top_p=number(body, "top_p", own.top_p),
        top_k=own.top_k if top_k is None else top_k,
        min_p=number(body, "min_p", own.min_p),
        repetition_penalty=number(body, "repetition_penalty", own.repetition_penalty),
    )
    t, p, m, r = params.temperature, params.top_p, params.min_p, params.repetition_penalty
    if t < 0:
        raise _bad(f"temperature must be non-negative, got {t}.", "temperature")
    if not t <= 2:
        raise _bad(f"temperature must be in [0, 2], got {t}.", "temperature")
    if not 0 < p <= 1:
        raise _bad(f"top_p must be in (0, 1], got {p}.", "top_p")
    if params.top_k < -1:
        text = f"top_k must be 0 (disable), or at least 1, got {params.top_k}."
        raise _bad(text, "top_k")
    if not 0 <= m <= 1:
        raise _bad(f"min_p must be in [0, 1], got {m}.", "min_p")
    if not r > 0:
        raise _bad(f"repetition_penalty must be greater than zero, got {r}.", "repetition_penalty")
    return params


def _bad(message: str, param: str | None = None) -> Refused:
    return vllm_error(400, message, param=param)


def _count_of(body: dict[str, Any], params: answers.Params) -> int:
    asked = integer(body, "n")
    n = 1 if asked is None else asked
    if n < 1:
        raise _bad(f"n must be at least 1, got {n}.", "n")
    if n > N_MAX:
        text = (
            f"n must be at most {N_MAX}, got {n}. To increase this limit, set VLLM_MAX_N_SEQUENCES."
        )
        raise _bad(text, "n")
    if n > 1 and params.temperature == 0:
        raise _bad(f"n must be 1 when using greedy sampling, got {n}.", "n")
    return n


def _room(served: Served, body: dict[str, Any], prompt_tokens: int) -> int:
    """Tokens that an answer may have."""
    limit = integer(body, "max_completion_tokens")
    limit = integer(body, "max_tokens") if limit is None else limit
    longest = served.max_model_len
    if limit is not None and limit < 1:
        raise _bad(f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    if limit is not None and limit > longest:
        text = f"max_tokens={limit} cannot be greater than max_model_len={longest}."
        raise _bad(text, "max_tokens")
    if prompt_tokens >= longest:
        text = (
            f"This model's maximum context length is {longest} tokens. However, your prompt "
            f"contains at least {prompt_tokens} input tokens. Please reduce the length of the "
            "input prompt."
        )
        raise _bad(text, "input_tokens")
    left = longest - prompt_tokens
    return left if limit is None else min(limit, left)


def image_tokens(picture: Picture | None) -> int:
    """Tokens of a picture for Qwen2.5-VL: one for each 28 x 28 pixels."""
    if picture is None:
        return 0
    across, down = round(picture.width / PATCH), round(picture.height / PATCH)
    return min(IMAGE_TOKENS_MAX, max(1, across) * max(1, down))


def read(body: dict[str, Any]) -> Question:
    """The messages of a request. Raises Refused."""
    question = question_of(body, _bad)
    if question.images > IMAGES_MAX:
        raise _bad(f"At most {IMAGES_MAX} image(s) may be provided in one prompt.", "image")
    if body.get("stream"):
        raise _bad("Streaming is not part of this simulation; ask without `stream`.", "stream")
    return question


def plan(
    served: Served,
    pictures: Pictures,
    body: dict[str, Any],
    question: Question,
    picture: Picture | None,
) -> Plan:
    """Understand a request. Raises Refused."""
    model = check_model(served, body)
    params = sampling_of(body)
    n = _count_of(body, params)
    seed = integer(body, "seed") or 0
    image = image_tokens(picture)
    prompt_tokens = TEMPLATE_TOKENS + tokens(question.text) + image
    pixels = picture.pixels if picture else ""
    scene = served.scene if served.scene and pixels in served.scene else None
    if scene is not None:
        prompt_tokens = scene.input_tokens()
    room = _room(served, body, prompt_tokens)
    asked = digest(question.text, params)
    parts = tuple(f"{pixels[:12]}:{asked}:{seed + k}" for k in range(n))

    def made(k: int) -> Made:
        if scene is not None:
            return scene.candidate(pixels, question.text, params, seed + k)
        if picture is None:
            text = answers.words(question.text, params, seed + k, served.seed)
        else:
            truth = pictures.graph(pixels)
            about = (truth, pixels, question.text, params, seed + k, served.seed)
            text = answers.candidate_text(*about)
        return Made(text, tokens(text), False)

    def reply(twist: Twist) -> Reply:
        return _reply(model, [made(k) for k in range(n)], room, prompt_tokens, body, twist)

    return Plan(
        identity=f"{parts[0]}:{n}:{room}",
        text=question.text,
        picture=picture,
        parts=parts,
        calls=parts if picture else (),
        reply=reply,
        prompt_tokens=prompt_tokens,
        image_tokens=image,
    )


def _reply(
    model: str,
    answered: list[Made],
    room: int,
    prompt_tokens: int,
    body: dict[str, Any],
    twist: Twist,
) -> Reply:
    choices: list[dict[str, Any]] = []
    written = 0
    for k, made in enumerate(answered):
        text = made.text
        if twist.kind == "truncated":
            room = max(1, made.tokens // 2)
        cut = made.cut or made.tokens > room
        written += min(room, made.tokens)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text[: room * TOKEN_CHARS] if made.tokens > room else text,
            "refusal": None,
            "reasoning": None,
        }
        if twist.kind == "null_content":
            message["content"] = None
        elif twist.kind == "refusal":
            message |= {"content": None, "refusal": "I'm sorry, but I can't help with that."}
        choices.append(
            {
                "index": k,
                "message": message,
                "logprobs": None,
                "finish_reason": "length" if cut else "stop",
                "stop_reason": None,
                "token_ids": None,
            }
        )
    given = body.get("request_id")
    name = str(given) if given else digest(time.time_ns(), answered[0].text)
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + written,
        "completion_tokens": written,
        "prompt_tokens_details": None,
    }
    data = {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [] if twist.kind == "no_choices" else choices,
        "system_fingerprint": "simulated-rsd",
        "usage": usage,
        "metrics": None,
    }
    reasons = tuple(str(c["finish_reason"]) for c in choices)
    return Reply(data, prompt_tokens, written, reasons)
