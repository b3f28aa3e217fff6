"""A world whose candidates agree more or less, and whose writer learns from every decided image."""

from __future__ import annotations

import random
from hashlib import blake2b

import msgspec

from rsd.hub.brain.events import Action, Assign, Policy
from rsd.protocol.facts import ConfigStored, Fact, ImageDecided, ImageStarted, RecipeChanged
from rsd.protocol.learned import Learned, learned_key, nothing_learned
from rsd.protocol.tasks import Completion, Generate, Generated, GradeCandidates
from rsd.protocol.vocabulary import Recipe, Stats
from rsd.protocol.writer_talk import Committed, Recovered
from rsd.strategy.base import Lesson, Seen
from rsd.strategy.learn import learn
from tests.unit.world import World, recipe

POINTWISE, LISTWISE = "score {generated_answer}", "score {candidate_answers}"
EDGES = tuple((a, b) for a in "ABCDE" for b in "ABCDE" if a < b)


def adaptive(**changes: object) -> Recipe:
    """A small recipe of the strategy that learns."""
    return recipe(**{"strategy": "adaptive", "grading_template": POINTWISE} | changes)


def lot(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    digest = blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def truth(sha256: str) -> set[tuple[str, str]]:
    """What a picture shows."""
    return {edge for edge in EDGES if lot("shown", sha256, edge) < 0.5} or {EDGES[0]}


def text_of(sha256: str, prompt: str, seed: int) -> str:
    """A reading of it; `two` errs less than the other prompts. Some say nothing at all."""
    if lot("empty", sha256, seed) < 0.05:
        return ""
    wrong = 0.04 if prompt == "two" else 0.15
    seen = truth(sha256) ^ {edge for edge in EDGES if lot("err", sha256, seed, edge) < wrong}
    return "\n".join(f"{a} --> {b}" for a, b in sorted(seen)) or "A --> E"


def grade_of(sha256: str, text: str, number: int) -> float:
    """F1 in points, with a repeatable error and a fresh one."""
    read = {(line[0], line[-1]) for line in text.splitlines()}
    right = truth(sha256)
    f1 = 2 * len(read & right) / (len(read) + len(right))
    noise = 10 * lot("judge", sha256, text) + 6 * lot("again", sha256, text, number)
    return round(min(100.0, max(0.0, 100 * f1 - 8 + noise)), 1)


class AdaptiveWorld(World):
    """Checks with every call that what asks for it was durable before."""

    def __init__(
        self,
        rng: random.Random,
        policy_: Policy,
        trouble=None,
        kills: float = 0.0,
        learning: bool = True,
    ) -> None:
        self.learning = learning
        self.learned: dict[str, Learned] = {}
        self.recipes: dict[str, Recipe] = {}
        self.configs: dict[str, str] = {}  #: image -> fingerprint of its recipe
        super().__init__(rng, policy_, trouble, kills)

    def act(self, action: Action) -> None:
        if isinstance(action, Assign):
            task = action.lease.task
            steps = [s for s in self.store.steps if s.image == getattr(task, "image", "")]
            if isinstance(task, Generate):
                planned = {s.index for step in steps for s in step.samples}
                assert set(task.samples) <= planned, "asked for before its step was durable"
            elif isinstance(task, GradeCandidates):
                bought = {(g.index, g.number) for step in steps for g in step.gradings}
                assert {(c.index, c.number) for c in task.candidates} <= bought
        super().act(action)

    def work(self, lease: int, task: object):
        reply = super().work(lease, task)
        if isinstance(task, Generate) and isinstance(reply, Generated):
            made = tuple(
                Completion(
                    content=text_of(task.sha256, task.prompt, task.seed + k), finish_reason="stop"
                )
                for k in range(len(task.samples))
            )
            return msgspec.structs.replace(reply, completions=made)
        return reply

    def score(self, task: GradeCandidates, content: str, number: int) -> float:
        return grade_of(task.sha256, content, number)

    def commit(self, count: int) -> None:
        """As the writer does: what a decision teaches is sent with its commit."""
        changed: set[str] = set()
        for seq, fact in self.facts[:count]:
            self.store.apply(fact)
            self.store.seq = seq
            changed |= self._learn(fact)
        del self.facts[:count]
        stats = Stats(backlog_high=len(self.store.queue))
        learned = tuple(self.learned[key] for key in sorted(changed))
        self.think(Committed(seq=self.store.seq, stats=stats, learned=learned))

    def _learn(self, fact: Fact) -> set[str]:
        match fact:
            case ConfigStored(recipe=stored):
                self.recipes[stored.fingerprint] = stored
            case (
                ImageStarted(image=image, config=config) | RecipeChanged(image=image, config=config)
            ):
                self.configs[image] = config
        if not isinstance(fact, ImageDecided) or not self.learning:
            return set()
        used = self.recipes[self.configs[fact.image]]
        key = learned_key(used)
        lesson = Lesson(
            recipe=used,
            sha256=self.store.started[fact.image].info.sha256,
            candidates=self.seen(fact.image),
            winner=fact.winner,
            score=fact.score,
            expected_score=fact.expected_score,
            accepted=fact.quality == "high",
            reason=fact.reason,
            generated=(),
            graded=(),
        )
        self.learned[key] = learn(self.learned.get(key) or nothing_learned(used), lesson)
        return {key}

    def seen(self, image: str) -> tuple[Seen, ...]:
        """An image's candidates as they are stored."""
        steps = [s for s in self.store.steps if s.image == image]
        bought = [(g.index, g.number) for step in steps for g in step.gradings]
        found = []
        for planned in (p for step in steps for p in step.samples):
            made = self.store.candidates.get((image, planned.index))
            grades = sorted(
                (number, grade.score)
                for (of, index, number), grade in self.store.grades.items()
                if (of, index) == (image, planned.index)
            )
            found.append(
                Seen(
                    index=planned.index,
                    arm=planned.arm,
                    explore=planned.explore,
                    text=made.content if made is not None else None,
                    rejected=made is not None and bool(made.rejected_because),
                    scores=tuple(score for _, score in grades),
                    bought=sum(index == planned.index for index, _ in bought),
                )
            )
        return tuple(found)

    def resumed(self, seed: int) -> AdaptiveWorld:
        """Another life on the same store: what was not committed is lost."""
        store = self.store
        begun = {**store.started}
        rows = [q for q in store.queue if q.image not in begun and q.image not in store.aside]
        store.queue = [
            msgspec.structs.replace(row, queue_seq=k) for k, row in enumerate(rows, start=1)
        ]
        world = AdaptiveWorld(
            random.Random(seed), self.policy, self.trouble, self.kills, self.learning
        )
        world.store, world.learned = store, self.learned
        world.recipes, world.configs = self.recipes, self.configs
        for image, started in begun.items():
            if image not in store.decided and image not in store.aside:
                history = store.history(image, started.info)
                event = Recovered(history=history, recipe=self.policy.recipe)
                world.think(event)
        return world

    def finish(self, limit: int = 200_000) -> AdaptiveWorld:
        """Until `Finished`."""
        for _ in range(limit):
            if self.finished:
                return self
            self.step()
        raise AssertionError(f"not finished: {self.brain.rounds.images or self.brain.intake}")

    def results(self) -> dict[str, tuple[int, float, float, str]]:
        """By content: winner, score, expected score and reason."""
        content = {i: s.info.sha256 for i, s in self.store.started.items()}
        decided = self.store.decided.items()
        return {content[i]: (d.winner, d.score, d.expected_score, d.reason) for i, d in decided}


def begun(
    with_policy: Policy, paths: list[bytes], seed: int = 1, **options: object
) -> AdaptiveWorld:
    """A world whose images are enrolled."""
    world = AdaptiveWorld(random.Random(seed), with_policy, **options)  # type: ignore[arg-type]
    world.open(paths)
    return world


def cut_short(with_policy: Policy, paths: list[bytes], seed: int) -> AdaptiveWorld:
    """A finished world whose hub ended four times, anywhere; nothing is learned meanwhile."""
    rng = random.Random(seed)
    world = begun(with_policy, paths, seed, learning=False)
    for life in range(4):
        for _ in range(rng.randint(1, 150)):
            if not world.finished:
                world.step()
        if life == 0:
            world.commit(len(world.facts))  # all files are known
        world = world.resumed(seed + life)
        world.open([])
    return world.finish()
