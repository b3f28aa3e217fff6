"""Real generator processes, spoken to through the real queue, against a real server."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
from pathlib import Path

import msgspec
from PIL import Image

from rsd.errors import ErrorClass
from rsd.protocol.tasks import (
    HALF,
    Crashed,
    Decoding,
    Drop,
    Endpoint,
    Failed,
    Generated,
    GiveBack,
    GivenBack,
    Prepare,
    Probe,
    Probed,
)
from rsd.protocol.vocabulary import RequestDialect, Usage
from rsd.workers import generator
from tests.integration.worker_parts import (
    KEY,
    PARAMS,
    configure,
    draw,
    generate,
    grading,
    prepared,
    worker,
)
from tests.servers import PATIENCE, Request, completion, says, serving

E = ErrorClass


def test_a_picture_is_prepared_and_asked_about(tmp_path: Path) -> None:
    data = draw(tmp_path)
    with (
        serving(says("A --> B", "B --> C", "C --> D")) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        info = prepared(made)
        assert (info.width, info.height, info.format) == (64, 48, "PNG")
        reply = made.ask(generate(server, info.sha256, samples=(4, 5)))
        request = server.requests[0].json
    assert isinstance(reply, Generated)
    assert [c.content for c in reply.completions] == ["A --> B", "B --> C"]
    assert reply.usage == Usage(input_tokens=66, output_tokens=16)
    assert reply.model == "tiny-vl"
    assert reply.seconds > 0
    picture, text = request.pop("messages")[0]["content"]
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert picture["image_url"] == {"url": url, "detail": "high"}
    assert text["text"] == "Write a netlist."
    assert request == {
        "model": "m",
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": 1024,
        "max_tokens": 100,
        "n": 2,
    }


def test_the_profile_shapes_the_request(tmp_path: Path) -> None:
    dialect = RequestDialect(
        drop=("temperature", "top_k", "detail"),
        token_parameter="max_completion_tokens",
        multiple=False,
        max_tokens_factor=1.5,
    )
    greedy = msgspec.structs.replace(PARAMS, temperature=0.0)
    draw(tmp_path)
    with (
        serving(says("A --> B")) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        info = prepared(made)
        made.ask(generate(server, info.sha256, samples=(0, 1), dialect=dialect))
        made.ask(generate(server, info.sha256, samples=(0, 1), params=greedy))
        shaped, cold = (r.json for r in server.requests)
    assert shaped.keys() & {"temperature", "top_k", "n", "max_tokens"} == set()
    assert shaped["max_completion_tokens"] == 150
    assert "detail" not in shaped["messages"][0]["content"][0]["image_url"]
    assert cold["temperature"] == 0.0
    assert "n" not in cold


def test_pictures_come_from_the_spool_alone(tmp_path: Path) -> None:
    draw(tmp_path)
    with (
        serving(says("A --> B")) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        info = prepared(made)
        (tmp_path / "images" / "a.png").unlink()
        task = generate(server, info.sha256)
        assert isinstance(made.ask(task), Generated)
        (tmp_path / "spool" / f"{info.sha256}.url").unlink()
        assert isinstance(made.ask(task), Generated)  # encoded before
        made.queue.put(Drop(sha256=info.sha256))
        made.queue.flush()
        reply = made.ask(task)
        sent = [r.json["messages"] for r in server.requests]
    assert isinstance(reply, Failed)
    assert (reply.error.error, reply.error.reason) == (E.TRANSIENT, "spool_missing")
    assert reply.error.answered
    assert sent[0] == sent[1]
    assert len(sent) == 2


def test_a_reduced_picture_has_half_the_size(tmp_path: Path) -> None:
    draw(tmp_path)
    with (
        serving(says("A --> B")) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        info = prepared(made)
        task = generate(server, info.sha256, reduced=True, sent_bytes=info.sent_bytes)
        missing = made.ask(task)
        assert missing.error.reason == "spool_missing", "no call thread makes one"
        prepared(made, variant=HALF)
        assert isinstance(made.ask(task), Generated)
        url = server.requests[0].json["messages"][0]["content"][0]["image_url"]["url"]
    small = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert small.size == (32, 24)


def test_bad_pictures_fail_with_their_reason(tmp_path: Path) -> None:
    draw(tmp_path)
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    with serving(says("x")) as server, worker(generator.main, server, tmp_path) as made:
        number = made.lend(Prepare(image="i", path=b"b.png"))
        assert made.hear() == Decoding(lease=number, image="i")
        broken = made.hear()
        missing = made.ask(Prepare(image="i", path=b"c.png"))
    assert (broken.error.error, broken.error.reason) == (E.BAD_IMAGE, "not_an_image")
    assert (missing.error.error, missing.error.reason) == (E.BAD_IMAGE, "vanished")


def test_calls_run_at_once_and_pictures_beside_them(tmp_path: Path) -> None:
    draw(tmp_path)
    both = threading.Barrier(3)

    def script(request: Request) -> None:
        both.wait(PATIENCE)
        request.answer(200, completion("A --> B"))

    with serving(script) as server, worker(generator.main, server, tmp_path) as made:
        info = prepared(made)
        first = made.lend(generate(server, info.sha256))
        second = made.lend(generate(server, info.sha256))
        prepared(made)  # both threads are busy: the third one prepares
        both.wait(PATIENCE)
        assert {made.hear().lease, made.hear().lease} == {first, second}


def test_calls_that_no_thread_has_taken_are_given_back(tmp_path: Path) -> None:
    draw(tmp_path)
    here, go_on = threading.Barrier(3), threading.Event()

    def script(request: Request) -> None:
        here.wait(PATIENCE)
        go_on.wait(PATIENCE)
        request.answer(200, completion("A --> B"))

    with serving(script) as server, worker(generator.main, server, tmp_path) as made:
        info = prepared(made)
        lent = [made.lend(generate(server, info.sha256)) for _ in range(4)]
        here.wait(PATIENCE)  # both threads are at a call
        made.queue.put(GiveBack())
        made.queue.flush()
        assert made.hear() == GivenBack(leases=tuple(lent[2:]))
        go_on.set()
        assert {made.hear().lease, made.hear().lease} == set(lent[:2])
        asked = sum(seen.item for seen in server.requests)
        assert asked == 2


def test_a_bug_is_reported_and_the_worker_goes_on(tmp_path: Path) -> None:
    draw(tmp_path)
    with (
        serving(says("A --> B")) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        info = prepared(made)
        bug = made.ask(grading(server, info.sha256, "A --> B"))  # no generator's task
        odd = generate(server, f"\x00{KEY}")
        shown = made.ask(odd)
        fine = made.ask(generate(server, info.sha256))
    assert isinstance(bug, Crashed)
    assert "KeyError" in bug.traceback
    assert isinstance(shown, Crashed)
    assert KEY not in shown.traceback
    assert isinstance(fine, Generated)


def test_a_signal_of_the_terminal_does_not_reach_the_calls(tmp_path: Path) -> None:
    with serving(says("x")) as server, worker(generator.main, server, tmp_path) as made:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(made.process.pid or 0, number)
        reply = made.ask(Probe(endpoint=server.url, model="m"))
    assert isinstance(reply, Probed | Failed)


def test_a_reload_changes_endpoints_and_keys(tmp_path: Path) -> None:
    draw(tmp_path)
    with (
        serving(says("old")) as server,
        serving(says("new")) as other,
        worker(generator.main, server, tmp_path) as made,
    ):
        info = prepared(made)
        changed = configure(other.url, tmp_path)
        fresh = Endpoint(url=other.url, key="other", timeout=PATIENCE)
        made.queue.put(msgspec.structs.replace(changed, endpoints=(fresh,)))
        made.queue.flush()
        gone = made.ask(generate(server, info.sha256))
        reply = made.ask(generate(other, info.sha256))
        assert other.requests[0].headers["Authorization"] == "Bearer other"
        assert server.requests == []
    assert gone.error.reason == "endpoint_removed"
    assert reply.completions[0].content == "new"


def test_errors_come_back_with_class_and_usage(tmp_path: Path) -> None:
    draw(tmp_path)
    with serving(says(None)) as server, worker(generator.main, server, tmp_path) as made:
        reply = made.ask(generate(server, prepared(made).sha256))
    assert isinstance(reply, Failed)
    assert (reply.error.error, reply.error.reason) == (E.BAD_REPLY, "null_content")
    assert reply.usage.output_tokens == 16
    assert reply.seconds > 0
