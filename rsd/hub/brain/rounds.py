"""Active images: their rounds, their decisions, their end. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from rsd.hub.brain.dispatch import Dispatcher
from rsd.hub.brain.events import Forget, Policy
from rsd.hub.brain.image import ActiveImage, requests_per_image
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.turn import Turn
from rsd.protocol.facts import (
    ConfigStored,
    GradingFailed,
    ImageDecided,
    ImageSetAside,
    RecipeChanged,
    SampleFailed,
    StepChosen,
)
from rsd.protocol.learned import Learned, learned_key
from rsd.protocol.vocabulary import CallError, ImageId, Recipe, Role
from rsd.strategy.base import CallPrices, Step, Stop
from rsd.strategy.choose import first_round, next_step
from rsd.strategy.memory import Memory, Solved
from rsd.strategy.prices import prices_of_calls

#: Grading calls waiting, as a multiple of the graders' slots, above which no new round starts.
GRADING_AHEAD = 2
#: Records of what was learned, one per models and rubric; the one changed longest ago goes first.
LEARNED_MAX = 256
#: Images learned from between two estimates of how many requests one takes.
ESTIMATE_EVERY = 16


class Rounds:
    """Every image between `ImageStarted` and its end."""

    def __init__(self, policy: Policy, turn: Turn, dispatch: Dispatcher) -> None:
        self.policy = policy
        self.turn = turn
        self.dispatch = dispatch
        self.images: dict[ImageId, ActiveImage] = {}
        self.contents: dict[str, ImageId] = {}  #: sha256 of the active images
        self.stored: set[str] = set()  #: recipes that the writer has
        #: Withdrawn while calls were under way: their answers are paid for and still stored.
        self.departed: dict[ImageId, ActiveImage] = {}
        self._wants_step: deque[ImageId] = deque()  # images at a barrier
        self._held_back: deque[ImageId] = (
            deque()
        )  # they want a round, but the graders are behind, or no server has named its model
        self._steps: deque[tuple[int, StepChosen]] = deque()  # chosen, not yet durable
        self._steps_of_grades = 0  # those of them that make no candidate
        self.learned: dict[str, Learned] = {}  #: newest record by its key
        self.solved = Solved()  #: what the strategy has made of the records
        self._estimated_at = 0  # images learned from

    @property
    def starting(self) -> int:
        """Images whose next candidates are not asked for yet."""
        steps = len(self._steps) - self._steps_of_grades
        return len(self._wants_step) + len(self._held_back) + steps

    def learn(self, records: Iterable[Learned]) -> bool:
        """Records as they are stored now; True when `requests_per_image` should be asked again."""
        for record in records:
            known = self.learned.pop(record.key, record)
            self.learned[record.key] = record if record.images >= known.images else known
        while len(self.learned) > LEARNED_MAX:
            del self.learned[next(iter(self.learned))]
        if self.policy.recipe.strategy != "adaptive":
            return False
        mine = self._record(self.policy.recipe)
        return mine is not None and mine.images >= self._estimated_at + ESTIMATE_EVERY

    def requests_per_image(self) -> int:
        """Requests to the generator that an image's first round takes, under the settings."""
        recipe = self.policy.recipe
        learned, prices = self._known(recipe) if recipe.strategy == "adaptive" else (None, None)
        self._estimated_at = learned.images if learned is not None else 0
        arms = first_round(recipe, learned, prices)
        return requests_per_image(recipe, self.policy.max_n, arms)

    def durable(self, seq: int) -> None:
        """Steps up to this fact are committed: their work may go out."""
        while self._steps and self._steps[0][0] <= seq:
            step = self._steps.popleft()[1]
            self._steps_of_grades -= not step.samples
            self.take_step(step)

    def activate(self, image: ActiveImage) -> None:
        """A started or recovered image: queue what it lacks."""
        self._follow_grader(image)
        self.images[image.image] = image
        self.contents[image.sha256] = image.image
        self._enqueue_missing(image)

    def reconfigure(self, policy: Policy) -> None:
        """A reload. Images whose grader is another one now are graded anew: what is queued under
        the former rubric goes nowhere, what is under way becomes history.
        """
        self.policy = policy
        changed = {i.image: i for i in self.images.values() if self._follow_grader(i)}
        if not changed:
            return
        self.dispatch.queue.drop(
            lambda work: work.kind is not WorkKind.GRADE or work.image not in changed
        )
        for image in changed.values():
            image.unpark_grading()
            if not image.choosing:
                self._resume_grading(image)

    def _resume_grading(self, image: ActiveImage) -> None:
        """Queue the grades that are missing and not under way: their rubric is back in force."""
        lent = self.dispatch.leases.loans.values()
        under_way = {
            (index, loan.item.number)
            for loan in lent
            if loan.item.image == image.image and loan.item.rubric == image.rubric
            for index in loan.item.indices
        }
        for indices, number in image.to_grade():
            if any(image.awaits(i, number) and (i, number) not in under_way for i in indices):
                self.queue(image, WorkKind.GRADE, indices, number)
        self.check_barrier(image)

    def _follow_grader(self, image: ActiveImage) -> bool:
        if not image.grade_as(self.policy.recipe):
            return False
        self.store_recipe(image.recipe)
        self.turn.persist(RecipeChanged(image=image.image, config=image.config))
        return True

    def store_recipe(self, recipe: Recipe) -> None:
        """The writer must have a recipe before a fact names it."""
        fingerprint = recipe.fingerprint
        if fingerprint not in self.stored:
            self.stored.add(fingerprint)
            self.turn.persist(ConfigStored(recipe=recipe), size=16_384)

    def stale(self, work: Work) -> bool:
        """Whether nobody waits for this grade: it is known, or of a rubric not in force."""
        image = self.images.get(work.image)
        if image is None or work.kind is not WorkKind.GRADE:
            return False
        known = not any(image.awaits(i, work.number) for i in work.indices)
        return work.rubric != image.rubric or known

    def take_step(self, step: StepChosen) -> None:
        """A round begins."""
        image = self.images.get(step.image)
        if image is not None:
            image.take_step(step)
            self._enqueue_missing(image)

    def _enqueue_missing(self, image: ActiveImage) -> None:
        """Queue all that is missing of an image of which no candidate is under way. Grades may be:
        a reload changed their rubric, so that the round was over, and another one brought it back.
        """
        waiting = [i for i, c in image.candidates.items() if not c.answered]
        for indices in image.to_generate(waiting, self.policy.max_n):
            self.queue(image, WorkKind.GENERATE, indices)
        self._resume_grading(image)

    def queue(
        self, image: ActiveImage, kind: WorkKind, indices: tuple[int, ...], number: int = 0
    ) -> None:
        if image.image not in self.images:
            return  # departed
        work = Work(kind=kind, image=image.image, sha256=image.sha256, indices=indices)
        work.number = number
        if kind is WorkKind.GENERATE:
            work.endpoint = image.endpoint = self.dispatch.home(Role.GENERATE, image.endpoint)
        else:
            work.role, work.rubric = Role.GRADE, image.rubric
            work.endpoint = image.grader = self.dispatch.home(Role.GRADE, image.grader)
        self.dispatch.queue.add(work)

    def check_barrier(self, image: ActiveImage) -> None:
        """Ask the strategy about the image soon if nothing is missing of its round."""
        if image.round_complete and not image.choosing and image.image in self.images:
            image.choosing = True
            self._wants_step.append(image.image)

    def start_steps(self) -> None:
        """Ask the strategy about images at a barrier; no new round while graders are behind."""
        if not self._graders_behind():
            self._wants_step.extendleft(reversed(self._held_back))
            self._held_back.clear()
        while self._wants_step:
            image = self.images.get(self._wants_step[0])
            if image is not None:
                self._next_step(image)
            self._wants_step.popleft()  # not before: an exception would leave it `choosing`

    def _next_step(self, image: ActiveImage) -> None:
        if not image.round_complete:  # a reload brought back a rubric of which grades are missing
            image.choosing = False
            self._resume_grading(image)
            return
        if not self._named(image):
            self._held_back.append(image.image)
            return
        step = self._ask(image)
        if isinstance(step, Stop):
            self._decide(image, step)
        elif step.samples and self._graders_behind():
            self._held_back.append(image.image)
        else:
            self._choose(image.plan_step(step))

    def _named(self, image: ActiveImage) -> bool:
        """Whether it is known which model makes the candidates: what is learned is learned of that
        one, also when the settings leave its name to the server.
        """
        if not image.learns or image.recipe.generator_model:
            return True
        served = self.dispatch.endpoints.served(Role.GENERATE)
        if served:
            image.generate_with(served)
            self.store_recipe(image.recipe)
            self.turn.persist(RecipeChanged(image=image.image, config=image.config))
        return bool(served)

    def _ask(self, image: ActiveImage) -> Step:
        if not image.learns:
            return next_step(image.state(), None)
        if image.memory is None:
            image.memory = Memory(solved=self.solved)
        return next_step(image.state(*self._known(image.recipe)), image.memory)

    def _record(self, recipe: Recipe) -> Learned | None:
        if not recipe.generator_model:
            served = self.dispatch.endpoints.served(Role.GENERATE)
            recipe = msgspec.structs.replace(recipe, generator_model=served)
        return self.learned.get(learned_key(recipe))

    def _known(self, recipe: Recipe) -> tuple[Learned | None, CallPrices]:
        """What was learned, and what calls cost by that."""
        learned = self._record(recipe)
        return learned, prices_of_calls(recipe, learned, self.policy.prices)

    def _graders_behind(self) -> bool:
        slots = max(1, self.dispatch.leases.slots(Role.GRADE))
        return self.dispatch.queue.waiting(Role.GRADE) >= GRADING_AHEAD * slots

    def _choose(self, step: StepChosen) -> None:
        size = 200 * (len(step.samples) + 1) + 40 * len(step.gradings)
        self._steps.append((self.turn.persist(step, size), step))
        self._steps_of_grades += not step.samples

    def _decide(self, image: ActiveImage, stop: Stop) -> None:
        if stop.index is None:
            gradable = any(c.gradable for c in image.candidates.values())
            self.end_without_result(image, "failed", "ungraded" if gradable else "no_candidate")
            return
        score = image.scores()[stop.index]
        quality = "high" if score >= image.recipe.score_threshold else "low"
        self.turn.persist(
            ImageDecided(
                image=image.image,
                decision=image.decision + 1,
                winner=stop.index,
                score=score,
                expected_score=stop.expected_score,
                quality=quality,
                reason=stop.reason,
                time=self.turn.wall,
                agreement=stop.agreement,
            )
        )
        self.remove(image)
        self.turn.ended(image.image, image.path, quality, stop.reason, score)

    def end_without_result(
        self, image: ActiveImage, status: str, reason: str, message: str = ""
    ) -> None:
        self.turn.persist(
            ImageSetAside(
                image=image.image,
                status=status,
                reason=reason,
                message=message or image.last_error,
                info=image.info,
                sha256=image.sha256,
                queued_as=image.image,
                path=image.path,
                version=image.version,
                time=self.turn.wall,
            )
        )
        self.cancel(image)
        self.turn.ended(image.image, image.path, status, reason)

    def cancel(self, image: ActiveImage) -> None:
        """The image is withdrawn in the middle: what is queued for it must not go out."""
        self.remove(image)
        self.dispatch.queue.drop(lambda work: work.image != image.image)
        if image.image in self.dispatch.lent_images():
            self.departed[image.image] = image

    def known(self, work: Work) -> ActiveImage | None:
        """The image that a reply is for, active or departed."""
        return self.images.get(work.image) or self.departed.get(work.image)

    def forget_departed(self) -> None:
        """A departed image is kept only as long as answers may come for it."""
        if self.departed:
            lent = self.dispatch.lent_images()
            self.departed = {i: image for i, image in self.departed.items() if i in lent}

    def remove(self, image: ActiveImage) -> None:
        """The image is at its end."""
        del self.images[image.image]
        if image.choosing:  # it may come back, and be at a barrier then
            self._held_back = deque(i for i in self._held_back if i != image.image)
        self.contents.pop(image.sha256, None)
        self.turn.out.append(Forget(sha256=image.sha256))

    def split(self, work: Work) -> None:
        image = self.images.get(work.image)
        if image is None:
            return
        if work.kind is WorkKind.GENERATE:
            parts: list[tuple[int, ...]] = [(index,) for index in work.indices]
        else:
            half = len(work.indices) // 2
            parts = [p for p in (work.indices[:half], work.indices[half:]) if p]
        for part in parts:
            self.queue(image, work.kind, part, work.number)

    def give_up(self, image: ActiveImage, work: Work, error: CallError) -> None:
        """This work ends without an answer, for good."""
        for index in work.indices:
            if work.kind is WorkKind.GENERATE:
                self.generation_failed(image, index, error)
            elif image.awaits(index, work.number):
                image.candidates[index].gradings[work.number].failed = True
                self._log_failure(image, f"grade {work.number} of candidate {index}", error)
                fact = GradingFailed(
                    image=image.image,
                    index=index,
                    number=work.number,
                    error=error,
                    time=self.turn.wall,
                )
                self.turn.persist(fact, 1024)
        if work.kind is WorkKind.GENERATE:
            for indices, number in image.to_grade(work.indices):
                self.queue(image, WorkKind.GRADE, indices, number)
        self.check_barrier(image)

    def generation_failed(self, image: ActiveImage, index: int, error: CallError) -> None:
        """This candidate is not made, for good."""
        image.candidates[index].failed = True
        self._log_failure(image, f"candidate {index}", error)
        fact = SampleFailed(image=image.image, index=index, error=error, time=self.turn.wall)
        self.turn.persist(fact, 1024)

    def _log_failure(self, image: ActiveImage, what: str, error: CallError) -> None:
        name = repr(image.path.decode("utf-8", "backslashreplace"))
        why = f"{error.error.value}: {error.message or error.reason}"
        self.turn.log("warning", f"{name}, {what}: given up ({why})")
