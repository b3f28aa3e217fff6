"""Real grader processes, spoken to through the real queue, against a real server."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rsd.errors import ErrorClass
from rsd.protocol.tasks import (
    Failed,
    Graded,
    Probe,
)
from rsd.protocol.vocabulary import RequestDialect, Usage
from rsd.workers import grader
from tests.integration.worker_parts import (
    GRADE,
    draw,
    grading,
    text_of,
    worker,
)
from tests.servers import Request, completion, says, serving

E = ErrorClass


@pytest.fixture
def spooled(tmp_path: Path) -> str:
    (tmp_path / "spool").mkdir()
    url = b"data:image/png;base64," + base64.b64encode(draw(tmp_path))
    (tmp_path / "spool" / "abc.url").write_bytes(url)
    return "abc"


def test_a_candidate_is_graded(tmp_path: Path, spooled: str) -> None:
    with serving(says(GRADE)) as server, worker(grader.main, server, tmp_path) as made:
        reply = made.ask(grading(server, spooled, "A --> B", reasoning_effort="low"))
        request = server.requests[0]
    assert isinstance(reply, Graded)
    (grade,) = reply.grades
    assert (grade.index, grade.number) == (3, 2)
    assert (grade.score, grade.explanation) == (85.0, "all there")
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


def test_a_reasoning_grader_is_asked_as_it_wants(tmp_path: Path, spooled: str) -> None:
    dialect = RequestDialect(
        drop=("temperature", "seed"),
        token_parameter="max_completion_tokens",
        response_format="json_object",
    )
    with serving(says(GRADE)) as server, worker(grader.main, server, tmp_path) as made:
        task = grading(server, spooled, "A --> B", model="o4-mini", dialect=dialect)
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
        reply = made.ask(grading(server, spooled, *contents))
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
        reply = made.ask(grading(server, spooled, "A --> B"))
    assert isinstance(reply, Failed)
    assert (reply.error.error, reply.error.reason) == (kind, reason)
    assert words in reply.error.message
    assert reply.usage == Usage(input_tokens=10, output_tokens=500, reasoning_tokens=499)


def test_an_unparsable_grade_is_in_the_log(tmp_path: Path, spooled: str) -> None:
    with (
        serving(says("no idea " * 200)) as server,
        worker(grader.main, server, tmp_path) as made,
    ):
        made.ask(grading(server, spooled, "A --> B"))
        made.ask(Probe(endpoint=server.url, model="m"))
        lines = [line.text for line in made.logged if "unparsable" in line.text]
    assert len(lines) == 1
    assert "no idea" in lines[0]
    assert len(lines[0]) < 400
