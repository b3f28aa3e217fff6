"""A corpus of graders' answers, and properties: the right score or none, never a wrong one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.workers.grading.scores import Score, Unparsable, listwise, pointwise
from tests.evidence import record
from tests.fuzz_scores import Case, cases, mutated, stated, verdict

CORPUS = cases()
HOME = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CORPUS, ids=[f"{k}-{c.why}" for k, c in enumerate(CORPUS)])
def test_the_right_score_or_none(case: Case) -> None:
    assert verdict(case) == case.expected


def test_the_corpus_as_a_whole() -> None:
    read: Counter[str] = Counter()
    wrong = 0
    for case in CORPUS:
        got = verdict(case)
        if isinstance(got, dict):
            assert isinstance(case.truth, dict)
            wrong += any(case.truth.get(name) != score for name, score in got.items())
            kind = "right" if got == case.truth else "declined"
        else:
            wrong += got not in (case.truth, "unparsable")
            kind = "right" if got == case.truth else "declined"
        read["no score" if case.truth in ("unparsable", {}) else kind] += 1
    record(
        "answers",
        "Answers of graders, each with what a careful reader takes from it",
        times=len(CORPUS),
        wrong=wrong,
        seen=f"{read['right']} scores read right, {read['declined']} declined that a person could "
        f"read, {read['no score']} rightly without a score",
    )
    assert wrong == 0
    assert len({(case.text, case.ids, case.candidate) for case in CORPUS}) == len(CORPUS) >= 150
    in_json = [case for case in CORPUS if "{" in case.text and case.truth not in ("unparsable", {})]
    assert sum(verdict(case) == case.truth for case in in_json) > 0.75 * len(in_json) > 50


#: Forms that a grader gives a whole number in; every one must be read, exactly.
FORMS = [
    '{{"explanation": "Two arrows are missing.", "score": {0}}}',
    '{{"score": {0}, "explanation": "Two arrows are missing."}}',
    '{{"explanation": "x", "score": "{0}"}}',
    '{{"explanation": "x", "score": "{0}/100"}}',
    '{{"explanation": "x", "score": {0}.0,}}',
    "{{'explanation': 'x', 'score': {0}}}",
    '{{"explanation": "x", /* sum */ "score": {0} // of all\n}}',
    '```json\n{{"explanation": "x", "score": {0}}}\n```',
    'Here it is:\n```json\n{{"explanation": "x", "score": {0}}}\n```\nGood luck.',
    '<think>{1}? Score: {1}</think>\n{{"explanation": "x", "score": {0}}}',
    '{{"evaluation": {{"explanation": "x", "score": {0}}}}}',
    "Score: {0}/100",
    "**Final score: {0}/100**",
    "Two arrows are missing.\n\nScore: {0} out of 100",
    "{0}/100",
]
#: What a person could read as well: it is asked for again.
UNREAD = [
    '{{"explanation": "x", "score": {0} // of 100\n}}',
    "Score: {0}%",
    "## Score\n\n{0}/100",
    "Score: $\\boxed{{{0}/100}}$",
    "| Item | Value |\n|---|---|\n| Score | {0}/100 |",
    "Component score: {1}/100\nOverall score: {0}/100",
    "最终得分：{0}/100",
    "得分：{2}／１００",
    "Punktzahl: {0} von 100 Punkten",
    "Puntuación: {0}/100",
    "<score>{0}/100</score>",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_whole_number_comes_back_exactly(form: str) -> None:
    for number in range(101):
        wide = "".join(chr(0xFF10 + int(digit)) for digit in str(number))
        text = form.format(number, (number + 37) % 101, wide)
        found = pointwise(text)
        assert isinstance(found, Score) and found.score == number, text


@pytest.mark.parametrize("form", UNREAD)
def test_no_other_form_gives_a_score(form: str) -> None:
    for number in range(101):
        wide = "".join(chr(0xFF10 + int(digit)) for digit in str(number))
        text = form.format(number, (number + 37) % 101, wide)
        assert isinstance(pointwise(text), Unparsable), text


@pytest.mark.parametrize("form", FORMS + UNREAD)
def test_what_is_out_of_range_is_none(form: str) -> None:
    for number in (-100, -1, 101, 200, 850, 1000, 99999, 10**12):
        wide = "".join(chr(0xFF10 + int(d)) if d.isdigit() else d for d in str(number))
        text = form.format(number, 40, wide)
        assert isinstance(pointwise(text), Unparsable), text


def test_record_the_forms() -> None:
    seen = [pointwise(form.format(n, 40, n)) for form in FORMS for n in range(101)]
    wrong = [k for k, s in enumerate(seen) if not isinstance(s, Score) or s.score != k % 101]
    record(
        "answers",
        "Every whole number from 0 to 100 in every known form",
        times=len(seen),
        wrong=len(wrong),
        seen=f"{len(FORMS)} forms; out of range none is read",
    )
    assert not wrong


SILENT = st.text(max_size=300).filter(lambda t: not stated(t) and not t.strip()[:1].isdigit())
NUMBERS = st.sampled_from(
    ["12 of 14 arrows", "9/10 blocks", "from 0 to 100", "R1 = 10k", "{1, 2}", "3.14", "100 %", "85"]
)
PLAIN_WORDS = st.sampled_from(["the arrow", "blocks", "are right", "missing", "\n", ". ", "Names:"])


@settings(deadline=None)
@given(st.lists(NUMBERS | PLAIN_WORDS, min_size=2, max_size=12).map(" ".join))
def test_a_text_that_states_no_score_has_none(text: str) -> None:
    if not any(word in text for word in ("arrow", "blocks", "right", "missing", "Names")):
        text = "the arrow " + text
    assert isinstance(pointwise(text), Unparsable)


@settings(deadline=None)
@given(SILENT)
def test_nor_has_any_other_text(text: str) -> None:
    assert isinstance(pointwise(text), Unparsable)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_mutations_of_the_corpus_give_a_stated_score_or_none(seed: int, times: int) -> None:
    rng = random.Random(seed)
    case = rng.choice(CORPUS)
    text = mutated(case.text[:5_000], rng, times)
    found = pointwise(text, case.candidate)
    if isinstance(found, Score):
        assert found.score in stated(text), (found.score, text)
    for name, score in listwise(text, case.ids).items():
        assert name in case.ids and 0 <= score.score <= 100


AFTERTHOUGHTS = [
    "\nWait, I missed an arrow: 33.",
    "\nScore: 33/100",
    '\n{"explanation": "checked again", "score": 33}',
    "\n33",
    "\nOn reflection it should be 33.",
    "\nRevised score: 33",
    "\nTotal: 33/100",
]


@pytest.mark.parametrize("after", AFTERTHOUGHTS)
def test_no_verdict_stands_that_is_taken_back(after: str) -> None:
    for case in CORPUS:
        if case.ids or case.why in ("cut", "long") or verdict(case) == "unparsable":
            continue  # what follows a cut answer still stands in its explanation
        found = pointwise(case.text + after, case.candidate)
        assert isinstance(found, Unparsable), case.text + after


HOSTILE = """
from rsd.workers.grading.scores import listwise, pointwise
pieces = [" ", "\\n", "_", "*", "`", "#", "{", "}", "[", "(", '"', "'", "\\\\", "<", "9", "9 "]
pieces += ["a_", "score", "score: ", "Score: 85/100\\n", "Score\\n", "Score \\n\\n", "score("]
pieces += ["score 1 ", "得分：", "总分：1 ", "```", "<think>", "</think>", "{}", "{'a':", '{"a":']
pieces += ["9<b>", "9*", '{"score": 1}', '{"score": 1,', "/*", "//", "# ", "{ /*", "{ ", "\\n,"]
pieces += ["scale ", "| a ", "{{", "{a, ", "“", "no ", "not image ", "image ", "1.", "0", "a:"]
pieces += [ "K7QX", "K7QX: ", "K7QX 1\\n", "\\\\boxed{", "<score>1", "\\0", "final ", "final: 1. "]
for piece in pieces:
    text = "Score:" + piece * (400_000 // len(piece)) + '"}'
    pointwise(text)
    listwise(text, ["K7QX"])
print("done")
"""


@pytest.mark.slow
def test_hostile_texts_are_read_in_linear_time() -> None:
    """A pattern that tries a run again from each of its places would need an hour for one."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], cwd=HOME, capture_output=True, text=True, timeout=1500
    )
    assert done.stdout == "done\n", done.stderr
