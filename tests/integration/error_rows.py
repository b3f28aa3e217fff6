"""The rows of the error matrix: what a server does, and what must come of it.

`OUTAGES` are done to a whole endpoint for a while: work waits. `DIALECTS` are lasting peculiarities
that one 400 tells of: the endpoint is asked in another way. `ODDITIES` follow one picture: that
picture ends, or not, and the others go on. The words of the servers are those that they really use.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from PIL import Image

from rsd.errors import ErrorClass
from rsd.workers.endpoint import MAX_BODY_BYTES
from tests.servers import Gate, Request, Script, completion

E = ErrorClass
#: Tries that count per item, as the daemon of these tests is told.
ATTEMPTS = 3


# ------------------------------------------------------------------------------ how servers answer


def answers(status: int, body: Any = b"", **headers: str) -> Script:
    """One answer for every request."""
    return lambda request: request.answer(status, body, **headers)


def chat(script: Script) -> Script:
    """Only completions go wrong; the list of models does not."""

    def either(request: Request) -> None:
        if request.command == "GET":
            gate_of(request).healthy(request)
        else:
            script(request)

    return either


def gate_of(request: Request) -> Gate:
    """The server that is asked."""
    assert isinstance(request.server, Gate)
    return request.server


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


def raw(data: bytes) -> Script:
    """These bytes, then the end of the connection."""

    def script(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(data)

    return script


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


def drip(head: bytes, drop: bytes = b" ") -> Script:
    """A byte every 50 ms, for ever."""

    def script(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(head)
        while not request.server.over.wait(0.05):
            request.wfile.write(drop)

    return script


def endless(request: Request) -> None:
    """A body without end."""
    request.close_connection = True
    request.wfile.write(HEAD + b"\r\n")
    while not request.server.over.is_set():
        request.wfile.write(b" " * 1_000_000)


def chunks_cut(request: Request) -> None:
    """Half of an answer in chunks."""
    request.close_connection = True
    half = completion_of(request)[:60]
    request.wfile.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    request.wfile.write(b"%x\r\n%s\r\n50\r\n{" % (len(half), half))


def body_cut(request: Request) -> None:
    """Half of an answer whose length was announced."""
    request.close_connection = True
    whole = completion_of(request)
    request.wfile.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(whole) + whole[:60])


def elsewhere(status: int) -> Script:
    """To another host; whoever follows brings the key there."""
    return lambda request: request.answer(
        status, b"", Location=f"{gate_of(request).elsewhere}/chat/completions"
    )


def after_a_date(request: Request) -> None:
    """429 until a second of the calendar, at least one second away."""
    date = formatdate(math.ceil(time.time()) + 1, usegmt=True)
    request.answer(429, openai("Rate limit reached", "rate_limit_exceeded"), Retry_After=date)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LOGIN = b"<!DOCTYPE html><html><title>Sign in</title></html>"
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


# ------------------------------------------------------------------------------------- dialects


@dataclass(frozen=True)
class Dialect:
    """An endpoint that never takes a parameter, and says so once."""

    name: str
    refuses: Callable[[dict[str, Any]], tuple[int, Any] | None]
    gone: tuple[str, ...]  #: what no request holds any more once it is known
    role: str = "grader"
    model: str = ""  #: the grader's; by default one that does not reason
    settings: dict[str, str] = field(default_factory=dict)  #: more of rsd.toml
    ci: bool = False


def _lacks(*names: str, answer: Callable[[str], tuple[int, Any]]) -> Any:
    def refuses(body: dict[str, Any]) -> tuple[int, Any] | None:
        return next((answer(name) for name in names if name in body), None)

    return refuses


def _unsupported(name: str) -> tuple[int, Any]:
    text = f"Unsupported parameter: '{name}' is not supported with this model."
    return 400, openai(text, "unsupported_parameter", name)


def _unrecognized(name: str) -> tuple[int, Any]:
    return 400, openai(f"Unrecognized request argument supplied: {name}")


def _forbidden(name: str) -> tuple[int, Any]:
    row = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not allowed"}
    return 422, {"detail": [row]}


def _no_schema(text: str) -> Any:
    def refuses(body: dict[str, Any]) -> tuple[int, Any] | None:
        if (body.get("response_format") or {}).get("type") == "json_schema":
            return 400, openai(text)
        return None

    return refuses


def _only_default(body: dict[str, Any]) -> tuple[int, Any] | None:
    if body.get("temperature", 1) == 1:
        return None
    text = "Unsupported value: 'temperature' does not support 0 with this model. Only the default"
    return 400, openai(f"{text} (1) value is supported.", "unsupported_value", "temperature")


def _one_at_a_time(body: dict[str, Any]) -> tuple[int, Any] | None:
    return (400, openai("Only n = 1 is supported.", param="n")) if body.get("n", 1) > 1 else None


def _small_queue(body: dict[str, Any]) -> tuple[int, Any] | None:
    return (503, BUSY) if body.get("n", 1) > 3 else None


def _greedy(body: dict[str, Any]) -> tuple[int, Any] | None:
    if body.get("n", 1) > 1 and body.get("temperature") == 0:
        return 400, vllm(f"n must be 1 when using greedy sampling, got {body['n']}.", 400)
    return None


#: Eight draws of one arm: they share a request.
SHARED = {
    "prompt_keys": '["prompt1"]',
    "sampling.candidates": "8",
    "sampling.top_p_range": "[0.9]",
    "sampling.top_k_range": "[40]",
}
WARM, COLD = ({**SHARED, "sampling.temperature_range": f"[{t}]"} for t in (0.8, 0.0))

DIALECTS = (
    Dialect(
        "400, max_tokens (OpenAI, reasoning)",
        _lacks("max_tokens", answer=_unsupported),
        ("max_tokens",),
        ci=True,
    ),
    Dialect(
        "400, max_completion_tokens (an older proxy of a reasoning model)",
        _lacks("max_completion_tokens", answer=_unrecognized),
        ("max_completion_tokens",),
        model="o4-mini",
    ),
    Dialect(
        "400, max_tokens of the generator",
        _lacks("max_tokens", answer=_unsupported),
        ("max_tokens",),
        role="generator",
    ),
    Dialect("400, temperature: only the default (OpenAI)", _only_default, ("temperature",)),
    Dialect(
        "400, response_format json_schema (OpenAI)",
        _no_schema(
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with "
            "this model."
        ),
        (),
    ),
    Dialect(
        "400, response_format json_schema (Azure, an old version)",
        _no_schema(
            "response_format value as json_schema is enabled only for api versions "
            "2024-08-01-preview and later"
        ),
        (),
    ),
    Dialect(
        "400, response_format json_schema (DeepSeek)",
        _no_schema("This response_format type is unavailable now"),
        (),
    ),
    Dialect(
        "400, any response_format",
        _lacks("response_format", answer=_unsupported),
        ("response_format",),
    ),
    Dialect("400, seed (a small host)", _lacks("seed", answer=_unrecognized), ("seed",)),
    Dialect(
        "400, reasoning_effort",
        _lacks("reasoning_effort", answer=_unsupported),
        ("reasoning_effort",),
        settings={"grading.reasoning_effort": '"low"'},
    ),
    Dialect(
        "422, three parameters one by one (FastAPI)",
        _lacks("top_k", "min_p", "repetition_penalty", answer=_forbidden),
        ("top_k", "min_p", "repetition_penalty"),
        role="generator",
    ),
    Dialect(
        "400, n (a small host)",
        _one_at_a_time,
        ("n",),
        role="generator",
        settings=WARM,
    ),
    Dialect(
        "400 for n at temperature 0 (vLLM): never asked",
        _greedy,
        ("n",),
        role="generator",
        settings=COLD,
    ),
    Dialect(
        "503 busy for n=8 under a cap of 3, for ever (vLLM)",
        _small_queue,
        (),
        role="generator",
        settings=WARM,
    ),
)


# ------------------------------------------------------------------------------------ oddities


@dataclass(frozen=True)
class Oddity:
    """What a server answers about one picture."""

    name: str
    strike: Script
    kind: ErrorClass | None = None  #: None: it is understood
    reason: str = ""
    requests: int = 1  #: for each draw, or for each grade
    role: str = "generator"
    ends: str = ""  #: the reason in failed/; empty: a result

    @property
    def kept(self) -> bool:
        """Whether it is no error at all: the answer is there, but not worth a grade."""
        return self.kind is E.TRUNCATED and self.role == "generator"


def gets(*contents: Any, finish: str = "stop", refusal: str | None = None, **fields: Any) -> Script:
    """A completion with one choice of this content."""

    def script(request: Request) -> None:
        content = contents[0] if contents else good(request)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": refusal},
            "finish_reason": finish,
        }
        request.answer(200, completion(choices=[choice], **fields))

    return script


def good(request: Request) -> str:
    """Content that both roles take: connections for the one, a score for the other."""
    if "/grader" in request.path:
        return '{"explanation": "as drawn", "score": 85}'
    return f"ADC --> B{request.json.get('seed')}"


def completion_of(request: Request) -> bytes:
    """A good answer to this request."""
    return json.dumps(completion(good(request))).encode()


def sends(change: Callable[[bytes], bytes], **headers: str) -> Script:
    """A good answer, changed."""
    return lambda request: request.answer(200, change(completion_of(request)), **headers)


def halved(request: Request) -> bool:
    """Whether the picture came at half its size."""
    url = request.json["messages"][0]["content"][0]["image_url"]["url"]
    data = base64.b64decode(url.partition(",")[2])
    return Image.open(io.BytesIO(data)).width < 96


def unless(condition: Callable[[Request], bool], script: Script) -> Script:
    """This, or a good answer."""

    def either(request: Request) -> None:
        if condition(request):
            request.answer(200, completion_of(request))
        else:
            script(request)

    return either


def _cap(request: Request) -> int:
    body = request.json
    return int(body.get("max_tokens") or body.get("max_completion_tokens"))


TOO_LONG = vllm(
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least "
    "2049 input tokens. Please reduce the length of the input prompt.",
    400,
    param="input_tokens",
)
TOO_MANY = vllm(
    "max_tokens=2048 cannot be greater than max_model_len=1024.", 400, param="max_tokens"
)
AZURE_FILTER = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure's policy.",
        "code": "content_filter",
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}
BOMB = gzip.compress(b" " * (2 * MAX_BODY_BYTES))


def _bad(
    name: str, strike: Script, kind: ErrorClass, reason: str, role: str = "generator"
) -> Oddity:
    """Ends its picture: bounded for BAD_REPLY, at once for the others."""
    requests = {E.BAD_REPLY: ATTEMPTS, E.REFUSED: 1, E.TOO_BIG: 2, E.TRUNCATED: 2}[kind]
    ends = "no_candidate" if role == "generator" else "ungraded"
    return Oddity(name, strike, kind, reason, requests, role, ends)


def both(name: str, strike: Script, kind: ErrorClass, reason: str) -> tuple[Oddity, Oddity]:
    """The same from either server."""
    return (
        _bad(name, strike, kind, reason),
        _bad(name, strike, kind, reason, "grader"),
    )


ODDITIES = (
    # ------------------------------------------------------------------- odd, but understood
    Oddity("gzip that nobody asked for", sends(gzip.compress, Content_Encoding="gzip")),
    Oddity("content type text/html on JSON", sends(lambda b: b, Content_Type="text/html")),
    Oddity(
        "comment lines and white space first (OpenRouter)",
        sends(lambda b: b": OPENROUTER PROCESSING\n\n \n: {x}\n\n  " + b),
    ),
    Oddity("a byte order mark", sends(lambda b: b"\xef\xbb\xbf" + b)),
    Oddity("content as a list of parts", lambda r: gets([{"type": "text", "text": good(r)}])(r)),
    Oddity("the same key twice", sends(lambda b: b.replace(b'{"id"', b'{"id": 1, "id"', 1))),
    Oddity("no usage", gets(usage=None)),
    Oddity("counts as strings", gets(usage={"prompt_tokens": "66", "completion_tokens": "many"})),
    Oddity("201", lambda r: r.answer(201, completion_of(r))),
    Oddity("content type text/html on JSON", gets(), role="grader"),
    Oddity("a score as a string", gets('{"explanation": "x", "score": "85"}'), role="grader"),
    Oddity(
        "413 until the picture is half as large",
        unless(halved, answers(413, b"<html>Request Entity Too Large")),
        requests=2,
    ),
    Oddity(
        "400 until max_tokens is half as large",
        unless(lambda r: _cap(r) <= 1024, answers(400, TOO_MANY)),
        requests=2,
    ),
    Oddity(
        "finish_reason length until the cap is twice as large",
        unless(lambda r: _cap(r) > 8192, gets("", finish="length")),
        requests=2,
        role="grader",
    ),
    # --------------------------------------------------------------------------- no answer in it
    *both("an empty body", answers(200), E.BAD_REPLY, "empty"),
    _bad("white space", answers(200, b" \n\n "), E.BAD_REPLY, "empty"),
    _bad("words instead of JSON", answers(200, b"upstream hiccup"), E.BAD_REPLY, "bad_json"),
    _bad("null", answers(200, b"null"), E.BAD_REPLY, "bad_json"),
    _bad("events instead of JSON", answers(200, b"data: {}\n\n"), E.BAD_REPLY, "bad_json"),
    *both("half of the JSON", sends(lambda b: b[:60]), E.BAD_REPLY, "bad_json"),
    *both("a body shorter than announced", body_cut, E.BAD_REPLY, "cut"),
    _bad("a chunk that is cut", chunks_cut, E.BAD_REPLY, "cut"),
    _bad(
        "labelled gzip, but not",
        sends(lambda b: b, Content_Encoding="gzip"),
        E.BAD_REPLY,
        "bad_encoding",
    ),
    _bad(
        "gzip that is cut",
        sends(lambda b: gzip.compress(b)[:150], Content_Encoding="gzip"),
        E.BAD_REPLY,
        "bad_encoding",
    ),
    _bad("a body without end", endless, E.BAD_REPLY, "body_too_big"),
    _bad("a gzip bomb", answers(200, BOMB, Content_Encoding="gzip"), E.BAD_REPLY, "body_too_big"),
    *both("no choices", answers(200, completion()), E.BAD_REPLY, "no_choices"),
    _bad("choices null", answers(200, completion(choices=None)), E.BAD_REPLY, "no_choices"),
    *both("content null", gets(None), E.BAD_REPLY, "null_content"),
    *both(
        "200 with an error without a code",
        answers(200, {"error": {"message": "the provider had a problem"}}),
        E.BAD_REPLY,
        "error_in_200",
    ),
    # -------------------------------------------------------------------------- no score in it
    *(
        _bad(name, gets(content), E.BAD_REPLY, "unparsable", "grader")
        for name, content in (
            ("no score at all", "The netlist looks fine to me."),
            ("a score of 150", '{"explanation": "x", "score": 150}'),
            ("a score of -5", '{"explanation": "x", "score": -5}'),
            ("a score of NaN", '{"explanation": "x", "score": NaN}'),
            ("two different scores", '{"explanation": "x", "score": 15, "score": 95}'),
            ("an empty grade", ""),
        )
    ),
    # ---------------------------------------------------------------------------------- refused
    *both("400", answers(400, openai("The request is odd.")), E.REFUSED, "bad_request"),
    _bad("422", answers(422, {"detail": "Unprocessable"}), E.REFUSED, "bad_request"),
    _bad(
        "501 (vLLM)",
        answers(
            501, vllm("Only base64 data URLs are supported for now.", 501, "NotImplementedError")
        ),
        E.REFUSED,
        "bad_request",
    ),
    _bad(
        "500 of the request's own fault: file URL (vLLM)",
        answers(
            500,
            vllm(
                "Cannot load local files without `--allowed-local-media-path`.",
                500,
                "InternalServerError",
            ),
        ),
        E.REFUSED,
        "server_refused",
    ),
    _bad(
        "500 of the request's own fault: pixels (vLLM)",
        answers(
            500,
            vllm(
                "Image size (300000000 pixels) exceeds limit of 178956970 pixels, could be "
                "decompression bomb DOS attack.",
                500,
                "InternalServerError",
            ),
        ),
        E.REFUSED,
        "server_refused",
    ),
    _bad(
        "400, the picture cannot be loaded (vLLM)",
        answers(400, vllm("Failed to load image: cannot identify image file", 400)),
        E.REFUSED,
        "bad_image",
    ),
    *both("400 content filter (Azure)", answers(400, AZURE_FILTER), E.REFUSED, "content_filter"),
    _bad(
        "403 moderation (OpenRouter)",
        answers(403, openai("Your input was flagged by moderation")),
        E.REFUSED,
        "content_filter",
    ),
    _bad("finish_reason content_filter", gets("", finish="content_filter"), E.REFUSED, "refusal"),
    _bad(
        "finish_reason content_filter",
        gets("", finish="content_filter"),
        E.REFUSED,
        "content_filter",
        "grader",
    ),
    *both("message.refusal", gets(None, refusal="I cannot help with that."), E.REFUSED, "refusal"),
    # ---------------------------------------------------------------------- too big, too long
    *both("400 context length (vLLM)", answers(400, TOO_LONG), E.TOO_BIG, "context_length"),
    *both("413", answers(413, b"<html>Request Entity Too Large"), E.TOO_BIG, "too_large"),
    _bad(
        "400, the image is too large",
        answers(400, openai("Image is too large")),
        E.TOO_BIG,
        "context_length",
    ),
    Oddity(
        "400, max_tokens over the model's length (vLLM)",
        answers(400, TOO_MANY),
        E.TOO_BIG,
        "context_length",
        requests=3,
        ends="no_candidate",
    ),
    Oddity(
        "finish_reason length: kept, never graded",
        gets("ADC -->", finish="length"),
        E.TRUNCATED,
        ends="no_candidate",
    ),
    _bad("finish_reason length", gets("", finish="length"), E.TRUNCATED, "truncated", "grader"),
)

POISON = Oddity("500, always", answers(500, DEAD), E.TRANSIENT, "server_error")
