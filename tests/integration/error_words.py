"""The words of the servers in the rows of the error matrix: those that they really use."""

from __future__ import annotations

from typing import Any


def openai(
    message: str, code: str | None = None, param: str | None = None, kind: str = "x"
) -> dict[str, Any]:
    """An error as OpenAI words it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def vllm(
    message: str, code: int, kind: str = "BadRequestError", param: str | None = None
) -> dict[str, Any]:
    """An error as vLLM words it: `code` repeats the status."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


QUOTA = openai(
    "You exceeded your current quota, please check your plan and billing details.",
    "insufficient_quota",
    kind="insufficient_quota",
)
BUSY = vllm(
    "The engine is currently busy and cannot accept new requests. Please try again later.",
    503,
    "Service Unavailable",
)
DEAD = vllm(
    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    500,
    "InternalServerError",
)
