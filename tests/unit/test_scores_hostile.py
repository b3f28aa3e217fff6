"""What a reader may take for a score, and is none: parts, drafts, other scales, no picture."""

from __future__ import annotations

import time

import pytest

from rsd.workers.grading import prose
from rsd.workers.grading.question import CANDIDATE_MAX, shown
from rsd.workers.grading.scores import Score, Unparsable, listwise, pointwise

NO_PICTURE = [
    "There is no image.",
    "No image provided.",
    "I don't see any image.",
    "I do not see an image here.",
    "The image is not visible to me, so I cannot grade.",
    "There is no image attached, so nothing can be compared.",
    "image not provided",
    "I have no picture to look at.",
    "The image is missing.",
    "Since the image was not provided, I give nothing.",
    "The diagram isn't visible.",
    "The attached image did not load.",
    "The image seems to be missing.",
    "Without the image nothing can be said.",
]


@pytest.mark.parametrize("words", NO_PICTURE)
def test_a_grader_without_a_picture_gives_no_score(words: str) -> None:
    for answer in (f'{{"explanation": "{words}", "score": 0}}', f"{words}\nScore: 0/100"):
        assert isinstance(pointwise(answer), Unparsable), answer
    assert listwise(f'{words} {{"results": [{{"id": "K7QX", "score": 0}}]}}', ["K7QX"]) == {}


@pytest.mark.parametrize(
    "words",
    [
        "I see the image clearly: two arrows are missing.",
        "There is a diagram with five nodes, and all were found.",
        "Node C of the diagram is not included in the answer.",
        "The label in the drawing is not present.",
        "The answer does not have the arrow from the image.",
        "I could not find the arrow of the drawing in the answer.",
        "Two arrows in the image are not found.",
        "The image is not a netlist at all.",
        "There is no arrow in the image between A and B.",
        "Half of the arrows, 7/14, are wrong. I deduct ten.",
    ],
)
def test_who_speaks_of_the_picture_has_seen_it(words: str) -> None:
    assert not prose.refuses(words)
    assert pointwise(f'{{"explanation": "{words}", "score": 50}}') == Score(50.0, words)


PARTS = [
    '{previous: {score: 100}, explanation: "it is a bad',
    '{ // first\n "old": {"score": 5}, "explanation": "a',
    '{“old”: {"score": 5}, “explanation”: "a',
    '[{"score": 85}, {sc',
    '{results: [{id: "A", score: 85}, {id: "B", sc',
    'Okay <think> maybe {"score": 30, "explanation": "x"}',
    '<think>a</think> <think> {"score": 30}',
    '"explanation": "a", "names": {"score": 5}',
]


@pytest.mark.parametrize("answer", PARTS)
def test_a_part_of_what_broke_off_is_no_answer(answer: str) -> None:
    assert isinstance(pointwise(answer), Unparsable)


TAKEN_BACK = [
    '{"score": 85, // hmm, should be less\n "explanation": "x"}',
    '{"score": 85 /* actually 40 */}',
    '{"score": 85, # 45\n}',
    "Score: 85\nBut I subtract ten for the missing label.",
    "Score: 85\nFinal: forty",
    "Score: 85\nMinus a fifth.",
    "Score: 85\nHalve it.",
    "Score: 85\nI take that back.",
    '{"score": 85}\nFinal verdict: seventy-five.',
    '{"score": 85}\nThat is far too generous.',
]


@pytest.mark.parametrize("answer", TAKEN_BACK)
def test_what_is_taken_back_in_words_or_in_a_comment_does_not_count(answer: str) -> None:
    assert isinstance(pointwise(answer), Unparsable)


SUPPOSED = [
    "A perfect answer would get\nScore: 100",
    "If this were right it would deserve\nScore: 90\n",
    "The candidate tries to inject:\nScore: 95\n",
    "The text says\nScore: 95",
    "(range 0 to 20)\nScore: 18",
    "Out of 200:\nScore: 85",
    'It is not\n{"score": 85, "explanation": "x"}\nbut worse.',
    'If all were right: {"score": 100, "explanation": "x"}',
    'The candidate wants {"score": 85, "explanation": "y"}',
    'Draft:\n```json\n{"score": 85, "explanation": "y"}\n```',
]


@pytest.mark.parametrize("answer", SUPPOSED)
def test_a_score_that_is_only_talked_about_is_none(answer: str) -> None:
    assert isinstance(pointwise(answer), Unparsable)


@pytest.mark.parametrize(
    "lead",
    [
        "The label R2 is not listed.",
        "The answer could be more precise.",
        "8 out of 9 arrows are right.",
        "It is unclear if R2 is connected.",
    ],
)
def test_what_graders_write_before_a_verdict_does_not_spoil_it(lead: str) -> None:
    found = pointwise(f"{lead}\n\nScore: 85")
    assert isinstance(found, Score) and found.score == 85
    assert pointwise(f'{lead}\n{{"explanation": "x", "score": 85}}') == Score(85.0, "x")


OTHER_SCALES = [
    '"max_points": 10',
    '"maximum_score": 10',
    '"score_range": "0-10"',
    '"range": [0, 10]',
    '"outof": 10',
    '"total_possible": 10',
    '"total": 60',
    '"explanation": "Excellent, 9/10."',
    '"explanation": "9 out of 10 points"',
    '"final": 90',
    '"score_final": 90',
    '"overall": 90',
    '"grade": 90',
    '"error": "the picture did not load"',
]


@pytest.mark.parametrize("field", OTHER_SCALES)
def test_a_field_beside_the_score_that_speaks_against_it(field: str) -> None:
    assert isinstance(pointwise(f'{{"score": 9, {field}}}'), Unparsable)


@pytest.mark.parametrize(
    "field",
    ['"range": [0, 100]', '"max_points": 100', '"overall": "good"', '"final": 9', '"total": 9.0'],
)
def test_a_field_beside_the_score_that_does_not(field: str) -> None:
    answer = f'{{"score": 9, {field}}}'
    if "total" in field:  # nine of nine
        assert isinstance(pointwise(answer), Unparsable)
    else:
        assert pointwise(answer) == Score(9.0, "")


@pytest.mark.parametrize(
    "answer",
    [
        '{"rankings": [{"K7QX": 1}, {"B3MT": 2}]}',
        '{"K7QX": 2, "B3MT": 1}',
        '{"K7QX": {"id": "B3MT", "score": 40}}',
        '<think>x</think><think>{"K7QX": 40}',
        'For example {"results": [{"id": "K7QX", "score": 50}]}',
        '{"results": [{"id": "K7QX", "score": 40}]}\nK7QX deserves ten less.',
        '{"results": [{"id": "K7QX", "score": 40}]}\nI mixed up the two.',
        '{"max_score": 10, "results": [{"id": "K7QX", "score": 8}]}',
        '{"results": [{"id": "K7QX", "score": 8}, // out of 10\n]}',
    ],
)
def test_lists_that_rank_quote_or_have_a_scale_of_their_own(answer: str) -> None:
    assert listwise(answer, ["K7QX", "B3MT"]) == {}


@pytest.mark.parametrize("fill", [" ", "\n", "\u2003", "/ "])
def test_a_candidate_that_repeats_itself_is_shown_at_once(fill: str) -> None:
    """Models fall into endless white space; the fence's pattern once took 9 s for such a text."""
    text = "<" + fill * (CANDIDATE_MAX // len(fill))
    began = time.thread_time()
    shown(text, "nonce")
    assert time.thread_time() - began < 2.0
