"""Which candidates and grades are worth their price when candidates do not vote. Pure.

A round of candidates is generated, then each different text of it is graded. The scores say how
good the image's candidates are and how far the best of them can be believed. Then whatever promises
the most points for its cost is bought: more candidates, or another grade of the best. Points are
the rise of the best posterior mean up to a target, and a bonus for passing the threshold.
Everything is computed anew from the image's state, so a restart continues as if nothing had
happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rsd.protocol.learned import Level, nothing_learned
from rsd.protocol.vocabulary import Arm, Recipe, SamplingParams
from rsd.strategy.arms import Arms, explores, together
from rsd.strategy.base import Buy, CallPrices, ImageState, Step, Stop
from rsd.strategy.dice import Dice
from rsd.strategy.levels import grown, levels_of, number_name, prompt_level
from rsd.strategy.memory import Memory, Solved
from rsd.strategy.normal import cumulative, density, expected_gain
from rsd.strategy.plain_image import Answer, Posterior, answers_of, posterior_of
from rsd.strategy.plain_model import PlainModel, solve_of
from rsd.strategy.presets import PRESETS
from rsd.strategy.prices import prices_of_calls

FIRST: Final = 3  #: candidates of the first round
LATER: Final = 6  #: candidates of a later round
CANDIDATES: Final = 24  #: most candidates of an image
CANDIDATES_WHATEVER_IT_COSTS: Final = 48
SPREAD_COUNTS: Final = 0.8  #: of a standard deviation: of several candidates the best is kept
GRADES: Final = 4  #: most grades of one text
#: Gradings of a text without a grade after which it is left alone, ...
TEXT_FAILURES: Final = 2
#: ... and of an image without any grade, per allotment.
IMAGE_FAILURES: Final = 4
REGRADINGS: Final = 3  #: most rounds of grades alone
LEADERS: Final = 3  #: texts that may be graded again in one round
NEAR: Final = 8.0  #: points around the threshold in which a winner is graded again
VERIFIED: Final = 3  #: grades at which a winner is believed
POINTS: Final = 17  #: of the trapezoids
TIE: Final = 1e-9  #: values that differ by less are equal: the lowest index wins


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an image is pursued, with all of its allotments."""

    minimum: int  #: candidates that are made in any case
    candidates: int
    grades: int | None
    regradings: int
    target: float  #: score above which nothing is gained
    bonus: float  #: points for passing the threshold
    threshold: float
    min_gain: float

    @classmethod
    def of(cls, recipe: Recipe, allotment: int = 1, retried_at: int = 0) -> Limits:
        """The preset's caps are those of candidates that vote; what a user sets holds as it is."""
        preset = PRESETS.get(recipe.effort, PRESETS["balanced"])
        most = CANDIDATES if preset.headroom is not None else CANDIDATES_WHATEVER_IT_COSTS
        if recipe.candidates_max != preset.candidates_max:
            most = recipe.candidates_max
        own_grades = recipe.grades_max != preset.grades_max
        grades = recipe.grades_max * allotment if own_grades else None
        headroom = 100.0 if preset.headroom is None else preset.headroom
        least = FIRST + LATER * (allotment - 1)
        if allotment > 1:
            least = max(least, retried_at + LATER)
        return cls(
            minimum=min(least, most * allotment),
            candidates=most * allotment,
            grades=grades,
            regradings=REGRADINGS * allotment,
            target=min(recipe.score_threshold + headroom, 100.0),
            bonus=preset.bonus,
            threshold=recipe.score_threshold,
            min_gain=recipe.min_gain,
        )


def next_step(state: ImageState, memory: Memory | None = None) -> Step:
    """Buy what is worth most for its cost, or stop. Ends: each step adds a candidate or a grading,
    and both are limited.
    """
    return Planner(state, memory).step()


class Planner:
    """One decision about one image."""

    def __init__(self, state: ImageState, memory: Memory | None = None) -> None:
        recipe = state.recipe
        learned = state.learned or nothing_learned(recipe)
        self.state, self.recipe = state, recipe
        self.levels = grown(learned.levels, levels_of(recipe))
        self.place = {level: i for i, level in enumerate(self.levels)}
        solved = Solved() if memory is None else memory.solved
        self.model: PlainModel = solved.get(
            state.learned, ("plain", self.levels), lambda: solve_of(learned, self.levels)
        )
        self.limits = Limits.of(recipe, state.allotment, state.retried_at)
        self.prices: CallPrices = state.prices or prices_of_calls(recipe, learned, {})
        self.answers = answers_of(state.candidates)
        self.grades = sum(answer.bought for answer in self.answers)
        self.prompts = [(k, self.place[prompt_level(k, t)]) for k, t in recipe.prompts.items()]
        self.temperatures = [(t, self._number("temperature", t)) for t in recipe.temperatures]
        self.top_ps = [(p, self._number("top_p", p)) for p in recipe.top_ps]
        self.top_ks = [(k, self._number("top_k", k)) for k in recipe.top_ks]

    def _number(self, factor: str, value: float) -> int:
        return self.place[Level(factor=factor, name=number_name(value))]

    # -- the decision --------------------------------------------------------------------------

    def step(self) -> Step:
        """See `next_step`."""
        ungraded = [(a.index, 1) for a in self.answers if a.bought == 0]
        ungraded = ungraded[: self._grades_left(len(ungraded))]
        if ungraded:  # of the round before, or graded under another rubric
            return Buy(gradings=tuple(ungraded))
        posterior = self.posterior()
        lacking = self.limits.minimum - self.state.planned
        if lacking > 0:
            made = self.generate(
                min(lacking, FIRST if not self.state.planned else LATER), posterior
            )
            if made is not None:
                return made
        if self.answers and not posterior.answers:
            return self._again_without_grades()
        worth, bought = self.best_purchase(posterior)
        if bought is not None and worth > 0.0 and worth >= self.limits.min_gain:
            return bought
        return self.verify(posterior) or self.stop(posterior)

    def _again_without_grades(self) -> Step:
        """No grading gave a grade: the same texts again, as far as that is worth a try. More
        candidates would not be graded either.
        """
        room = IMAGE_FAILURES * self.state.allotment - self.grades
        again = [(a.index, 1) for a in self.answers if a.bought < TEXT_FAILURES][: max(room, 0)]
        again = again[: self._grades_left(len(again))]
        return Buy(gradings=tuple(again)) if again else Stop(None, 0.0, "ungraded")

    def posterior(self) -> Posterior:
        """What the image's scores say."""
        return posterior_of(self.recipe, self.place, self.model, self.answers)

    def best_purchase(self, posterior: Posterior) -> tuple[float, Buy | None]:
        """Points per cost of a graded candidate, and what brings them."""
        found: list[tuple[float, list[Answer]]] = []  # no answers: more candidates
        count = self.room()
        if count > 0:
            cost = self.prices.generate(count) + self.prices.grade(count)
            found.append((self.gain_of_candidates(count, posterior) / self._relative(cost), []))
        for gain, leaders in self.gains_of_grades(posterior):
            if self._grades_left(len(leaders)) == len(leaders):
                cost = self.prices.grade(len(leaders))
                found.append((gain / self._relative(cost), leaders))
        worth = max((value for value, _ in found), default=0.0)
        for value, leaders in found:
            if value > worth - TIE and leaders:
                return worth, Buy(gradings=tuple(sorted((a.index, 1) for a in leaders)))
            if value > worth - TIE:
                return worth, self.generate(count, posterior)
        return 0.0, None

    def verify(self, posterior: Posterior) -> Buy | None:
        """Another grade of a winner so near the threshold that luck may have decided."""
        winner = self.winner(posterior)
        if winner is None or self._grades_left(1) == 0:
            return None
        answer, mean = posterior.answers[winner], posterior.means[winner]
        if answer.bought >= VERIFIED or abs(mean - self.limits.threshold) >= NEAR:
            return None
        return Buy(gradings=((answer.index, 1),))

    def stop(self, posterior: Posterior) -> Stop:
        """The highest posterior mean."""
        winner = self.winner(posterior)
        if winner is None:
            return Stop(None, 0.0, "ungraded" if self.answers else "no_candidate")
        mean = min(max(posterior.means[winner], 0.0), 100.0)
        reason = "no_gain" if self.room() > 0 else "cap"
        return Stop(posterior.answers[winner].kept, mean, reason)

    def winner(self, posterior: Posterior) -> int | None:
        """Place of the highest mean; of equal ones the first."""
        best = max(posterior.means, default=None)
        if best is None:
            return None
        return next(i for i, mean in enumerate(posterior.means) if mean > best - TIE)

    def room(self) -> int:
        """Candidates that the next round may have."""
        left = self.limits.candidates - self.state.planned
        return self._grades_left(max(min(LATER, left), 0))

    def _grades_left(self, wanted: int) -> int:
        if self.limits.grades is None:
            return wanted
        return min(wanted, max(self.limits.grades - self.grades, 0))

    def _relative(self, cost: float) -> float:
        """In units of a graded candidate of a first round."""
        unit = (self.prices.generate(FIRST) + self.prices.grade(FIRST)) / FIRST
        return max(cost / unit, TIE) if unit > 0.0 else 1.0

    # -- more candidates -----------------------------------------------------------------------

    def generate(self, count: int, posterior: Posterior) -> Buy | None:
        """A round of so many candidates; None when no arm is left.

        Their grades are bought when their texts are known: equal ones share a grade.
        """
        state = self.state
        count = self._grades_left(count)
        greedy = self._greedy()
        arms: list[Arm] = []
        explore = state.planned == 0 and explores(self.recipe, state.sha256)
        if explore and count > 0:
            arms = Arms.of(self.recipe).uniform(1, (), self._dice("uniform"))
        dice = self._dice("arms")
        while len(arms) < count:
            greedy |= _greedy(arms)
            chosen = self.best_arm(self.model.drawn(dice), posterior, greedy)
            if chosen is None:
                break
            arms.append(chosen[0])
        samples = tuple((arm, explore and k == 0) for k, arm in enumerate(together(arms)))
        return Buy(samples=samples) if samples else None

    def best_arm(
        self, effects: Sequence[float], posterior: Posterior, greedy: set[str]
    ) -> tuple[Arm, float, float, float] | None:
        """The arm of the highest worth: (arm, mean, sd of a posterior mean, share of failures).

        Within a temperature the worth rises with the effects of the other levels, so that only the
        best of each has to be looked at. At temperature 0 a prompt has one answer, asked for once.
        """
        best_p = self.top_ps[_first_best([effects[i] for _, i in self.top_ps])]
        best_k = self.top_ks[_first_best([effects[i] for _, i in self.top_ks])]
        found: tuple[Arm, float, float, float] | None = None
        highest = -math.inf
        model = self.model
        for temperature, level in self.temperatures:
            prompts = [p for p in self.prompts if temperature > 0.0 or p[0] not in greedy]
            if not prompts:
                continue
            prompt = prompts[_first_best([effects[i] for _, i in prompts])]
            hot = temperature > 0.0  # or else neither matters
            top_p, top_k = (best_p, best_k) if hot else (self.top_ps[0], self.top_ks[0])
            places = (prompt[1], level, top_p[1], top_k[1])
            mean = model.mean + posterior.image + math.fsum(effects[i] for i in places)
            spread, failing = model.spread[level], model.failing[level]
            new = posterior.image_variance + spread
            sd = new / math.sqrt(new + model.repeat)
            if self.state.planned == 0:
                worth = mean + SPREAD_COUNTS * math.sqrt(spread)
            else:
                best = max(posterior.means, default=0.0)
                worth = (1.0 - failing) * expected_gain(mean, sd, best)
            if worth > highest + TIE:
                highest = worth
                arm = self._arm(prompt[0], temperature, top_p[0], top_k[0])
                found = (arm, mean, sd, failing)
        return found

    def gain_of_candidates(self, count: int, posterior: Posterior) -> float:
        """Expected points of so many more candidates of the best arm: the area under the chance
        that the best of them is better, from the best in hand to the target, and the bonus.
        """
        chosen = self.best_arm(self.model.effects, posterior, self._greedy())
        if chosen is None:
            return 0.0
        _, mean, sd, failing = chosen
        best = max(posterior.means, default=0.0)
        limits = self.limits

        def passed(score: float) -> float:
            below = failing + (1.0 - failing) * cumulative((score - mean) / sd)
            return 1.0 - min(below, 1.0) ** count

        gain = 0.0
        if best < limits.target:
            width = (limits.target - best) / (POINTS - 1)
            heights = [passed(best + k * width) for k in range(POINTS)]
            gain = width * (math.fsum(heights) - 0.5 * (heights[0] + heights[-1]))
        if best < limits.threshold:
            gain += limits.bonus * passed(limits.threshold)
        return gain

    def _greedy(self) -> set[str]:
        return _greedy(seen.arm for seen in self.state.candidates)

    def _arm(self, prompt: str, temperature: float, top_p: float, top_k: int) -> Arm:
        recipe = self.recipe
        return Arm(
            prompt_key=prompt,
            params=SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=recipe.min_p,
                repetition_penalty=recipe.repetition_penalty,
            ),
        )

    def _dice(self, purpose: str) -> Dice:
        state = self.state
        return Dice(self.recipe.seed, state.sha256, state.rounds, purpose)

    # -- more grades ---------------------------------------------------------------------------

    def gains_of_grades(self, posterior: Posterior) -> Iterator[tuple[float, list[Answer]]]:
        """(points, answers) of grading the leaders again: the chance that another one turns out
        to be the best, times by how much. A third leader counts half.
        """
        means, answers, repeat = posterior.means, posterior.answers, self.model.repeat
        leaders = sorted(
            (i for i, answer in enumerate(answers) if answer.bought < GRADES),
            key=lambda i: (-means[i], i),
        )[:LEADERS]
        if len(leaders) < 2 or self._regradings() >= self.limits.regradings:
            return
        first = leaders[0]
        if means[first] < max(means) - TIE:
            return  # the best has all the grades that it may have
        changes = [posterior.variances[i] ** 2 for i in leaders]
        changes = [
            c / (posterior.variances[i] + repeat) if c > 0.0 else 0.0
            for c, i in zip(changes, leaders, strict=True)
        ]
        gain = 0.0
        for k in range(1, len(leaders)):
            sd = math.sqrt(changes[0] + changes[k] + TIE)
            z = (means[first] - means[leaders[k]]) / sd
            part = sd * (density(z) - z * cumulative(-z))
            gain += part if k == 1 else 0.5 * part
            yield gain, [answers[i] for i in leaders[: k + 1]]

    def _regradings(self) -> int:
        """Rounds of grades alone so far, under the rubric in force."""
        again = sum(max(answer.bought - 1, 0) for answer in self.answers)
        made = self.state.planned
        of_candidates = 1 + -(-max(made - FIRST, 0) // LATER)
        return min(again, max(self.state.rounds - 2 * of_candidates, 0))  # made, then graded


def _greedy(arms: Iterable[Arm]) -> set[str]:
    """Prompts that were asked at temperature 0."""
    return {arm.prompt_key for arm in arms if arm.params.temperature == 0.0}


def _first_best(values: Sequence[float]) -> int:
    best = max(values)
    return next(i for i, value in enumerate(values) if value > best - TIE)
