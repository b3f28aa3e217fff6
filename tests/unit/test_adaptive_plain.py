"""Where candidates do not vote, the strategy that learns goes by scores alone."""

from __future__ import annotations

import msgspec
import pytest

from rsd.protocol.learned import Learned
from rsd.strategy import plain
from rsd.strategy.adaptive import next_step
from rsd.strategy.base import Buy, CallPrices, Stop
from rsd.strategy.learn import learn
from rsd.strategy.plain_learn import learn_plain
from tests.unit.plain_world import LISTWISE, SMALL, arm, image, lesson, nothing, seen

CHEAP = CallPrices(candidate=1.0, grading=1.0, graded=1.0, pointwise=True)
DEAR = CallPrices(candidate=1.0, grading=100.0, graded=1.0, pointwise=True)
QUIET = msgspec.structs.replace(SMALL, audit_share=0.0)
AUTO = msgspec.structs.replace(QUIET, consensus="auto")


@pytest.mark.parametrize(
    ("consensus", "prices", "graded_at_once"),
    [("off", DEAR, 3), ("auto", CHEAP, 3), ("auto", DEAR, 0), ("on", CHEAP, 0)],
)
def test_first_round(consensus: str, prices: CallPrices, graded_at_once: int) -> None:
    of = msgspec.structs.replace(QUIET, consensus=consensus)
    step = next_step(image(of=of, prices=prices, rounds=0))
    assert isinstance(step, Buy) and len(step.gradings) == graded_at_once


def test_an_image_that_began_with_votes_goes_on_with_them() -> None:
    """Prices are running means: they may cross the border while an image is in work."""
    waiting = [seen(i, arm(i % 2, 0.5)) for i in range(9)]
    step = next_step(image(waiting, of=AUTO, prices=CHEAP))
    assert isinstance(step, Buy) and len(step.gradings) < 9
    off = next_step(image(waiting, of=QUIET, prices=CHEAP))
    assert isinstance(off, Buy) and len(off.gradings) == 9


def test_agreement_is_reported_all_the_same() -> None:
    same = [seen(i, arm(0, 0.5), (96.0,), "a -> b\nb -> c") for i in range(3)]
    step = next_step(image(same, of=QUIET))
    assert isinstance(step, Stop) and step.agreement is not None
    assert (step.agreement.level, step.agreement.distinct, step.agreement.winner) == (1.0, 1, 1.0)
    assert step.expected_score == plain.next_step(image(same, of=QUIET)).expected_score  # type: ignore[union-attr]


def test_both_models_learn_from_every_image() -> None:
    candidates = [seen(i, arm(i % 2, 0.5), (60.0 + 20 * (i % 2),)) for i in range(4)]
    record: Learned = nothing()
    for of in (QUIET, AUTO, msgspec.structs.replace(QUIET, consensus="on")):
        after = learn(record, lesson(candidates, of))
        assert after.plain == learn_plain(record.plain, after.levels, lesson(candidates, of))
        assert after.consensus != record.consensus
        record = after
    step = next_step(image(of=QUIET, learned=record, prices=LISTWISE, rounds=0))
    assert isinstance(step, Buy)
