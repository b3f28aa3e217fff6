"""Faults on demand: what a test may make the simulated servers do."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

from rsd.simulator.rules import Refused, openai_error, vllm_error

#: Faults that a status and a body can express.
KINDS: Final = (
    "rate_limit",
    "busy",
    "error",
    "bad_gateway",
    "quota",
    "unauthorized",
    "not_found_model",
    "too_big",
    "content_filter",
    "redirect",
    "html",
    "empty",
    "bad_json",
    "no_choices",
    "null_content",
    "error_in_200",
    "refusal",
    "truncated",
    "no_score",
    "wrong_score",
    "hang",
    "slow_drip",
    "cut",
    "down",
)


@dataclass(slots=True)
class Fault:
    """One rule: which requests it meets, how often, and what happens to them."""

    role: str
    kind: str
    count: int | None = None  #: requests that it still meets; None = until cleared
    rate: float = 1.0  #: share of the requests, drawn by their content and try
    match: str = ""  #: a part of the request's text
    retry_after: float | None = None
    seconds: float = 30.0

    @classmethod
    def of(cls, data: dict[str, Any]) -> Fault:
        """From JSON. Raises ValueError for an unknown kind."""
        if data.get("kind") not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        names = ("role", "kind", "count", "rate", "match", "retry_after", "seconds")
        return cls(**{name: data[name] for name in names if name in data})

    def meets(self, role: str, text: str, content: str, attempt: int) -> bool:
        """Whether it strikes this request; counts down when it does."""
        if self.role != role or self.count == 0 or self.match not in text:
            return False
        if self.rate < 1 and random.Random(f"{content}:{attempt}").random() >= self.rate:
            return False
        if self.count is not None:
            self.count -= 1
        return True

    def refusal(self) -> Refused | None:
        """The error answer of this fault; None when it is no mere error answer."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = f"{self.retry_after:g}"
        match self.kind:
            case "rate_limit":
                made = openai_error(
                    429, "Rate limit reached", "rate_limit_error", "rate_limit_exceeded"
                )
            case "quota":
                made = openai_error(
                    429,
                    "You exceeded your current quota, please check your plan and billing details.",
                    "insufficient_quota",
                    "insufficient_quota",
                )
            case "busy":
                made = vllm_error(
                    503,
                    "The engine is currently busy and cannot accept new requests. Please try "
                    "again later.",
                    "Service Unavailable",
                )
            case "error":
                made = vllm_error(500, "EngineCore encountered an issue.", "InternalServerError")
            case "bad_gateway":
                made = vllm_error(502, "Bad Gateway", "BadGateway")
            case "unauthorized":
                made = Refused(401, {"error": "Unauthorized"})
            case "not_found_model":
                made = vllm_error(404, "The model `x` does not exist.", "NotFoundError", "model")
            case "too_big":
                made = vllm_error(
                    400,
                    "This model's maximum context length is 2048 tokens. However, your prompt "
                    "contains at least 2049 input tokens.",
                    param="input_tokens",
                )
            case "content_filter":
                made = openai_error(
                    400, "The response was filtered", "invalid_request_error", "content_filter"
                )
            case _:
                return None
        made.headers |= headers
        return made
