"""What a decided image teaches. Pure: equal records and lessons give equal records, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import comb, fsum
from typing import Final

import msgspec

from rsd.protocol.learned import (
    AUDIT_CANDIDATES,
    Audit,
    Counted,
    Learned,
    Level,
    LevelScores,
)
from rsd.strategy.arms import Effects, learn_arms, spread_of
from rsd.strategy.base import Lesson
from rsd.strategy.levels import grown, levels_of, levels_of_arm, regrown
from rsd.strategy.memory import Memory
from rsd.strategy.model import FORGET, TIE, Consensus, learn_consensus
from rsd.strategy.outlook import Answer, Outlook
from rsd.strategy.plain_learn import learn_plain
from rsd.strategy.prices import learn_calls, list_size_of

#: Rows of the tables of uniform candidates; later ones are left out.
UNIFORM_MAX: Final = 1024
#: Points around the median of a text's grades beyond which a grade is cut.
OUTLIER: Final = 30.0


def learn(learned: Learned, lesson: Lesson) -> Learned:
    """The record with one more image. Older images count less for what is estimated (`FORGET` each
    time), and fully for what is counted.
    """
    levels = grown(learned.levels, _levels_in(lesson))
    learned = _with_levels(learned, levels)
    sums = learned.consensus
    consensus = Consensus.of(sums, learned.repeat_sum / learned.repeat_count)
    view = Outlook.of(lesson.candidates, consensus, Memory())
    scored = [place for place, k in enumerate(view.seen) if view.answers[k].scores]
    first = [view.answers[view.seen[place]].scores[0] for place in scored]
    taught = learn_consensus(sums, consensus, view.look, scored, first)
    at = {level: k for k, level in enumerate(levels)}
    repeats = _repeats(view.answers)
    return msgspec.structs.replace(
        learned,
        images=learned.images + 1,
        consensus=learn_arms(
            taught,
            Effects.of(sums.arms, levels, levels, spread_of(sums)),
            [[at[x] for x in levels_of_arm(lesson.recipe, c.arm)] for c in view.gradable],
            [view.mean[k] for k in view.answer_of],
            [bool(view.answers[k].scores) for k in view.answer_of],
            FORGET,
        ),
        plain=learn_plain(learned.plain, levels, lesson),
        repeat_count=learned.repeat_count + repeats[0],
        repeat_sum=learned.repeat_sum + repeats[1],
        generating=learn_calls(
            learned.generating, tuple((1, usage) for usage in lesson.generated), FORGET
        ),
        grading=learn_calls(learned.grading, lesson.graded, FORGET),
        uniform=_uniform(learned.uniform, lesson, view),
        audit=_audit(learned.audit, lesson, view),
        counted=_counted(learned.counted, lesson, view),
    )


def _levels_in(lesson: Lesson) -> tuple[Level, ...]:
    """Those of the recipe, and of candidates that an earlier recipe asked for."""
    arms = (levels_of_arm(lesson.recipe, c.arm) for c in lesson.candidates)
    return tuple(
        dict.fromkeys((*levels_of(lesson.recipe), *(level for found in arms for level in found)))
    )


def _with_levels(learned: Learned, levels: tuple[Level, ...]) -> Learned:
    before = learned.levels
    if before == levels:
        return learned
    consensus, plain = learned.consensus, learned.plain
    known = {level.name for level in levels if level.factor == "temperature"}
    temperatures = {name: sums for name, sums in plain.temperatures.items() if name in known}
    return msgspec.structs.replace(
        learned,
        levels=levels,
        consensus=msgspec.structs.replace(consensus, arms=regrown(consensus.arms, before, levels)),
        plain=msgspec.structs.replace(
            plain, arms=regrown(plain.arms, before, levels), temperatures=temperatures
        ),
    )


def _repeats(answers: Sequence[Answer]) -> tuple[float, float]:
    """Degrees of freedom and squared deviations of texts that were graded several times."""
    degrees, squares = 0.0, 0.0
    for answer in answers:
        if len(answer.scores) > 1:
            rising = sorted(answer.scores)
            half = len(rising) // 2
            middle = rising[half] if len(rising) % 2 else (rising[half - 1] + rising[half]) / 2
            cut = [min(max(x, middle - OUTLIER), middle + OUTLIER) for x in answer.scores]
            mean = fsum(cut) / len(cut)
            degrees += len(cut) - 1
            squares += fsum((x - mean) ** 2 for x in cut)
    return degrees, squares


def _uniform(
    table: dict[str, LevelScores], lesson: Lesson, view: Outlook
) -> dict[str, LevelScores]:
    """With the first scores of the candidates whose arms were drawn uniformly."""
    table = dict(table)
    for candidate, k in zip(view.gradable, view.answer_of, strict=True):
        scores = view.answers[k].scores
        if not candidate.explore or not scores:
            continue
        named = {x.factor: x.name for x in levels_of_arm(lesson.recipe, candidate.arm)}
        rows = [f"{factor}={name}" for factor, name in named.items()]
        if "prompt" in named:
            rows.append(f"prompt={named['prompt']},temperature={named['temperature']}")
        for row in rows:
            if row in table or len(table) < UNIFORM_MAX:
                old = table.get(row, LevelScores())
                table[row] = LevelScores(
                    count=old.count + 1,
                    sum=old.sum + scores[0],
                    square=old.square + scores[0] ** 2,
                )
    return table


def best_of(scores: Sequence[float]) -> list[float]:
    """Mean of the best of k of these scores, over all choices of k, for k = 1, 2, ..."""
    rising, n = sorted(scores), len(scores)
    return [
        fsum(comb(i - 1, k - 1) * s for i, s in zip(count(1), rising, strict=False)) / comb(n, k)
        for k in range(1, n + 1)
    ]


def any_of(passing: int, n: int) -> list[float]:
    """Share of the choices of k of n that have one of the `passing` among them, k = 1, 2, ..."""
    return [1 - comb(n - passing, k) / comb(n, k) for k in range(1, n + 1)]


def _audit(audit: Audit, lesson: Lesson, view: Outlook) -> Audit:
    """With an image whose candidates were all uniform and all graded. A visible failure is worth 0;
    an image of which a candidate or a grade never came says nothing.
    """
    if lesson.reason != "audit":
        return audit
    pairs = [
        (view.features.agree[view.features.group[place]], view.answers[k].scores[0])
        for place, k in enumerate(view.answer_of)
        if view.answers[k].scores
    ]
    failed = sum(c.rejected for c in lesson.candidates)
    if len(pairs) + failed != AUDIT_CANDIDATES:
        return audit
    scores = [score for _, score in pairs] + [0.0] * failed
    best = best_of(scores)
    reached = any_of(sum(s >= lesson.recipe.score_threshold for s in scores), len(scores))
    mean_agree = fsum(a for a, _ in pairs) / max(len(pairs), 1)
    mean_score = fsum(s for _, s in pairs) / max(len(pairs), 1)
    centred = [(a - mean_agree, s - mean_score) for a, s in pairs]
    return Audit(
        images=audit.images + 1,
        best=_added(audit.best, best),
        best_square=_added(audit.best_square, [x * x for x in best]),
        passing=_added(audit.passing, reached),
        passing_square=_added(audit.passing_square, [x * x for x in reached]),
        agreement_square=audit.agreement_square + fsum(a * a for a, _ in centred),
        score_square=audit.score_square + fsum(s * s for _, s in centred),
        product=audit.product + fsum(a * s for a, s in centred),
    )


def _added(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, slots=True)
class _Graded:
    """First scores of an image's graded texts, highest first."""

    scores: list[float]

    def at_top(self) -> int:
        """How many share the highest."""
        return sum(score >= self.scores[0] - TIE for score in self.scores)


def _counted(counted: Counted, lesson: Lesson, view: Outlook) -> Counted:
    answers, gradable = view.answers, len(view.gradable)
    graded = _Graded(sorted((a.scores[0] for a in answers if a.scores), reverse=True))
    several = [a.scores for a in answers if len(a.scores) > 1]
    grades = sum(len(a.scores) for a in answers)
    unanimous = gradable > 1 and len(answers) == 1
    texts = len(graded.scores)
    reasons = dict(counted.reasons)
    reasons[lesson.reason] = reasons.get(lesson.reason, 0) + 1
    return Counted(
        candidates=counted.candidates + len(lesson.candidates),
        gradable=counted.gradable + gradable,
        distinct=counted.distinct + len(answers),
        graded=counted.graded + texts,
        grades=counted.grades + grades,
        calls=counted.calls + len(lesson.graded),
        calls_for_all=counted.calls_for_all + -(-gradable // list_size_of(lesson.recipe)),
        accepted=counted.accepted + lesson.accepted,
        one_grade=counted.one_grade + (grades == 1),
        unanimous=counted.unanimous + unanimous,
        unanimous_score=counted.unanimous_score + (lesson.score if unanimous else 0.0),
        three_graded=counted.three_graded + (texts > 2),
        saturated=counted.saturated + (texts > 2 and graded.at_top() > 2),
        tied=counted.tied + (texts > 1 and graded.at_top() > 1),
        two_graded=counted.two_graded + (texts > 1),
        winner_score=counted.winner_score + lesson.score,
        winner_expected=counted.winner_expected + lesson.expected_score,
        regraded=counted.regraded + len(several),
        second_change=counted.second_change + fsum(s[1] - s[0] for s in several),
        fives=counted.fives + sum(score % 5 == 0 for score in graded.scores),
        reasons=reasons,
    )
