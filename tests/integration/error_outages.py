"""Rows of the error matrix that are done to a whole endpoint for a while: work waits."""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from rsd.errors import ErrorClass
from tests.integration.error_words import BUSY, DEAD, QUOTA, openai, vllm
from tests.servers import HEAD, Gate, Request, Script, answers, chat, drip, gate_of, raw

E = ErrorClass
LOGIN = b"<!DOCTYPE html><html><title>Sign in</title></html>"


# ------------------------------------------------------------------------------ how servers answer


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def reset_after(data: bytes) -> Script:
    """These bytes, and RST once they must have been read."""

    def script(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(data)
        request.server.over.wait(0.2)  # what is not read yet is thrown away by an RST
        request.rfile.close()
        request.wfile.close()
        reset(request.connection)

    return script


def hang(request: Request) -> None:
    """No answer; the connection stays."""
    request.close_connection = True
    request.server.over.wait(20.0)


def elsewhere(status: int) -> Script:
    """To another host; whoever follows brings the key there."""
    return lambda request: request.answer(
        status, b"", Location=f"{gate_of(request).elsewhere}/chat/completions"
    )


def after_a_date(request: Request) -> None:
    """429 until a second of the calendar, at least one second away."""
    date = formatdate(math.ceil(time.time()) + 1, usegmt=True)
    request.answer(429, openai("Rate limit reached", "rate_limit_exceeded"), Retry_After=date)


# -------------------------------------------------------------------------------------- outages


@dataclass(frozen=True)
class Outage:
    """An endpoint misbehaves for a while, then no more."""

    name: str
    kind: ErrorClass
    strike: Script | None  #: None: what `begin` does is all
    said: str  #: a part of what `status` gives as the reason
    role: str = "generator"
    wait: float = 0.0  #: seconds that the server asks for, each time
    timeout: float = 60.0  #: seconds that a call may take
    begin: Callable[[Gate], None] | None = None  #: done to the connections as well
    late: bool = False  #: `begin` waits until a call is under way
    blind: bool = False  #: a probe, which carries no picture, is answered well in between
    scheme: str = "http"
    ci: bool = False

    @property
    def state(self) -> str:
        """The endpoint's, while it lasts."""
        return {
            E.TRANSIENT: "down",
            E.MISCONFIGURED: "misconfigured",
            E.QUOTA: "quota",
            E.RATE_LIMITED: "up",
        }[self.kind]


def _refuse(gate: Gate) -> None:
    gate.leave()


def _deaf(gate: Gate) -> None:
    """As vLLM after SIGTERM: it listens no more, and what is open is neither answered nor ended."""
    gate.leave(hang_up=False)


def _reset_all(gate: Gate) -> None:
    def greet(sock: socket.socket) -> socket.socket:
        reset(sock)
        raise ConnectionAbortedError

    gate.greet = greet
    gate.hang_up()


def _other_certificate(gate: Gate) -> None:
    gate.present("stranger")
    gate.hang_up()


def _no_tls(gate: Gate) -> None:
    gate.present("")
    gate.hang_up()


OUTAGES = (
    # ------------------------------------------------------------------------- below the HTTP
    Outage(
        "connections refused (the server is gone)",
        E.TRANSIENT,
        None,
        "no connection",
        begin=_refuse,
        ci=True,
    ),
    Outage("connections reset as soon as accepted", E.TRANSIENT, None, "reset", begin=_reset_all),
    Outage("closed without an answer", E.TRANSIENT, raw(b""), "broke"),
    Outage(
        "reset in the middle of a body",
        E.TRANSIENT,
        reset_after(HEAD + b'Content-Length: 9999\r\n\r\n{"id"'),
        "broke",
    ),
    Outage("never answers", E.TRANSIENT, hang, "in time", timeout=2.0),
    Outage(
        "deaf after SIGTERM: stops listening, open calls neither answered nor closed (vLLM)",
        E.TRANSIENT,
        hang,
        "",
        timeout=2.0,
        begin=_deaf,
        late=True,
    ),
    Outage(
        "headers drip byte by byte",
        E.TRANSIENT,
        drip(HEAD + b"X-Padding: ", b"x"),
        "in time",
        timeout=2.0,
    ),
    Outage(
        "body drips byte by byte",
        E.TRANSIENT,
        drip(HEAD + b"Content-Length: 99999\r\n\r\n"),
        "in time",
        role="grader",
        timeout=2.0,
    ),
    Outage(
        "a certificate that nobody vouches for",
        E.MISCONFIGURED,
        None,
        "TLS",
        begin=_other_certificate,
        scheme="https",
    ),
    Outage(
        "plain HTTP on an https URL",
        E.MISCONFIGURED,
        None,
        "TLS",
        begin=_no_tls,
        scheme="https",
    ),
    Outage("another protocol (SSH)", E.MISCONFIGURED, raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "no HTTP"),
    # --------------------------------------------------------------------------- the server fails
    Outage("500, the engine died (vLLM)", E.TRANSIENT, answers(500, DEAD), "EngineCore"),
    Outage(
        "500 while it shuts down (vLLM)",
        E.TRANSIENT,
        chat(
            answers(
                500,
                vllm("cannot schedule new futures after shutdown", 500, "InternalServerError"),
            )
        ),
        "after shutdown",
    ),
    Outage(
        "500 and a body that is cut",
        E.TRANSIENT,
        raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 9999\r\n\r\nhalf"),
        "500",
    ),
    Outage(
        "502, a web page (nginx)",
        E.TRANSIENT,
        answers(502, b"<html><h1>502 Bad Gateway</h1></html>", Content_Type="text/html"),
        "502",
        ci=True,
    ),
    Outage("503 without a word", E.TRANSIENT, answers(503), "503"),
    Outage("504, a web page", E.TRANSIENT, answers(504, b"<html>Gateway Timeout"), "504"),
    Outage("408", E.TRANSIENT, answers(408), "408", role="grader"),
    Outage(
        "200 with an error of code 502 (OpenRouter)",
        E.TRANSIENT,
        chat(answers(200, {"error": {"code": 502, "message": "Provider returned error"}})),
        "Provider returned error",
        role="grader",
    ),
    # -------------------------------------------------------------------------------- too fast
    Outage(
        "429, Retry-After in seconds",
        E.RATE_LIMITED,
        chat(answers(429, openai("Rate limit reached", "rate_limit_exceeded"), Retry_After="1")),
        "Rate limit reached",
        role="grader",
        wait=1.0,
        ci=True,
    ),
    Outage(
        "429, Retry-After as a date",
        E.RATE_LIMITED,
        chat(after_a_date),
        "Rate limit reached",
        role="grader",
        wait=1.0,
    ),
    Outage(
        "429, retry-after-ms",
        E.RATE_LIMITED,
        chat(answers(429, openai("Requests are throttled"), retry_after_ms="1500")),
        "throttled",
        role="grader",
        wait=1.5,
    ),
    Outage(
        "429, x-ratelimit-reset-requests",
        E.RATE_LIMITED,
        chat(
            answers(
                429,
                openai("Rate limit reached for requests"),
                x_ratelimit_limit_requests="500",
                x_ratelimit_remaining_requests="0",
                x_ratelimit_reset_requests="1s500ms",
            )
        ),
        "for requests",
        role="grader",
        wait=1.5,
    ),
    Outage(
        "429, only words (Scaleway)",
        E.RATE_LIMITED,
        chat(answers(429, b"Too many requests, try again later", Content_Type="text/plain")),
        "Too many",
        role="grader",
        wait=1.0,
    ),
    Outage(
        "429, the time in words (OpenAI behind a proxy)",
        E.RATE_LIMITED,
        chat(answers(429, openai("Rate limit reached. Please try again in 1.4s."))),
        "try again in 1.4s",
        role="grader",
        wait=1.4,
    ),
    Outage(
        "429, limits of -1 and 0 (Azure)",
        E.RATE_LIMITED,
        chat(
            answers(
                429,
                openai("Requests have exceeded call rate limit", "429"),
                x_ratelimit_remaining_requests="-1",
                x_ratelimit_limit_requests="-1",
                x_ratelimit_reset_requests="0",
            )
        ),
        "call rate limit",
        role="grader",
        wait=1.0,
    ),
    Outage(
        "429, a quota text with Retry-After",
        E.RATE_LIMITED,
        chat(answers(429, QUOTA, Retry_After="1")),
        "exceeded your current quota",
        role="grader",
        wait=1.0,
    ),
    Outage(
        "503 busy: the queue is full (vLLM)",
        E.RATE_LIMITED,
        chat(answers(503, BUSY)),
        "currently busy",
        wait=1.0,
    ),
    Outage(
        "529 overloaded",
        E.RATE_LIMITED,
        chat(answers(529, openai("Overloaded", kind="overloaded_error"))),
        "Overloaded",
        role="grader",
        wait=1.0,
    ),
    Outage(
        "500 that passes a 429 on (LiteLLM)",
        E.RATE_LIMITED,
        chat(answers(500, openai("litellm.RateLimitError: RateLimitError: limit", "500"))),
        "RateLimitError",
        role="grader",
        wait=1.0,
    ),
    Outage(
        "200 with an error of code 429 (OpenRouter)",
        E.RATE_LIMITED,
        chat(answers(200, {"error": {"code": 429, "message": "Rate limited upstream"}})),
        "upstream",
        role="grader",
        wait=1.0,
    ),
    # -------------------------------------------------------------------------------- no credit
    Outage(
        "429 insufficient_quota without Retry-After",
        E.QUOTA,
        chat(answers(429, QUOTA)),
        "exceeded your current quota",
        role="grader",
        ci=True,
    ),
    Outage(
        "402",
        E.QUOTA,
        chat(answers(402, openai("Payment required"))),
        "Payment required",
        role="grader",
    ),
    Outage(
        "403 insufficient_user_quota (one-api)",
        E.QUOTA,
        chat(answers(403, openai("user quota is not enough", "insufficient_user_quota"))),
        "not enough",
        role="grader",
    ),
    Outage(
        "200 with an error of code 402 (OpenRouter)",
        E.QUOTA,
        chat(answers(200, {"error": {"code": 402, "message": "Insufficient credits"}})),
        "Insufficient credits",
        role="grader",
    ),
    # ------------------------------------------------------------------------- wrong set up
    Outage(
        "401, a string (vLLM)",
        E.MISCONFIGURED,
        answers(401, {"error": "Unauthorized"}),
        "Unauthorized",
        ci=True,
    ),
    Outage(
        "401 that echoes the key (OpenAI)",
        E.MISCONFIGURED,
        lambda r: r.answer(
            401,
            openai(
                f"Incorrect API key provided: {r.headers['Authorization'].split()[1]}.",
                "invalid_api_key",
            ),
        ),
        "Incorrect API key",
        role="grader",
    ),
    Outage(
        "403, the country",
        E.MISCONFIGURED,
        answers(403, openai("Country, region, or territory not supported")),
        "Country",
        role="grader",
    ),
    Outage(
        "404, the model (vLLM)",
        E.MISCONFIGURED,
        chat(
            answers(404, vllm("The model `tiny-vl` does not exist.", 404, "NotFoundError", "model"))
        ),
        "does not exist",
    ),
    Outage(
        "404, the path (FastAPI)",
        E.MISCONFIGURED,
        chat(answers(404, {"detail": "Not Found"})),
        "Not Found",
    ),
    Outage("405", E.MISCONFIGURED, chat(answers(405, {"detail": "Method Not Allowed"})), "405"),
    Outage("407, a proxy wants a password", E.MISCONFIGURED, answers(407), "407", role="grader"),
    Outage(
        "200, a page to sign in",
        E.MISCONFIGURED,
        answers(200, LOGIN, Content_Type="text/html"),
        "web page",
    ),
    Outage("302 to another host", E.MISCONFIGURED, elsewhere(302), "not followed"),
    Outage("307 to another host", E.MISCONFIGURED, elsewhere(307), "not followed", role="grader"),
    Outage(
        "400, a page of an https port",
        E.MISCONFIGURED,
        answers(400, b"<html>The plain HTTP request was sent to HTTPS port</html>"),
        "400",
    ),
    Outage(
        "400, the key is not valid (Gemini)",
        E.MISCONFIGURED,
        chat(answers(400, [openai("API key not valid. Please pass a valid API key.")])),
        "API key not valid",
        role="grader",
    ),
    Outage(
        "400, no multimodal model (vLLM)",
        E.MISCONFIGURED,
        chat(
            lambda r: (
                r.answer(400, vllm("tiny-vl is not a multimodal model", 400))
                if b"image_url" in r.body
                else gate_of(r).healthy(r)
            )
        ),
        "not a multimodal model",
        blind=True,
    ),
    Outage(
        "503, no channel for the model (one-api)",
        E.MISCONFIGURED,
        chat(answers(503, openai("No available channel for model judge under group default"))),
        "No available channel",
        role="grader",
    ),
    Outage("418", E.MISCONFIGURED, answers(418), "418"),
)
