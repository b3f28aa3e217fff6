"""Where candidates do not vote, the strategy that learns goes by scores alone."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import Learned
from rsd.strategy import plain
from rsd.strategy.adaptive import next_step
from rsd.strategy.base import Buy, CallPrices, Stop
from rsd.strategy.learn import learn
from rsd.strategy.plain_learn import learn_plain
from tests.unit.adaptive_world import LISTWISE as LISTWISE_TEMPLATE
from tests.unit.adaptive_world import POINTWISE, adaptive, begun, cut_short
from tests.unit.plain_world import LISTWISE, SMALL, arm, image, lesson, nothing, seen
from tests.unit.world import policy

PATHS = [b"%d.png" % k for k in range(16)]
CHEAP = CallPrices(candidate=1.0, grading=1.0, graded=1.0, pointwise=True)
DEAR = CallPrices(candidate=1.0, grading=100.0, graded=1.0, pointwise=True)
QUIET = msgspec.structs.replace(SMALL, audit_share=0.0)
AUTO = msgspec.structs.replace(QUIET, consensus="auto")


@pytest.mark.parametrize(
    ("consensus", "prices", "votes"),
    [("off", DEAR, False), ("auto", CHEAP, False), ("auto", DEAR, True), ("on", DEAR, True)],
)
def test_first_round(consensus: str, prices: CallPrices, votes: bool) -> None:
    of = msgspec.structs.replace(QUIET, consensus=consensus)
    step = next_step(image(of=of, prices=prices, rounds=0))
    assert isinstance(step, Buy) and not step.gradings
    assert len(step.samples) == (16 if votes else plain.FIRST)


def test_an_image_without_votes_stays_without_them_when_its_texts_are_there() -> None:
    made = [seen(i, arm(i % 2, 0.5)) for i in range(plain.LATER)]
    step = next_step(image(made, of=AUTO, prices=CHEAP))
    assert isinstance(step, Buy) and len(step.gradings) == plain.LATER


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


@pytest.mark.parametrize("template", [POINTWISE, LISTWISE_TEMPLATE], ids=["pointwise", "lists"])
def test_through_the_brain(template: str) -> None:
    """Texts are seen before grades are bought: equal ones share theirs, failures get none."""
    of = adaptive(grading_template=template, consensus="off", audit_share=0.0)
    world = begun(policy(of), PATHS).finish()
    assert len(world.store.decided) == len(PATHS) and not world.store.aside
    assert set(world.calls.values()) == {1}, "a candidate was asked for twice"
    assert not any(step.samples and step.gradings for step in world.store.steps)
    for name, decided in world.store.decided.items():
        candidates = world.seen(name)
        assert decided.reason in ("no_gain", "cap") and decided.agreement is not None
        assert candidates[decided.winner].scores
        texts = {c.text for c in candidates if c.gradable}
        assert {c.text for c in candidates if c.scores} == texts


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**9), lists=st.booleans())
def test_a_life_that_ends_anywhere_is_continued_by_the_same_steps(seed: int, lists: bool) -> None:
    template = LISTWISE_TEMPLATE if lists else POINTWISE
    of = adaptive(grading_template=template, consensus="off", audit_share=0.0)
    calm = begun(policy(of), PATHS[:6], learning=False).finish()
    world = cut_short(policy(of), PATHS[:6], seed)
    assert world.results() == calm.results()
    for one, other in ((world, calm), (calm, world)):
        steps = {(s.image, s.round, s.samples, s.gradings) for s in one.store.steps}
        assert steps == {(s.image, s.round, s.samples, s.gradings) for s in other.store.steps}
