"""One table of errors: what servers really say, and the class that it gets."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.errors import ErrorClass
from rsd.protocol.dialects import DROPPABLE, adapt, initial_dialect, is_reasoning
from rsd.protocol.vocabulary import CallError, RequestDialect
from rsd.workers.api.rate_headers import duration, rate_windows, retry_after
from rsd.workers.api.refusals import classify_body, classify_status, excerpt

E = ErrorClass
NOW = 1_800_000_000.0


def openai(message: str, code: str = "", param: str | None = None, kind: str = "x") -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code or None}}


def vllm(message: str, code: int, kind: str = "BadRequestError", param: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


TABLE: list[tuple[int, Any, dict[str, str], ErrorClass, str]] = [
    (429, openai("Rate limit reached", "rate_limit_exceeded"), {}, E.RATE_LIMITED, "rate_limit"),
    (429, openai("slow down", "slow_down"), {"retry-after": "2"}, E.RATE_LIMITED, "rate_limit"),
    (429, openai("You exceeded your current quota", "insufficient_quota"), {}, E.QUOTA, "quota"),
    (
        429,
        openai("You exceeded your current quota", "insufficient_quota"),
        {"Retry-After": "20"},
        E.RATE_LIMITED,
        "rate_limit",
    ),
    (
        429,
        openai("INSUFFICIENT QUOTA"),
        {"x-ratelimit-limit-requests": "300"},
        E.RATE_LIMITED,
        "rate_limit",
    ),
    (
        429,
        openai("insufficient_quota"),
        {"x-ratelimit-limit-requests": "-1", "x-ratelimit-reset-requests": "0"},
        E.QUOTA,
        "quota",
    ),
    (429, "the load balancer is full", {}, E.RATE_LIMITED, "rate_limit"),
    (429, openai("Request too large for m on tokens per min"), {}, E.TOO_BIG, "too_large"),
    (402, openai("Payment required"), {}, E.QUOTA, "quota"),
    (403, openai("not enough", "insufficient_user_quota"), {}, E.QUOTA, "quota"),
    (403, openai("Your input was flagged by moderation"), {}, E.REFUSED, "content_filter"),
    (403, openai("Key limit exceeded (total limit)"), {}, E.QUOTA, "quota"),
    (403, openai("Country not supported"), {}, E.MISCONFIGURED, "forbidden"),
    (401, {"error": "Unauthorized"}, {}, E.MISCONFIGURED, "unauthorized"),
    (404, vllm("The model `x` does not exist.", 404), {}, E.MISCONFIGURED, "no_model"),
    (404, {"detail": "Not Found"}, {}, E.MISCONFIGURED, "not_found"),
    (405, {"detail": "Method Not Allowed"}, {}, E.MISCONFIGURED, "not_found"),
    (408, None, {}, E.TRANSIENT, "timeout"),
    (413, None, {}, E.TOO_BIG, "too_large"),
    (500, openai("ContextWindowExceededError: 9000 > 8192"), {}, E.TOO_BIG, "context_length"),
    (500, vllm("EngineCore encountered an issue.", 500), {}, E.TRANSIENT, "server_error"),
    (500, {"error": {"message": "litellm.RateLimitError"}}, {}, E.RATE_LIMITED, "rate_limit"),
    (500, vllm("Cannot load local files without ...", 500), {}, E.REFUSED, "server_refused"),
    (
        500,
        vllm("Image size (300000000 pixels) exceeds limit of 178956970 pixels", 500),
        {},
        E.REFUSED,
        "server_refused",
    ),
    (501, vllm("Only base64 data URLs are supported for now.", 501), {}, E.REFUSED, "bad_request"),
    (502, "<html>Bad Gateway</html>", {}, E.TRANSIENT, "server_error"),
    (503, vllm("The engine is currently busy", 503), {}, E.RATE_LIMITED, "busy"),
    (503, None, {"Retry-After": "5"}, E.RATE_LIMITED, "busy"),
    (503, None, {}, E.TRANSIENT, "unavailable"),
    (503, openai("No available channel for model o4-mini"), {}, E.MISCONFIGURED, "no_model"),
    (504, None, {}, E.TRANSIENT, "server_error"),
    (529, openai("Overloaded"), {}, E.RATE_LIMITED, "busy"),
    (
        400,
        vllm("This model's maximum context length is 2048 tokens.", 400, param="input_tokens"),
        {},
        E.TOO_BIG,
        "context_length",
    ),
    (400, openai("Image is too large", "image_too_large"), {}, E.TOO_BIG, "context_length"),
    (
        400,
        {"error": {"message": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        {},
        E.REFUSED,
        "content_filter",
    ),
    (400, vllm("Failed to load image: truncated", 400), {}, E.REFUSED, "bad_image"),
    (400, vllm("tiny is not a multimodal model", 400), {}, E.MISCONFIGURED, "no_vision"),
    (400, openai("API key not valid", "API_KEY_INVALID"), {}, E.MISCONFIGURED, "unauthorized"),
    (400, openai("x", "billing_hard_limit_reached"), {}, E.QUOTA, "quota"),
    (400, vllm("top_k must be 0 (disable), or at least 1", 400), {}, E.REFUSED, "bad_request"),
    (400, "<html>plain HTTP to an HTTPS port</html>", {}, E.MISCONFIGURED, "html"),
    (400, None, {}, E.REFUSED, "bad_request"),
    (422, {"detail": [{"loc": ["body", "x"], "msg": "odd"}]}, {}, E.REFUSED, "bad_request"),
    (418, None, {}, E.MISCONFIGURED, "unexpected_status"),
]


@pytest.mark.parametrize(("status", "body", "headers", "kind", "reason"), TABLE)
def test_the_table(
    status: int, body: Any, headers: dict[str, str], kind: ErrorClass, reason: str
) -> None:
    text = body if isinstance(body, str) else ""
    error = classify_status(status, None if text else body, text, headers, NOW)
    assert (error.error, error.reason, error.status) == (kind, reason, status)
    assert error.answered
    assert error.message.startswith(f"{status}: ")


#: Texts for "too long" of other servers than vLLM, and the cap that they mean, if it is that.
TOO_LONG: list[tuple[str, str | None]] = [
    ("max_tokens: 9 > 8, which is the maximum allowed number of output tokens", "max_tokens"),
    ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097", "max_tokens"),
    ("Range of max_tokens should be [1, 8192]", "max_tokens"),
    ("the request exceeds the available context size. try increasing it", None),
    ("The input (3000 tokens) is longer than the model's context length (2048 tokens).", None),
]


@pytest.mark.parametrize(("text", "param"), TOO_LONG)
def test_too_long_in_other_words(text: str, param: str | None) -> None:
    error = classify_status(400, openai(text), "", {}, NOW)
    assert (error.error, error.param) == (E.TOO_BIG, param)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Limit 200000, Used 199000. Please try again in 2.4s. Visit ...", 2.4),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 120ms", 0.12),
        ("Please retry after 6 seconds.", 6.0),
        ("try again in 2 minutes", 120.0),
        ("try again in 9999999s", 3600.0),
        ("try again in 0s", None),
        ("try again later", None),
    ],
)
def test_a_wait_that_only_the_text_tells(text: str, seconds: float | None) -> None:
    error = classify_status(429, openai(text), "", {}, NOW)
    assert error.error is E.RATE_LIMITED
    assert error.retry_after == (None if seconds is None else pytest.approx(seconds))
    error = classify_status(429, openai(text), "", {"Retry-After": "9"}, NOW)
    assert error.retry_after == 9.0, "a header is believed rather than a text"


UNSUPPORTED: list[tuple[Any, str]] = [
    (
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "unsupported_parameter",
            "max_tokens",
        ),
        "max_tokens",
    ),
    (openai("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."), "max_tokens"),
    (openai("'temperature' does not support 0.7", "unsupported_value"), "temperature"),
    (vllm("n must be 1 when using greedy sampling, got 4.", 400), "n"),
    (openai("Unrecognized request argument supplied: top_k"), "top_k"),
    (openai('Invalid JSON payload received. Unknown name "top_k": Cannot find field.'), "top_k"),
    (
        {
            "object": "error",
            "message": {
                "detail": [
                    {"loc": ["body", "top_k"], "msg": "not permitted", "type": "extra_forbidden"}
                ]
            },
        },
        "top_k",
    ),
    (openai("Invalid schema for response_format 'grading'"), "response_format"),
    (openai("x", "unsupported_parameter", "response_format.type"), "response_format"),
    (
        openai("response_format value as json_schema is enabled only for api versions 2024-08-01"),
        "response_format",
    ),
    (openai("This response_format type is unavailable now"), "response_format"),
    (openai("This model does not support response format `json_schema`."), "response_format"),
    (openai("x is not supported", "", "messages[0].content[0].image_url.detail"), "detail"),
    (
        {"detail": [{"loc": ["body", "min_p"], "msg": "no", "type": "extra_forbidden"}]},
        "min_p",
    ),
]


@pytest.mark.parametrize(("body", "param"), UNSUPPORTED)
def test_a_400_that_names_a_parameter_adapts_the_profile(body: Any, param: str) -> None:
    error = classify_status(400, body, "", {}, NOW)
    assert (error.error, error.param) == (E.UNSUPPORTED, param)
    assert adapt(RequestDialect(), error) not in (None, RequestDialect())


def test_errors_inside_a_200() -> None:
    assert classify_body({"code": 502, "message": "provider"}).error is E.TRANSIENT
    assert classify_body({"code": "429", "message": "slow"}).error is E.RATE_LIMITED
    assert classify_body({"code": 402, "message": "credits"}).error is E.QUOTA
    assert classify_body({"message": "flagged by moderation"}).error is E.REFUSED
    assert classify_body("rate limit exceeded").error is E.RATE_LIMITED
    assert classify_body({"message": "odd"}).reason == "error_in_200"
    assert classify_body(17).error is E.BAD_REPLY


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"Retry-After": "0"}, None),
        ({"Retry-After": "-4"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"Retry-After": "Fri, 15 Jan 2021 08:00:30 GMT"}, None),
        ({"Retry-After": "86400"}, 3600.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "1m2s"}, 62.0),
        ({"Retry-After": "2", "x-ratelimit-reset-requests": "9"}, 9.0),
        ({"x-ratelimit-reset-tokens": "9", "x-ratelimit-remaining-tokens": "500"}, None),
        ({"x-ratelimit-reset-tokens": "9", "x-ratelimit-remaining-tokens": "0"}, 9.0),
        ({"x-ratelimit-reset": str(int((NOW + 7) * 1000))}, 7.0),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_header_confuses_the_reader_of_waits(name: str, value: str) -> None:
    wait = retry_after({"Retry-After": value, "x-ratelimit-reset-" + name: value}, NOW)
    assert wait is None or 0 < wait <= 3600
    assert duration(value) is None or isinstance(duration(value), float)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "code", "param", "type", "loc"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.integers(400, 599), json)
def test_any_error_body_gets_a_class(status: int, body: Any) -> None:
    error = classify_status(status, body, "", {}, NOW)
    assert error.reason
    assert len(error.message) <= 300
    assert error.message.isprintable()
    assert isinstance(classify_body(body).error, ErrorClass)


def test_excerpts_are_short_printable_lines() -> None:
    assert excerpt("a\n\x1b[31mb\t c") == "a [31mb c"
    assert len(excerpt("x" * 1000)) == 300


# ---------------------------------------------------------------------------------------- dialects


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        ("o4-mini", True),
        ("openai/o3", True),
        ("o1-preview", True),
        ("gpt-5", True),
        ("gpt-5.1-mini", True),
        ("gpt-4o", False),
        ("Qwen2.5-VL-32B-Custom", False),
        ("o4orange", False),
        ("gpt-50", False),
    ],
)
def test_reasoning_models_are_known_by_name(model: str, reasons: bool) -> None:
    assert is_reasoning(model) is reasons
    dialect = initial_dialect(model, "grade")
    assert ("temperature" in dialect.drop) is reasons
    assert dialect.token_parameter == ("max_completion_tokens" if reasons else "max_tokens")


names = st.one_of(
    st.sampled_from(sorted(DROPPABLE)),
    st.sampled_from(["max_tokens", "max_completion_tokens", "response_format", "n", "x"]),
    st.just("body.top_k"),
)


@given(st.lists(names, min_size=60, max_size=90))
def test_adapting_comes_to_an_end(params: list[str]) -> None:
    dialect, steps = RequestDialect(), 0
    for param in params:
        error = CallError(error=E.UNSUPPORTED, message="", param=param)
        adapted = adapt(dialect, error)
        if adapted is not None:
            assert adapted != dialect
            dialect, steps = adapted, steps + 1
    assert steps <= 13


def test_only_an_unsupported_parameter_adapts() -> None:
    assert adapt(RequestDialect(), CallError(error=E.REFUSED, message="", param="top_k")) is None
    assert adapt(RequestDialect(), CallError(error=E.UNSUPPORTED, message="")) is None


def test_what_is_left_is_read_from_headers_and_only_positive_numbers_are_believed() -> None:
    headers = {
        "X-RateLimit-Remaining-Requests": "59",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6ms",
    }
    found = {a.tokens: (a.remaining, a.seconds) for a in rate_windows(headers, 0.0)}
    assert found == {False: (59.0, 60.0), True: (149984.0, 0.006)}
    azure = {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "0"}
    assert rate_windows(azure, 0.0) == ()
    assert rate_windows({"content-type": "application/json"}, 0.0) == ()


def test_a_number_of_a_header_is_finite_or_none() -> None:
    for text in ("1e999", "-1e999", "nan", "inf", "9" * 400, "9" * 400 + "s", "9" * 308 + "h"):
        assert duration(text) is None
        headers = {"x-ratelimit-remaining-tokens": text, "x-ratelimit-reset-tokens": "1s"}
        assert rate_windows(headers, 0.0) == ()
        assert retry_after({"retry-after": text}, 0.0) is None


def test_a_refusal_that_sends_the_request_back_is_read_at_once() -> None:
    echo = "invalid model " * 400_000
    words = f"context_length_exceeded: {echo}"
    for message in (words, f"{echo}: context_length_exceeded"):
        began = time.thread_time()
        error = classify_status(400, {"error": {"message": message}}, message, {}, 0.0)
        assert time.thread_time() - began < 1.0
        assert error.error is ErrorClass.TOO_BIG
