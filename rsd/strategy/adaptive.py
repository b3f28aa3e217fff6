"""The strategy that learns: what next for an image, by what it costs and what it may gain. Pure.

Candidates that agree are a free grader, and one grade also speaks for the candidates that share
claims with the graded one. So some candidates are made, the most telling ones are graded, and more
is bought as long as the expected rise of the winner is worth its price (`Recipe.min_gain`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, fsum, sqrt
from typing import Final

from rsd.protocol.learned import AUDIT_CANDIDATES, Learned
from rsd.protocol.vocabulary import Arm, Recipe
from rsd.strategy import plain
from rsd.strategy.arms import Arms, Effects, explores, spread_of, together
from rsd.strategy.base import Buy, CallPrices, ImageState, Step, Stop
from rsd.strategy.dice import Dice
from rsd.strategy.levels import levels_of
from rsd.strategy.memory import Memory, Solved
from rsd.strategy.model import Consensus, highest
from rsd.strategy.outlook import Outlook
from rsd.strategy.plain import IMAGE_FAILURES, TEXT_FAILURES
from rsd.strategy.presets import PRESETS, Preset
from rsd.strategy.prices import prices_of_calls

#: Grades of one text: more say little that is new.
TEXT_GRADES: Final = 4
#: Candidates that a grade must cost before candidates vote: below, more grades are the better buy.
VOTING_PRICE: Final = 5.0
#: Most candidates of a first round whose size the prices choose.
FIRST_MAX: Final = 16
#: A gain of so few points is rounding.
NOTHING: Final = 1e-9

#: Mean of the highest of k standard normals.
_HIGHEST: Final = (
    *(0.0, 0.0, 0.564, 0.846, 1.029, 1.163, 1.267, 1.352, 1.424),
    *(1.485, 1.539, 1.586, 1.629, 1.668, 1.703, 1.736, 1.766),
)
_GRID: Final = tuple(-2.2 + 0.2 * i for i in range(25))
_DENSITY: Final = tuple(exp(-z * z / 2) for z in _GRID)
_MASS: Final = fsum(_DENSITY)


def next_step(state: ImageState, memory: Memory | None = None) -> Step:
    """What to do with an image whose round is over; the same for equal states."""
    memory = memory or Memory()
    if is_audit(state.recipe, state.sha256) and state.allotment == 1:
        return _Image(state, memory).audit()
    if _voting(state):
        return _Image(state, memory).step()
    step = plain.next_step(state, memory)
    if isinstance(step, Stop) and step.index is not None:  # it is reported in any case
        agreement = _Image(state, memory).view.agreement(step.index)
        return replace(step, agreement=agreement)
    return step


def _voting(state: ImageState) -> bool:
    """Whether candidates vote here. What calls cost may change within an image: one of which more
    answers wait for a grade than a round without votes has goes on with them, or all would be
    graded.
    """
    if votes(state.recipe, prices_for(state)):
        return True
    waiting = sum(c.gradable and not c.bought for c in state.candidates)
    return state.recipe.consensus == "auto" and waiting > plain.LATER


def prices_for(state: ImageState) -> CallPrices:
    """What calls cost; as assumed when nobody said it."""
    return state.prices or prices_of_calls(state.recipe, state.learned, {})


def votes(recipe: Recipe, prices: CallPrices) -> bool:
    """Whether agreement among candidates is used: `auto` where grading is dear enough."""
    if recipe.consensus != "auto":
        return recipe.consensus == "on"
    return grade_price(prices) >= VOTING_PRICE * prices.candidate


def grade_price(prices: CallPrices) -> float:
    """What a grade costs in a full call."""
    size = 1 if prices.pointwise else prices.list_size
    return prices.grade(size) / size


def is_audit(recipe: Recipe, sha256: str) -> bool:
    """Whether the image's candidates are all uniform and all graded, to measure what is true of
    the arms. None is where so many different candidates may not be made.
    """
    chosen = Dice(recipe.seed, sha256, 0, "audit").uniform() < recipe.audit_share
    return chosen and may_audit(recipe)


def may_audit(recipe: Recipe) -> bool:
    """Whether an image may have so many different candidates, and all of them graded."""
    enough = min(recipe.candidates_max, recipe.grades_max) >= AUDIT_CANDIDATES
    return enough and max(recipe.temperatures) > 0


@dataclass(frozen=True, slots=True)
class Knowledge:
    """A record of what was learned, solved for a recipe, each part when it is asked for: a step
    that grades needs no effects, and these take longest.
    """

    recipe: Recipe
    learned: Learned | None  #: None: nothing yet
    solved: Solved

    def consensus(self) -> Consensus:
        """What agreement says."""
        record = self._record()
        return self.solved.get(
            self.learned,
            "consensus",
            lambda: Consensus.of(record.consensus, record.repeat_sum / record.repeat_count),
        )

    def arms(self) -> Arms:
        """Those of the recipe."""
        recipe = self.recipe
        about = ("arms", self._levels(), recipe.min_p, recipe.repetition_penalty)
        return self.solved.get(None, about, lambda: Arms.of(recipe))

    def effects(self) -> Effects:
        """Of the recipe's levels."""
        record = self._record()
        sums = record.consensus
        return self.solved.get(
            self.learned,
            ("effects", self._levels()),
            lambda: Effects.of(sums.arms, record.levels, levels_of(self.recipe), spread_of(sums)),
        )

    def _levels(self) -> tuple[object, ...]:
        recipe = self.recipe
        ranges = (recipe.temperatures, recipe.top_ps, recipe.top_ks)
        return (tuple(recipe.prompts.items()), *ranges)

    def _record(self) -> Learned:
        return self.learned or Learned(key="", generator_model="", grader_model="", rubric="")


class _Image:
    """One decision about one image."""

    def __init__(self, state: ImageState, memory: Memory) -> None:
        recipe = state.recipe
        self.state = state
        self.recipe = recipe
        self.prices = prices_for(state)
        self.preset: Preset = PRESETS.get(recipe.effort, PRESETS["balanced"])
        self.known = Knowledge(recipe, state.learned, memory.solved)
        self.candidates_max = recipe.candidates_max * state.allotment
        self.grades_max = recipe.grades_max * state.allotment
        self.threshold = recipe.score_threshold
        headroom = self.preset.headroom
        self.target = 101.0 if headroom is None else self.threshold + headroom
        # The price of a candidate with its part of a grading call.
        self.unit = max((self.prices.generate(3) + self.prices.grade(3)) / 3, NOTHING)
        self.view = Outlook.of(state.candidates, self.known.consensus(), memory)
        self.spent = sum(answer.bought for answer in self.view.answers)

    # ---- steps -------------------------------------------------------------------------------
    def step(self) -> Step:
        """The rule."""
        state, view = self.state, self.view
        if state.planned == 0:
            bought = self._begin()
            return bought or Stop(None, 0.0, "no_candidate")
        if state.allotment > 1:
            later = self.preset.later
            least = max(self._first() + later * (state.allotment - 1), state.retried_at + later)
            more = self._generate(min(least, self.candidates_max) - state.planned)
            if more is not None:
                return more
        if not view.answers:
            return self._without_answers()
        known = view.posterior.graded()
        if not known:
            return self._first_grades()
        gain, chosen = self._batch(first=False)
        if self.spent < state.allotment and chosen:
            return self._grade(chosen)
        if len(view.answers) == 1 and len(view.gradable) > 1:
            return self._stop("agreed")
        value, count = self._more()
        if max(gain, value) <= NOTHING:
            return self._stop("cap" if self._capped() else "no_gain")
        more = self._generate(count) if value > gain else None
        if more is None and gain > NOTHING:  # the better buy, or no arm is left
            return self._grade(chosen)
        return more or self._stop("cap")

    def audit(self) -> Step:
        """All candidates uniform, each text graded once."""
        state, view = self.state, self.view
        if state.planned == 0:
            arms = self.known.arms().uniform(AUDIT_CANDIDATES, (), self._dice("audit arms"))
            return Buy(samples=tuple((arm, True) for arm in together(arms)))
        if not view.answers:
            return Stop(None, 0.0, "no_candidate")
        lacking = [a.index for a in view.answers if not a.bought]
        if lacking:
            return Buy(gradings=tuple((index, 1) for index in lacking))
        if not view.posterior.graded():
            return Stop(None, 0.0, "ungraded")
        return self._stop("audit")

    def _begin(self) -> Buy | None:
        """The first round; on some images its first candidate is of a uniform arm."""
        count = min(self._first(), self.candidates_max)
        if not explores(self.recipe, self.state.sha256):
            return self._generate(count)
        first = self.known.arms().uniform(1, (), self._dice("uniform"))
        others = self._promising(count - 1, first)
        arms = together([*first, *others])
        return Buy(samples=tuple((arm, i == 0) for i, arm in enumerate(arms)))

    def _first(self) -> int:
        """Candidates of the first round: the more, the dearer a grade beside them."""
        if self.preset.first is not None:
            return self.preset.first
        if self.prices.candidate <= 0:
            return FIRST_MAX
        count = round(2 * sqrt(self.prices.grade(1) / self.prices.candidate))
        return min(max(count, len(self.recipe.prompts)), FIRST_MAX)

    def _without_answers(self) -> Step:
        """All candidates failed visibly: more as long as the chance of an answer is worth it."""
        count = min(self.preset.later, self.candidates_max - self.state.planned)
        chance = 1 - (1 - 1 / (self.state.planned + 2)) ** max(count, 0)
        gain = chance * self._utility(self.view.consensus.weights[0])
        if gain <= self._price(self.prices.generate(count) + self.prices.grade(1)):
            return Stop(None, 0.0, "no_candidate")
        return self._generate(count) or Stop(None, 0.0, "no_candidate")

    def _first_grades(self) -> Step:
        """One grade is bought in any case, and that of the uniform candidate."""
        failed = sum(answer.failed for answer in self.view.answers)
        if failed >= IMAGE_FAILURES * self.state.allotment:
            return Stop(None, 0.0, "ungraded")
        _, chosen = self._batch(first=True)
        if not chosen:
            return Stop(None, 0.0, "ungraded")
        uniform = [a.index for a in self.view.answers if a.explore and not a.bought]
        room = self.grades_max - self.spent
        if not self.prices.pointwise:
            room = min(room, self.prices.list_size)  # one more would be another call
        others = [index for index in chosen if index not in uniform]
        indices = others[: max(room - len(uniform), 0)] + uniform
        return self._grade(indices[:room])

    def _generate(self, count: int) -> Buy | None:
        """So many more candidates, none graded; None when no arm is left, or none is wanted."""
        if count <= 0:
            return None
        arms = self._promising(count, [c.arm for c in self.state.candidates])
        return Buy(samples=tuple((arm, False) for arm in arms)) if arms else None

    def _promising(self, count: int, taken: list[Arm]) -> list[Arm]:
        effects, softness = self.known.effects(), self.preset.soft
        return self.known.arms().promising(effects, softness, count, taken, self._dice("arms"))

    def _grade(self, indices: list[int]) -> Buy:
        """One more grade of each, in an order that tells the grader nothing."""
        order = self._dice("grades").permutation(len(indices))
        return Buy(gradings=tuple((indices[k], 1) for k in order))

    def _stop(self, reason: str) -> Stop:
        view = self.view
        graded = view.posterior.graded()
        best = graded[highest([view.posterior.mean[i] for i in graded])]
        answer = view.answers[view.seen[best]]
        expected = min(max(view.posterior.mean[best], 0.0), 100.0)
        return Stop(answer.kept, expected, reason, view.agreement(answer.kept))

    # ---- values ------------------------------------------------------------------------------
    def _batch(self, *, first: bool, capped: bool = True) -> tuple[float, list[int]]:
        """The best next gradings: (net value in points, candidates), as far as one more in a call
        still pays. The first grade of an image needs no gain: one grade is mandatory.
        """
        view = self.view
        trial = view.posterior.copy()
        size = 1 if self.prices.pointwise else self.prices.list_size
        if capped:
            size = min(size, self.grades_max - self.spent)
        open_ = [
            place
            for place, k in enumerate(view.seen)
            if view.answers[k].bought < TEXT_GRADES and view.answers[k].failed < TEXT_FAILURES
        ]
        chosen: list[int] = []
        total, best, kept = 0.0, float("-inf"), 0
        size = min(size, len(open_))
        for count in range(1, size + 1):
            gains = trial.gain(open_, self._utility)
            top = highest(gains)
            total += 0.0 if first and count == 1 else gains[top]
            place = open_.pop(top)
            if count < size:
                trial.grade(place, None)
            chosen.append(view.answers[view.seen[place]].index)
            net = total - self._price(self.prices.grade(count))
            if net > best:
                best, kept = net, count
        return best, chosen[:kept]

    def _more(self, *, capped: bool = True) -> tuple[float, int]:
        """Net value of more candidates, the most promising of which is graded; and how many.

        What is new among them: the share of answers that were given once (Good, 1953).
        """
        view, count = self.view, self.preset.later
        if capped:
            count = min(count, self.candidates_max - self.state.planned)
            if self.spent >= self.grades_max:
                count = 0  # what no grader will see wins nothing
        if count <= 0:
            return float("-inf"), 0
        n = len(view.gradable)
        single = sum(answer.count == 1 for answer in view.answers)
        new = max(single / n if n > 1 else 1.0, 0.5 / n)
        expected = max(count * new * (n + 1) / (self.state.planned + 1), 1e-6)
        weights = [answer.count / n for answer in view.answers]
        middle = _mean(weights, view.mean)
        visible = _variance(weights, view.prior)
        hidden = self._hidden() + _variance(
            weights, [b - a for a, b in zip(view.prior, view.mean, strict=True)]
        )
        height = _HIGHEST[min(int(expected), len(_HIGHEST) - 1)]
        centre = middle + sqrt(visible) * height
        variance = hidden + visible * (0.5 if expected >= 2 else 1.0)
        deviation = variance / sqrt(variance + view.consensus.tau2)
        top = max(view.posterior.mean[i] for i in view.posterior.graded())
        value = fsum(
            mass * self._utility(max(top, centre + deviation * z))
            for z, mass in zip(_GRID, _DENSITY, strict=True)
        )
        gain = (value / _MASS - self._utility(top)) * min(expected, 1.0)
        return gain - self._price(self.prices.generate(count) + self.prices.grade(1)), count

    def _hidden(self) -> float:
        """Variance among candidates that texts do not tell, in points squared."""
        look, covariance = self.view.look, self.view.posterior.covariance
        total = fsum(look.share)
        weights = [share / total for share in look.share]
        own = fsum(w * covariance[i][i] for i, w in enumerate(weights))
        shared = fsum(w * _mean(weights, row) for w, row in zip(weights, covariance, strict=True))
        return max(own - shared, 4.0)

    def _capped(self) -> bool:
        """Whether more would have been bought but for a limit."""
        if self.spent < self.grades_max and self.state.planned < self.candidates_max:
            return False
        more, _ = self._more(capped=False)
        return max(more, self._batch(first=False, capped=False)[0]) > NOTHING

    def _utility(self, points: float) -> float:
        """What a score is worth."""
        bonus = self.preset.bonus if points >= self.threshold else 0.0
        return min(max(points, 0.0), self.target) + bonus

    def _price(self, cost: float) -> float:
        """Points that a cost must bring."""
        return self.recipe.min_gain * cost / self.unit

    def _dice(self, purpose: str) -> Dice:
        return Dice(self.recipe.seed, self.state.sha256, self.state.rounds, purpose)


def _mean(weights: list[float], values: list[float]) -> float:
    return fsum(w * x for w, x in zip(weights, values, strict=True))


def _variance(weights: list[float], values: list[float]) -> float:
    mean = _mean(weights, values)
    return _mean(weights, [(x - mean) ** 2 for x in values])
