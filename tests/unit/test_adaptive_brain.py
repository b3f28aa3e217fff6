"""The brain with the strategy that learns: what is bought, in which order, and after every kill."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsd.errors import ErrorClass
from rsd.hub.brain import events
from rsd.protocol.learned import AUDIT_CANDIDATES, learned_key
from rsd.protocol.tasks import Generate, GradeCandidates
from rsd.protocol.vocabulary import CallError, Role, Stats, TokenPrices
from rsd.strategy.adaptive import is_audit
from rsd.strategy.arms import explores
from tests.unit.adaptive_world import (
    LISTWISE,
    POINTWISE,
    AdaptiveWorld,
    adaptive,
    begun,
    cut_short,
    lot,
)
from tests.unit.world import policy, role_policy, transient

PATHS = [b"%d.png" % k for k in range(16)]
TEMPLATES = pytest.mark.parametrize("template", [POINTWISE, LISTWISE], ids=["pointwise", "lists"])
REASONS = {"agreed", "no_gain", "cap", "audit"}
RECIPES = [
    adaptive(grading_template=template, consensus=consensus)
    for template in (POINTWISE, LISTWISE)
    for consensus in ("on", "off")
]


@TEMPLATES
def test_few_of_the_candidates_are_graded_and_every_decision_says_what_they_agreed_on(
    template: str,
) -> None:
    world = begun(policy(adaptive(grading_template=template)), PATHS).finish()
    assert len(world.store.decided) == len(PATHS) and not world.store.aside
    made, grades = len(world.store.candidates), len(world.store.grades)
    assert made >= 6 * len(PATHS) and len(PATHS) <= grades < made / 2
    assert set(world.calls.values()) == {1}, "a candidate was asked for twice"
    for image, decided in world.store.decided.items():
        seen = world.seen(image)
        winner = seen[decided.winner]
        assert decided.reason in REASONS
        assert decided.score == sum(winner.scores) / len(winner.scores)
        assert decided.agreement is not None
        texts = {c.text for c in seen if c.gradable}
        assert decided.agreement.distinct == len(texts)
        graded = Counter(c.text for c in seen if c.scores)
        assert max(graded.values()) == 1, "a text was graded under two candidates"
        assert not any(c.bought for c in seen if not c.gradable)


@TEMPLATES
def test_steps_buy_candidates_or_gradings_and_explore_a_quarter(template: str) -> None:
    with_recipe = adaptive(grading_template=template)
    world = begun(policy(with_recipe), PATHS).finish()
    content = {i: s.info.sha256 for i, s in world.store.started.items()}
    for step in world.store.steps:
        assert bool(step.samples) != bool(step.gradings)
    for image, sha256 in content.items():
        seen = world.seen(image)
        explored = [c for c in seen if c.explore]
        if is_audit(with_recipe, sha256):
            assert len(explored) == len(seen) == AUDIT_CANDIDATES
            continue
        assert bool(explored) == explores(with_recipe, sha256)
        assert [c.index for c in explored] == [0][: len(explored)]
        first = seen[0]
        if explored and first.gradable:
            of_text = [c for c in seen if c.text == first.text and c.scores]
            assert of_text, "graded, whatever its text says"
    assert 0 < sum(explores(with_recipe, sha) for sha in content.values()) < len(content) / 2


def test_an_audit_image_is_graded_whole() -> None:
    world = begun(policy(adaptive(audit_share=1.0)), PATHS[:4]).finish()
    assert {d.reason for d in world.store.decided.values()} == {"audit"}
    for image in world.store.decided:
        seen = world.seen(image)
        assert len(seen) == AUDIT_CANDIDATES and all(c.explore for c in seen)
        texts = {c.text for c in seen if c.gradable}
        assert {c.text for c in seen if c.scores} == texts


def test_what_was_learned_reaches_the_strategy_and_images_are_learned_once() -> None:
    with_recipe = adaptive()
    world = begun(policy(with_recipe), PATHS).finish()
    record = world.brain.rounds.learned[learned_key(with_recipe)]
    assert record == world.learned[record.key]
    assert record.images == len(PATHS) == sum(record.counted.reasons.values())
    again = world.resumed(2)
    learned = tuple(world.learned.values())
    again.think(events.Started(stats=Stats(), dialects=(), learned=learned))
    assert again.brain.rounds.learned == {record.key: record}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**9), which=st.integers(0, len(RECIPES) - 1))
def test_order_errors_and_deaths_change_no_decision(seed: int, which: int) -> None:
    """But for what is learned meanwhile, which is left out here."""
    with_recipe = RECIPES[which]
    rng = random.Random(seed)

    def trouble(task: object, now: float) -> CallError | None:
        if not isinstance(task, Generate | GradeCandidates) or rng.random() > 0.15:
            return None
        busy = CallError(error=ErrorClass.RATE_LIMITED, message="", retry_after=2.0)
        return rng.choice([transient(), busy])

    calm = begun(policy(with_recipe), PATHS[:8], learning=False).finish()
    rough = AdaptiveWorld(
        rng, policy(with_recipe, max_attempts=50), trouble, kills=0.05, learning=False
    )
    rough.run(PATHS[:8])
    assert rough.results() == calm.results()
    assert rough.brain.dispatch.leases.open == 0 and not rough.brain.rounds.images


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**9), which=st.integers(0, len(RECIPES) - 1))
def test_a_life_that_ends_anywhere_is_continued_by_the_same_steps(seed: int, which: int) -> None:
    with_recipe = RECIPES[which]
    calm = begun(policy(with_recipe), PATHS[:6], learning=False).finish()
    world = cut_short(policy(with_recipe), PATHS[:6], seed)
    assert world.results() == calm.results()

    def steps(of: AdaptiveWorld) -> list[object]:
        return sorted((s.image, s.round, s.samples, s.gradings) for s in of.store.steps)

    assert steps(world) == steps(calm), "none is drawn again, none is left out"
    grades = {where: g.score for where, g in world.store.grades.items()}
    assert grades == {where: g.score for where, g in calm.store.grades.items()}


@TEMPLATES
def test_a_grade_that_never_comes_ends_no_image_and_is_not_asked_for_ever(template: str) -> None:
    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, GradeCandidates) and any(
            lot("refused", task.image, c.index, c.number) < 0.3 for c in task.candidates
        ):
            return CallError(error=ErrorClass.REFUSED, message="no", reason="content_filter")
        return None

    world = begun(policy(adaptive(grading_template=template)), PATHS, trouble=trouble).finish()
    ended = len(world.store.decided) + len(world.store.aside)
    assert ended == len(PATHS) and len(world.store.decided) > len(PATHS) / 2
    assert {a.reason for a in world.store.aside.values()} <= {"ungraded"}
    assert any(world.store.failed_grades.values())


def test_nothing_but_refusals_ends_each_image_with_its_reason() -> None:
    no = CallError(error=ErrorClass.REFUSED, message="no", reason="content_filter")
    for kind, reason in ((Generate, "no_candidate"), (GradeCandidates, "ungraded")):
        world = begun(
            policy(adaptive()),
            PATHS[:3],
            trouble=lambda task, now, kind=kind: no if isinstance(task, kind) else None,
        ).finish()
        assert {a.reason for a in world.store.aside.values()} == {reason}
        assert len(world.store.aside) == 3 and not world.store.decided


def test_one_image_in_an_outage_stalls_no_other() -> None:
    stuck = {"from": 0.0, "until": 10_000.0}
    held: list[str] = []

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, GradeCandidates) and now < stuck["until"]:
            if not held:
                held.append(task.image)
            if task.image == held[0]:
                return transient()
        return None

    with_recipe = adaptive()
    world = begun(policy(with_recipe, max_attempts=10**6), PATHS, trouble=trouble)
    for _ in range(100_000):
        if len(world.store.decided) == len(PATHS) - 1:
            break
        world.step()
    assert world.now < stuck["until"], "the others did not wait"
    assert set(world.brain.rounds.images) == set(held)
    assert world.brain.rounds.learned[learned_key(with_recipe)].images == len(PATHS) - 1
    stuck["until"] = 0.0
    world.finish()
    assert len(world.store.decided) == len(PATHS)


def test_a_retry_makes_more_candidates_and_buys_one_more_grade_at_least() -> None:
    with_recipe = adaptive()
    first = begun(policy(with_recipe), PATHS[:1]).finish()
    (image,) = first.store.decided
    made, graded = dict(first.store.candidates), dict(first.store.grades)
    first.store.retry(PATHS[0])
    first.store.allotments[image] = 2
    second = AdaptiveWorld(random.Random(5), policy(with_recipe))
    second.store, second.recipes = first.store, first.recipes
    second.open([])
    second.finish()
    assert image in second.store.decided
    assert second.store.candidates.items() >= made.items(), "none is made again"
    assert second.store.grades.items() > graded.items()
    assert len(second.store.candidates) >= len(made) + 6
    assert not {index for _, index in second.calls} & {index for _, index in made}


@TEMPLATES
def test_another_grader_in_the_middle_mixes_no_grades(template: str) -> None:
    before = adaptive(grading_template=template)
    after = adaptive(grading_template=template, grader_model="o5")
    world = begun(policy(before), PATHS)
    while not world.store.grades:
        world.step()
    active = set(world.brain.rounds.images)
    world.think(events.PolicyChanged(policy=policy(after)))
    world.finish()
    assert len(world.store.decided) == len(PATHS)
    assert set(world.calls.values()) == {1}
    for image in active:
        decided = world.store.decided[image]
        own = [
            g for (of, i, _), g in world.store.grades.items() if (of, i) == (image, decided.winner)
        ]
        scores = [g.score for g in own if g.rubric == after.rubric]
        assert scores and decided.score == sum(scores) / len(scores)
    images = [
        world.learned[key].images
        for key in map(learned_key, (before, after))
        if key in world.learned
    ]
    assert sum(images) == len(PATHS) and images[-1] >= len(active)


def test_prices_say_how_many_candidates_a_grade_is_worth() -> None:
    def first_round(candidate: float, grade: float) -> int:
        prices = {
            Role.GENERATE: TokenPrices(input=candidate, output=candidate),
            Role.GRADE: TokenPrices(input=grade, output=grade),
        }
        world = begun(policy(adaptive(), prices=prices), PATHS[:1]).finish()
        return len(world.store.steps[0].samples)

    assert first_round(0.01, 1.0) == 16 > first_round(1.0, 0.1) == 3


def test_prompts_and_ranges_change_in_mid_run() -> None:
    before = adaptive(audit_share=0.2)
    renamed = {"p1": "one", "px": "two"}  # one text is another prompt's, one has another name
    after = adaptive(audit_share=0.2, prompts=renamed, temperatures=(0.0, 0.7), top_ps=(0.5,))
    world = begun(policy(before), PATHS)
    while len(world.store.decided) < 3:
        world.step()
    world.policy = policy(after)
    world.think(events.PolicyChanged(policy=world.policy))
    world.finish()
    assert len(world.store.decided) == len(PATHS) and learned_key(before) == learned_key(after)
    record = world.learned[learned_key(after)]
    assert record.images == len(PATHS)
    factors = Counter(level.factor for level in record.levels)
    assert factors == {"prompt": 4, "temperature": 4, "top_p": 3, "top_k": 2}


ONE_ARM: dict[str, object] = {
    **{"prompts": {"p1": "one"}, "temperatures": (0.0,), "top_ps": (1.0,), "top_ks": (-1,)}
}


@TEMPLATES
@pytest.mark.parametrize("consensus", ["on", "off"])
@pytest.mark.parametrize(
    "changes",
    [
        {"candidates_max": 1},
        {"grades_max": 1},
        {"candidates_max": 1, "grades_max": 1},
        ONE_ARM,
        {**ONE_ARM, "audit_share": 1.0},
        {**ONE_ARM, "temperatures": (1.0,)},
        {"min_gain": 0.0, "score_threshold": 100.0},
        {"min_gain": 1e6},
        {"effort": "maximal", "min_gain": 0.5, "candidates_max": 108, "grades_max": 24},
        {"list_size": 2, "audit_share": 1.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_odd_settings_end_with_a_result(
    template: str, consensus: str, changes: dict[str, object]
) -> None:
    odd = adaptive(**{"grading_template": template, "consensus": consensus} | changes)
    world = begun(policy(odd), PATHS[:3]).finish()
    assert len(world.store.decided) == 3
    for image in world.store.decided:
        seen = world.seen(image)
        assert len(seen) <= odd.candidates_max
        if consensus == "on" or "grades_max" in changes:  # else the preset's is not meant
            assert sum(c.bought for c in seen) <= odd.grades_max


def test_what_is_learned_is_learned_of_the_model_that_the_server_names() -> None:
    unnamed = adaptive(generator_model="")
    roles = {
        Role.GENERATE: role_policy(("http://g/v1",), ""),
        Role.GRADE: role_policy(("http://j/v1",), "o4-mini"),
    }
    world = begun(policy(unnamed, roles=roles), PATHS[:8]).finish()
    named = adaptive(generator_model="served", grader_model=unnamed.grader_model)
    assert set(world.learned) == {learned_key(named)}
    assert world.brain.rounds.learned[learned_key(named)].images == 8
    assert all(world.recipes[config] == named for config in world.configs.values())
