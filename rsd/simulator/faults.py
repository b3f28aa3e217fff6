"""Faults on demand: what a test makes the simulated servers do."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from rsd.simulator.rules import Refused, openai_error, vllm_error

#: Faults in force at once; a test needs a few.
FAULTS_MAX: Final = 1_000
#: Distinct requests per fault whose tries are counted, for `rate`.
TRIES_MAX: Final = 100_000

#: An error status instead of an answer.
StatusKind = Literal[
    "rate_limit",
    "busy",
    "error",
    "bad_gateway",
    "quota",
    "unauthorized",
    "not_found_model",
    "too_big",
    "content_filter",
]
#: Something else than a chat completion, or nothing at all.
WireKind = Literal[
    "down", "hang", "redirect", "html", "empty", "bad_json", "error_in_200", "cut", "slow_drip"
]
#: A completion that says something else than it should.
TwistKind = Literal[
    "no_choices",
    "null_content",
    "refusal",
    "truncated",
    "no_score",
    "wrong_score",
    "gullible",
]
#: Faults of the whole server: `GET /v1/models` has them, too, while they last.
WHOLE_SERVER: Final = frozenset(
    {"down", "hang", "redirect", "html", "bad_gateway", "unauthorized", "error"}
)
GRADER_ONLY: Final = frozenset({"no_score", "wrong_score", "gullible"})
TWISTS: Final = frozenset(TwistKind.__args__)  # type: ignore[attr-defined]


class Fault(Struct, kw_only=True, forbid_unknown_fields=True):
    """One rule: which requests it meets, how often, and what happens to them."""

    role: Literal["generator", "grader"]
    kind: StatusKind | WireKind | TwistKind
    count: Annotated[int, Meta(ge=0)] | None = None  #: requests it still meets; None: no end
    rate: Annotated[float, Meta(ge=0, le=1)] = 1.0  #: share of the tries that it meets
    match: str = ""  #: only requests with this in their text
    retry_after: float | None = None  #: seconds, sent as Retry-After
    reset: float | None = None  #: seconds, sent as x-ratelimit-reset-requests, 0 remaining
    seconds: float | None = None  #: slow_drip: the body's; hang: until cut off; else: before it

    @property
    def whole_server(self) -> bool:
        """Whether it also meets requests that are no completions."""
        return (
            self.kind in WHOLE_SERVER and self.count is None and not self.match and self.rate == 1
        )


class Faults:
    """The faults in force; the first that meets a request strikes."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._rules: list[tuple[Fault, Counter[str]]] = []
        self._cleared: asyncio.Event | None = None
        self.struck: Counter[str] = Counter()  #: per `role:kind`

    def add(self, data: bytes) -> Fault:
        """From JSON. Raises msgspec.DecodeError, or ValueError when there are too many."""
        if len(self._rules) >= FAULTS_MAX:
            raise ValueError(f"more than {FAULTS_MAX} faults")
        fault = msgspec.json.decode(data, type=Fault)
        if fault.kind in GRADER_ONLY and fault.role != "grader":
            raise ValueError(f"{fault.kind} is a fault of the grader")
        self._rules.append((fault, Counter()))
        return fault

    def clear(self) -> None:
        """End all faults; hanging requests lose their connection."""
        self._rules.clear()
        if self._cleared is not None:
            self._cleared.set()
            self._cleared = None

    def rules(self) -> list[Fault]:
        """Those in force."""
        return [fault for fault, _ in self._rules if fault.count != 0]

    def strike(self, role: str, identity: str, text: str) -> Fault | None:
        """The fault that meets this request, if any; counts it."""
        for fault, tries in self._rules:
            if fault.role != role or fault.count == 0 or fault.match not in text:
                continue
            if fault.rate < 1:
                if len(tries) >= TRIES_MAX:
                    tries.clear()
                tries[identity] += 1
                drawn = random.Random(f"{self._seed}|{fault.kind}|{identity}|{tries[identity]}")
                if drawn.random() >= fault.rate:
                    continue
            if fault.count is not None:
                fault.count -= 1
            self.struck[f"{role}:{fault.kind}"] += 1
            return fault
        return None

    def whole_server(self, role: str) -> Fault | None:
        """The fault that every request to this server meets, if there is one."""
        return next((f for f, _ in self._rules if f.role == role and f.whole_server), None)

    async def until_cleared(self, seconds: float | None) -> None:
        """Return when the faults are cleared, at the latest after `seconds`."""
        if self._cleared is None:
            self._cleared = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._cleared.wait()
        except TimeoutError:
            return


def refusal(fault: Fault) -> Refused | None:
    """The error answer of a fault that is nothing but one."""
    made = _refusal(fault)
    if made is not None and fault.retry_after is not None:
        made.headers["Retry-After"] = f"{fault.retry_after:g}"
    if made is not None and fault.reset is not None:
        made.headers["x-ratelimit-limit-requests"] = "10000"
        made.headers["x-ratelimit-remaining-requests"] = "0"
        made.headers["x-ratelimit-reset-requests"] = f"{fault.reset:g}s"
    return made


def busy(status: int = 503, retry_after: float | None = None) -> Refused:
    """Too many requests at once: vLLM's 503, or a 429."""
    if status == 503:
        text = (
            "The engine is currently busy and cannot accept new requests. Please try again later."
        )
        made = vllm_error(503, text, "Service Unavailable")
    else:
        text = "Rate limit reached for requests. Please try again later."
        made = openai_error(429, text, "rate_limit_exceeded", type_="requests")
    if retry_after is not None:
        made.headers["Retry-After"] = f"{retry_after:g}"
    return made


def _refusal(fault: Fault) -> Refused | None:
    grader = fault.role == "grader"
    match fault.kind:
        case "rate_limit":
            return busy(429)
        case "busy":
            return busy(503)
        case "quota":
            text = "You exceeded your current quota, please check your plan and billing details."
            return openai_error(429, text, "insufficient_quota", type_="insufficient_quota")
        case "error" if grader:
            text = "The server had an error while processing your request."
            return openai_error(500, text, type_="server_error")
        case "error":
            text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            return vllm_error(500, text, "InternalServerError")
        case "bad_gateway":
            return vllm_error(502, "Bad Gateway", "BadGateway")
        case "unauthorized" if grader:
            return openai_error(401, "Incorrect API key provided.", "invalid_api_key")
        case "unauthorized":
            return Refused(401, {"error": "Unauthorized"})
        case "not_found_model" if grader:
            text = "The model does not exist or you do not have access to it."
            return openai_error(404, text, "model_not_found")
        case "not_found_model":
            return vllm_error(404, "The model does not exist.", "NotFoundError", "model")
        case "too_big" if grader:
            text = "Your input exceeds the maximum context length of this model."
            return openai_error(400, text, "context_length_exceeded", "messages")
        case "too_big":
            text = (
                "This model's maximum context length is 2048 tokens. However, your prompt contains "
                "at least 2049 input tokens. Please reduce the length of the input prompt."
            )
            return vllm_error(400, text, param="input_tokens")
        case "content_filter":
            text = "The response was filtered: the prompt triggered the content policy."
            return openai_error(400, text, "content_filter")
    return None
