"""How one (endpoint, model) wants to be asked, and what a 400 that names a parameter teaches. Pure.

Rules of reasoning models over chat completions: `max_completion_tokens` instead of `max_tokens`,
and no temperature, top_p, penalties, logprobs or stop (OpenAI's reasoning guide; promptfoo issue
3738).
"""

from __future__ import annotations

import re
from typing import Final

from msgspec.structs import replace

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError, RequestDialect

_REASONING: Final = re.compile(r"(^|/)(o[1-9]\d?|gpt-[5-9])([-.:_]|$)", re.IGNORECASE)
#: The ladder of structured output, best first.
FORMATS: Final = ("json_schema", "json_object", "none")
#: Parameters that rsd can live without; anything else that is refused is the item's end.
DROPPABLE: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "seed",
        "reasoning_effort",
        "detail",
    }
)


def is_reasoning(model: str) -> bool:
    """Whether a model of this name reasons before it answers (o1, o3, o4, gpt-5 and kin)."""
    return _REASONING.search(model) is not None


def initial_dialect(model: str, role: str) -> RequestDialect:
    """What to try first. `role` is `generate` or `grade`; today both begin alike."""
    if is_reasoning(model):
        return RequestDialect(
            drop=("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
            token_parameter="max_completion_tokens",
        )
    return RequestDialect()


def adapt(dialect: RequestDialect, error: CallError) -> RequestDialect | None:
    """The dialect after a refusal that names a parameter; None when nothing is left to adapt.

    Every step goes one way, so that a server that refuses everything is asked a bounded number of
    times: the name of the token cap that was refused is remembered in `drop`.
    """
    if error.error is not ErrorClass.UNSUPPORTED:
        return None
    param = (error.param or "").removeprefix("body.")
    if param in ("max_tokens", "max_completion_tokens"):
        other = "max_completion_tokens" if param == "max_tokens" else "max_tokens"
        if dialect.token_parameter == other or other in dialect.drop:
            return None
        return replace(dialect, token_parameter=other, drop=(*dialect.drop, param))
    if param.startswith("response_format"):
        step = FORMATS.index(dialect.response_format) + 1
        return replace(dialect, response_format=FORMATS[step]) if step < len(FORMATS) else None
    if param == "n":
        return replace(dialect, multiple=False) if dialect.multiple else None
    if param in DROPPABLE and param not in dialect.drop:
        return replace(dialect, drop=(*dialect.drop, param))
    return None


def token_cap(tokens: int, dialect: RequestDialect) -> int:
    """The cap to send, in tokens: what is wanted, times what this model was found to need."""
    return max(1, int(tokens * dialect.max_tokens_factor))
