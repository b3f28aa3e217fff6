"""What another run has learned as a beginning: scaled, checked, refused with a reason."""

from __future__ import annotations

import math

import msgspec
import pytest

from rsd.errors import UserError
from rsd.protocol.learned import (
    CallSums,
    ConsensusSums,
    Counted,
    Learned,
    Level,
    PlainSums,
    Regression,
    TemperatureSums,
    learned_key,
    nothing_learned,
)
from rsd.strategy.model import FORGET
from rsd.strategy.prior import LEVELS_MAX, PRIOR_IMAGES, prior_of, problem
from tests.histories import ADAPTIVE, STRICT

OTHER = msgspec.structs.replace(STRICT, strategy="adaptive")
LEVELS = (Level(factor="prompt", name="p1", text="0" * 8), Level(factor="temperature", name="1.0"))
ARMS = Regression(information=(4.0, 1.0, 6.0), moments=(2.0, -3.0))


def learned(images: int) -> Learned:
    """A record of so many images, each of which taught the same."""
    held = (1 - FORGET**images) / (1 - FORGET)
    return msgspec.structs.replace(
        nothing_learned(ADAPTIVE),
        images=images,
        levels=LEVELS,
        consensus=ConsensusSums(
            information=(held,) * 10,
            level_count=2 + held,
            level_sum=1.3 + 0.5 * held,
            image_count=8 + held,
            arms=ARMS,
        ),
        plain=PlainSums(arms=ARMS, temperatures={"1.0": TemperatureSums(drawn=20 + held)}),
        repeat_count=8 + held,
        generating=CallSums(calls=held, input=1300 * held),
        counted=Counted(candidates=9),
    )


def test_a_prior_weighs_as_fifty_images_and_what_is_imagined_stays() -> None:
    prior = prior_of(learned(10_000), ADAPTIVE)
    assert (prior.images, prior.prior_images, prior.key) == (0, PRIOR_IMAGES, learned_key(ADAPTIVE))
    sums = prior.consensus
    assert sums.information[0] == pytest.approx(PRIOR_IMAGES)
    assert sums.level_count == pytest.approx(2 + PRIOR_IMAGES)
    assert sums.level_sum == pytest.approx(1.3 + 0.5 * PRIOR_IMAGES)
    assert sums.image_count == pytest.approx(8 + PRIOR_IMAGES)
    assert prior.plain.temperatures["1.0"].drawn == pytest.approx(20 + PRIOR_IMAGES)
    assert prior.repeat_count == pytest.approx(8 + PRIOR_IMAGES)
    assert prior.generating.input / prior.generating.calls == pytest.approx(1300.0)
    scale = sums.arms.moments[0] / ARMS.moments[0]
    assert sums.arms.information == pytest.approx([scale * x for x in ARMS.information])
    assert prior.counted == Counted(), "a statement about images that were seen elsewhere"
    assert problem(prior) == ""


def test_of_few_images_all_is_taken() -> None:
    found = learned(20)
    prior = prior_of(found, ADAPTIVE)
    assert prior.prior_images == 20
    assert prior.consensus == found.consensus
    assert prior.plain == found.plain
    assert problem(prior) == ""


def test_what_was_learned_of_a_prior_alone_can_be_passed_on() -> None:
    once = prior_of(learned(400), ADAPTIVE)
    again = prior_of(once, ADAPTIVE)
    assert again.consensus.level_count == pytest.approx(once.consensus.level_count, rel=0.1)


def test_other_models_and_rubrics_are_refused_unless_levels_alone_are_taken() -> None:
    with pytest.raises(UserError, match="rubric"):
        prior_of(learned(30), OTHER)
    with pytest.raises(UserError, match="generator 'm', and here it is 'n'"):
        prior_of(learned(30), msgspec.structs.replace(ADAPTIVE, generator_model="n"))
    prior = prior_of(learned(30), OTHER, levels_only=True)
    assert prior.key == learned_key(OTHER)
    assert prior.levels == LEVELS
    assert prior.consensus == ConsensusSums(arms=ARMS)
    assert prior.plain == PlainSums(arms=ARMS)
    assert problem(prior) == ""


def test_nothing_is_no_prior() -> None:
    with pytest.raises(UserError, match="nothing was learned"):
        prior_of(nothing_learned(ADAPTIVE), ADAPTIVE)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 4},
        {"prior_images": 0},
        {"prior_images": PRIOR_IMAGES + 1},
        {"key": "0" * 16},
        {"rubric": "other"},
        {"repeat_count": -1.0},
        {"levels": LEVELS[:1]},
        {"levels": LEVELS[:1] * 2},
        {"levels": tuple(Level(factor="top_k", name=str(n)) for n in range(LEVELS_MAX + 1))},
        {"consensus": ConsensusSums(information=(0.0,) * 9)},
        {"consensus": ConsensusSums(level_count=math.inf)},
        {"consensus": ConsensusSums(arms=Regression(information=(1.0,), moments=(1.0, 1.0)))},
        {"plain": PlainSums(temperatures={"1.0": TemperatureSums(drawn=-3.0)})},
        {"plain": PlainSums(arms=Regression(information=(math.nan,), moments=(0.0,)))},
        {"generating": CallSums(calls=-1.0)},
    ],
)
def test_a_damaged_prior_has_a_problem_in_words(change: dict[str, object]) -> None:
    good = prior_of(learned(30), ADAPTIVE)
    assert problem(msgspec.structs.replace(good, **change)) != ""
    damaged = msgspec.structs.replace(learned(30), **change)
    if not {"images", "prior_images", "key", "rubric"} & change.keys():
        with pytest.raises(UserError, match="damaged"):
            prior_of(damaged, ADAPTIVE)
