"""Rows of the error matrix that follow one picture: it ends, or not, and the others go on."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from rsd.errors import ErrorClass
from rsd.workers.api.transport import MAX_BODY_BYTES
from tests.integration.error_words import DEAD, openai, vllm
from tests.servers import HEAD, Request, Script, answers, completion

E = ErrorClass
#: Tries that count per item, as the daemon of these tests is told.
ATTEMPTS = 3


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
