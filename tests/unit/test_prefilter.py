"""What never reaches a grader: nothing, refusals, openings, loops; and what always does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.hub.brain.prefilter import LOOP_MIN, LOOP_TIMES, loops, rejection_of
from rsd.protocol.tasks import Completion
from tests.unit.test_question import HONEST, INJECTED, Injected


def rejected(text: str, finish: str = "stop") -> str:
    return rejection_of(Completion(content=text, finish_reason=finish, refusal=""))


@pytest.mark.parametrize("case", INJECTED, ids=lambda case: case.name)
def test_the_corpus_is_stopped_as_it_says(case: Injected) -> None:
    assert rejected(case.text(HONEST)) == case.rejected_because
    assert rejected(case.text(HONEST), "length") == "truncated"


@pytest.mark.parametrize(
    "text",
    [
        HONEST,
        "No connections.",
        "R1 1 2 10k",
        "A",
        "A: B",
        '{"nodes": [], "edges": []}',
        "Here are the connections:\nA --> B",
        "I'm sorry, the picture is small. This is what I can read:\nA --> B",
        "Sorry button --> Dialog",
        "Solution tank --> Pump",
        "graph TD;\n" + "\n".join(f"  n{k} --> n{k + 1};" for k in range(300)),
        "\n".join(f"R{k}.2 -- R{k + 1}.1" for k in range(500)),
        "A --> B\n" * 20,
        "| A | B |\n" + "-" * 300,
    ],
)
def test_what_may_be_an_answer_is_graded(text: str) -> None:
    assert rejected(text) == ""


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(max_size=200))
def test_a_loop_is_found_whatever_it_says_and_whatever_comes_first(piece: str, before: str) -> None:
    times = max(LOOP_TIMES, LOOP_MIN // len(piece) + 1)
    assert loops(before + piece * times)


@settings(deadline=None)
@given(st.integers(2, 400), st.sampled_from(["n{0} --> n{1}", "{0},{1}", "R{0}.1 -- R{1}.2"]))
def test_lines_that_differ_are_no_loop(count: int, form: str) -> None:
    assert not loops("\n".join(form.format(k, k + 1) for k in range(count)))
