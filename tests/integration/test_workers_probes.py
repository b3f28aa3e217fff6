"""Probes by real worker processes, spoken to through the real queue, against a real server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsd.errors import ErrorClass
from rsd.protocol.tasks import (
    Failed,
    Probe,
    Probed,
    ProbeSampling,
    SamplingProbed,
)
from rsd.protocol.vocabulary import Usage
from rsd.workers import generator, grader
from tests.integration.worker_parts import (
    draw,
    generate,
    prepared,
    worker,
)
from tests.servers import PATIENCE, Request, completion, serving

E = ErrorClass


def model_server(
    models: Any, answer: Callable[[dict[str, Any]], str], status: int = 200
) -> Callable[[Request], None]:
    def script(request: Request) -> None:
        if request.command == "GET":
            request.answer(status, models)
        else:
            request.answer(200, completion(answer(request.json)))

    return script


LISTING = {"data": [{"id": "tiny-vl", "max_model_len": 2048}]}
GOOD = model_server(LISTING, lambda sent: f"words of {sent.get('seed')}")


def test_a_probe_finds_the_only_model(tmp_path: Path) -> None:
    with serving(GOOD) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model="", completion=False))
        chats = [r.json for r in server.requests if r.command == "POST"]
    assert reply == Probed(lease=1, model="tiny-vl", models=("tiny-vl",), max_model_len=2048)
    assert chats == [], "the list of models is enough"


def test_a_tiny_completion_shows_that_credit_is_back(tmp_path: Path) -> None:
    with serving(GOOD) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model="", completion=True))
        chats = [r.json for r in server.requests if r.command == "POST"]
    assert reply.usage == Usage(input_tokens=66, output_tokens=16), "and is paid for"
    assert len(chats) == 1
    assert chats[0]["max_tokens"] <= 16


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        (lambda sent: f"words of {sent['seed']}", ""),
        (lambda sent: "always the same", "no effect"),
        (lambda sent: os.urandom(8).hex(), "not be reproducible"),
        (lambda sent: "", ""),
    ],
)
def test_a_probe_of_sampling_tries_the_seeds(
    tmp_path: Path, answer: Callable[[dict[str, Any]], str], warning: str
) -> None:
    with (
        serving(model_server(LISTING, answer)) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        reply = made.ask(ProbeSampling(endpoint=server.url, model="tiny-vl"))
        chats = [r.json for r in server.requests if r.command == "POST"]
    assert isinstance(reply, SamplingProbed)
    assert reply.usage.output_tokens == 3 * 16
    assert warning in reply.warning
    assert bool(warning) is bool(reply.warning)
    assert sorted(c["seed"] for c in chats) == [1, 1, 2]
    assert all(c["temperature"] == 1.0 and c["top_k"] == -1 for c in chats)


@pytest.mark.parametrize(
    ("script", "model", "kind", "words"),
    [
        (GOOD, "other", E.MISCONFIGURED, "tiny-vl"),
        (model_server({"data": [{"id": "a"}, {"id": "b"}]}, str), "", E.MISCONFIGURED, "a, b"),
        (model_server({"data": []}, str), "", E.MISCONFIGURED, "none"),
        (model_server({"error": "Unauthorized"}, str, 401), "m", E.MISCONFIGURED, "Unauth"),
        (model_server({"detail": "Not Found"}, str, 404), "", E.MISCONFIGURED, "Not Found"),
        (model_server({}, str, 503), "m", E.TRANSIENT, "503"),
    ],
)
def test_a_probe_says_what_is_wrong(
    tmp_path: Path, script: Callable[[Request], None], model: str, kind: ErrorClass, words: str
) -> None:
    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model=model))
    assert isinstance(reply, Failed)
    assert reply.error.error is kind
    assert words in reply.error.message


def test_a_server_without_a_listing_is_fine(tmp_path: Path) -> None:
    script = model_server({"detail": "Not Found"}, lambda sent: "ready", 404)
    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model="m"))
    usage = Usage(input_tokens=66, output_tokens=16)
    assert reply == Probed(lease=1, model="m", models=(), usage=usage), "a tiny call shows the path"


def test_a_probe_meets_an_empty_purse(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        if request.command == "GET":
            request.answer(200, {"data": [{"id": "o4-mini"}]})
        else:
            request.answer(429, {"error": {"code": "insufficient_quota", "message": "x"}})

    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model="o4-mini", completion=True))
    assert reply.error.error is E.QUOTA


def test_a_probe_that_is_refused_a_parameter_has_found_a_server(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        if request.command == "GET":
            request.answer(200, LISTING)
        else:
            message = "Unsupported parameter: 'max_tokens'"
            request.answer(400, {"error": {"message": message, "param": "max_tokens"}})

    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model="", completion=True))
    assert reply == Probed(lease=1, model="tiny-vl", models=("tiny-vl",), max_model_len=2048)


def test_sampling_is_probed_while_all_call_threads_are_busy(tmp_path: Path) -> None:
    """Work goes on meanwhile, and a server that refuses is a warning, never a failed endpoint."""
    draw(tmp_path)
    go_on = threading.Event()

    def script(request: Request) -> None:
        if "seed" in request.json and request.json["max_tokens"] <= 16:
            request.answer(503, {"error": "busy"})
        else:
            go_on.wait(PATIENCE)
            request.answer(200, completion("A --> B"))

    with serving(script) as server, worker(generator.main, server, tmp_path) as made:
        info = prepared(made)
        lent = {made.lend(generate(server, info.sha256)) for _ in range(2)}
        reply = made.ask(ProbeSampling(endpoint=server.url, model="m"))
        go_on.set()
        assert {made.hear().lease, made.hear().lease} == lent
    assert isinstance(reply, SamplingProbed)
    assert "could not be tried" in reply.warning
