"""Real generator and grader processes, spoken to through the real queue, against a real server."""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from rsd.errors import ErrorClass
from rsd.protocol.tasks import (
    Answer,
    Configure,
    Crashed,
    Decoding,
    Drop,
    Endpoint,
    Failed,
    FromWorker,
    Generate,
    Generated,
    GiveBack,
    GivenBack,
    GradeCandidates,
    Graded,
    Lease,
    LogLine,
    Prepare,
    Prepared,
    Probe,
    Probed,
    Task,
    WorkerReady,
    from_worker_decoder,
)
from rsd.protocol.vocabulary import ImageInfo, RequestDialect, SamplingParams, Usage
from rsd.system.queues import WorkQueue
from rsd.workers import generator, grader
from tests.servers import PATIENCE, Request, Seen, Server, completion, says, serving

E = ErrorClass
KEY = "sk-test-0123456789abcdef"
GRADE = '{"explanation": "all there", "score": 85}'


class Worker:
    """A worker process and what it has said."""

    def __init__(self, target: Callable[..., None], slots: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue: WorkQueue[FromWorker] = WorkQueue("worker")
        self.said: queue.SimpleQueue[FromWorker | None] = queue.SimpleQueue()
        self.logged: list[LogLine] = []
        self.number = 0
        self.process = context.Process(
            target=target, args=(*self.queue.child_ends, "worker", slots), daemon=True
        )
        self.process.start()
        self.queue.start(from_worker_decoder, self.said.put, lambda: self.said.put(None))

    def lend(self, task: Task) -> int:
        self.number += 1
        self.queue.put(Lease(lease=self.number, task=task))
        self.queue.flush()
        return self.number

    def hear(self) -> Any:
        """The next message that is no log line; None when the process is gone."""
        while isinstance(message := self.said.get(timeout=PATIENCE), LogLine):
            self.logged.append(message)
        return message

    def ask(self, task: Task) -> Any:
        """The reply to a task."""
        number = self.lend(task)
        reply = self.hear()
        assert reply.lease == number
        return reply


def configure(server_url: str, tmp_path: Path) -> Configure:
    images, spool = tmp_path / "images", tmp_path / "spool"
    images.mkdir(exist_ok=True)
    spool.mkdir(exist_ok=True)
    return Configure(
        endpoints=(Endpoint(url=server_url, key=KEY, timeout=PATIENCE),),
        image_dir=os.fsencode(images),
        spool_dir=str(spool),
        max_pixels=1_000_000,
        max_file_bytes=1_000_000,
        min_side=16,
        max_aspect=200,
        background="auto",
        log_level="DEBUG",
    )


@contextmanager
def worker(target: Callable[..., None], server: Server, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(target)
    try:
        made.queue.put(configure(server.url, tmp_path))
        made.queue.flush()
        ready = made.hear()
        assert ready == WorkerReady(pid=made.process.pid or 0)
        yield made
        made.queue.close()
        while made.hear() is not None:
            pass
        made.process.join(PATIENCE)
        assert made.process.exitcode == 0
    finally:
        made.process.kill()
        made.process.join()
        made.process.close()
    assert not any(KEY in line.text for line in made.logged)


def draw(tmp_path: Path, name: str = "a.png", colour: str = "white") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(out, "PNG")
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(out.getvalue())
    return out.getvalue()


def prepared(made: Worker, path: bytes = b"a.png") -> ImageInfo:
    number = made.lend(Prepare(image="i", path=path))
    assert made.hear() == Decoding(lease=number, image="i")
    reply = made.hear()
    assert isinstance(reply, Prepared)
    return reply.info


PARAMS = SamplingParams(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1)


def generate(server: Server, sha256: str, **fields: Any) -> Generate:
    task = Generate(
        image="i",
        sha256=sha256,
        samples=(0,),
        round=0,
        prompt_key="prompt1",
        prompt="Write a netlist.",
        params=PARAMS,
        seed=1024,
        max_tokens=100,
        endpoint=server.url,
        model="m",
        dialect=RequestDialect(),
    )
    return msgspec.structs.replace(task, **fields)


def judge(server: Server, sha256: str, *contents: str, **fields: Any) -> GradeCandidates:
    template = "Grade. {candidate_answers}" if len(contents) > 1 else "Grade. {generated_answer}"
    task = GradeCandidates(
        image="i",
        sha256=sha256,
        round=0,
        template=template,
        answers=tuple(Answer(index=k + 3, number=2, content=c) for k, c in enumerate(contents)),
        endpoint=server.url,
        model="m",
        dialect=RequestDialect(),
        max_tokens=500,
        shuffle_seed="x",
    )
    return msgspec.structs.replace(task, **fields)


def text_of(request: Request | Seen) -> str:
    return str(request.json["messages"][0]["content"][-1]["text"])


# --------------------------------------------------------------------------------------- generator


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
        made.ask(generate(server, info.sha256, reduced=True))
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
        bug = made.ask(judge(server, info.sha256, "A --> B"))  # no generator's task
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


# ------------------------------------------------------------------------------------------ grader


@pytest.fixture
def spooled(tmp_path: Path) -> str:
    (tmp_path / "spool").mkdir()
    url = b"data:image/png;base64," + base64.b64encode(draw(tmp_path))
    (tmp_path / "spool" / "abc.url").write_bytes(url)
    return "abc"


def test_a_candidate_is_graded(tmp_path: Path, spooled: str) -> None:
    with serving(says(GRADE)) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(judge(server, spooled, "A --> B", reasoning_effort="low"))
        request = server.requests[0]
    assert isinstance(reply, Graded)
    (judgement,) = reply.grades
    assert (judgement.index, judgement.number) == (3, 2)
    assert (judgement.score, judgement.explanation) == (85.0, "all there")
    assert reply.usage == Usage(input_tokens=66, output_tokens=16)
    sent = request.json
    assert sent["seed"] == 2
    assert sent["temperature"] == 0
    assert sent["max_tokens"] == 500
    assert sent["reasoning_effort"] == "low"
    assert sent["response_format"]["type"] == "json_schema"
    assert sent["messages"][0]["content"][0]["type"] == "image_url"
    assert text_of(request).startswith('Grade. <answer id="A" nonce="')
    assert not {"top_p", "top_k", "min_p", "n"} & sent.keys()


def test_a_reasoning_judge_is_asked_as_it_wants(tmp_path: Path, spooled: str) -> None:
    dialect = RequestDialect(
        drop=("temperature", "seed"),
        token_parameter="max_completion_tokens",
        response_format="json_object",
    )
    with serving(says(GRADE)) as server, worker(grader.main, server, tmp_path) as made:
        task = judge(server, spooled, "A --> B", model="o4-mini", dialect=dialect)
        assert isinstance(made.ask(task), Graded)
        sent = server.requests[0].json
    assert not {"temperature", "seed", "max_tokens", "reasoning_effort"} & sent.keys()
    assert sent["max_completion_tokens"] == 500
    assert sent["response_format"] == {"type": "json_object"}


def test_a_list_comes_back_in_the_words_of_the_task(tmp_path: Path, spooled: str) -> None:
    def script(request: Request) -> None:
        found = re.findall(r'<answer id="(\w+)" nonce="\w+">\nanswer (\d+)\n', text_of(request))
        rows = [{"id": n, "explanation": k, "score": 10 * int(k)} for n, k in found if k != "4"]
        request.answer(200, completion(msgspec.json.encode({"results": rows}).decode()))

    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        contents = [f"answer {k}" for k in range(3, 8)]
        reply = made.ask(judge(server, spooled, *contents))
    assert {j.index: (j.score, j.explanation) for j in reply.grades} == {
        k: (10.0 * k, str(k)) for k in (3, 5, 6, 7)
    }


def reply_of(content: Any, reason: str = "stop", **message: Any) -> Callable[[Request], None]:
    choice = {"finish_reason": reason, "message": {"content": content, **message}}
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 500,
        "completion_tokens_details": {"reasoning_tokens": 499},
    }
    return says(choices=[choice], usage=usage)


@pytest.mark.parametrize(
    ("script", "kind", "reason", "words"),
    [
        (reply_of("", "length"), E.TRUNCATED, "truncated", "token budget used by reasoning"),
        (reply_of('{"expl', "length"), E.TRUNCATED, "truncated", "500 of 500"),
        (reply_of(None, refusal="I must not."), E.REFUSED, "refusal", "I must not."),
        (reply_of("", "content_filter"), E.REFUSED, "content_filter", "filter"),
        (reply_of("Score: 850"), E.BAD_REPLY, "unparsable", "score"),
        (reply_of(""), E.BAD_REPLY, "unparsable", "empty"),
    ],
)
def test_no_grade_is_no_score(
    tmp_path: Path,
    spooled: str,
    script: Callable[[Request], None],
    kind: ErrorClass,
    reason: str,
    words: str,
) -> None:
    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(judge(server, spooled, "A --> B"))
    assert isinstance(reply, Failed)
    assert (reply.error.error, reply.error.reason) == (kind, reason)
    assert words in reply.error.message
    assert reply.usage == Usage(input_tokens=10, output_tokens=500, reasoning_tokens=499)


def test_an_unparsable_grade_is_in_the_log(tmp_path: Path, spooled: str) -> None:
    with (
        serving(says("no idea " * 200)) as server,
        worker(grader.main, server, tmp_path) as made,
    ):
        made.ask(judge(server, spooled, "A --> B"))
        made.ask(Probe(endpoint=server.url, model="m"))
        lines = [line.text for line in made.logged if "unparsable" in line.text]
    assert len(lines) == 1
    assert "no idea" in lines[0]
    assert len(lines[0]) < 400


# ------------------------------------------------------------------------------------------ probes


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
        reply = made.ask(Probe(endpoint=server.url, model=""))
        chats = [r.json for r in server.requests if r.command == "POST"]
    assert reply == Probed(lease=1, model="tiny-vl", models=("tiny-vl",), max_model_len=2048)
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
def test_a_probe_tries_the_seeds(
    tmp_path: Path, answer: Callable[[dict[str, Any]], str], warning: str
) -> None:
    with (
        serving(model_server(LISTING, answer)) as server,
        worker(generator.main, server, tmp_path) as made,
    ):
        reply = made.ask(Probe(endpoint=server.url, model="tiny-vl", sampling=True))
        chats = [r.json for r in server.requests if r.command == "POST"]
    assert isinstance(reply, Probed)
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
    assert reply == Probed(lease=1, model="m", models=())


def test_a_probe_meets_an_empty_purse(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        if request.command == "GET":
            request.answer(200, {"data": [{"id": "o4-mini"}]})
        else:
            request.answer(429, {"error": {"code": "insufficient_quota", "message": "x"}})

    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model="o4-mini"))
    assert reply.error.error is E.QUOTA


def test_a_probe_that_is_refused_a_parameter_has_found_a_server(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        if request.command == "GET":
            request.answer(200, LISTING)
        else:
            message = "Unsupported parameter: 'max_tokens'"
            request.answer(400, {"error": {"message": message, "param": "max_tokens"}})

    with serving(script) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(Probe(endpoint=server.url, model=""))
    assert reply == Probed(lease=1, model="tiny-vl", models=("tiny-vl",), max_model_len=2048)
