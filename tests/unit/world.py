"""A world for the brain: workers, servers and a writer as plain data, in any order, with any loss.

Nothing here is a mock of a part that runs: the brain is pure, and this is what it sees.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import msgspec

from rsd.errors import ErrorClass
from rsd.hub.brain import events
from rsd.hub.brain.brain import Brain
from rsd.hub.brain.events import (
    Action,
    Ask,
    Assign,
    FilesSeen,
    Finished,
    Persist,
    Policy,
    RolePolicy,
)
from rsd.protocol.facts import (
    CallSpent,
    CandidateGraded,
    CandidateMade,
    DecodeCrashed,
    Fact,
    GradingFailed,
    ImageDecided,
    ImageEnrolled,
    ImageSetAside,
    ImageStarted,
    SampleFailed,
    StepChosen,
)
from rsd.protocol.tasks import (
    Completion,
    Failed,
    Generate,
    Generated,
    GradeCandidates,
    Graded,
    GradeGiven,
    LoadRead,
    Prepare,
    Prepared,
    Probe,
    Probed,
    ProbeSampling,
    ReadLoad,
    SamplingProbed,
)
from rsd.protocol.vocabulary import (
    CallError,
    Candidate,
    Grade,
    ImageInfo,
    Rates,
    Recipe,
    Role,
    Stats,
    Usage,
    image_id,
)
from rsd.protocol.writer_talk import (
    BacklogPage,
    Committed,
    ContentFound,
    FindContent,
    ImageHistory,
    QueuedImage,
    ReadBacklog,
)


def recipe(**changes: object) -> Recipe:
    """A small recipe; fields may be changed."""
    base = Recipe(
        prompts={"p1": "one", "p2": "two", "p3": "three"},
        grading_template="score {generated_answer}",
        strategy="random",
        candidates=3,
        seed=0,
        temperatures=(0.3, 0.7, 1.0),
        top_ps=(0.7, 0.9),
        top_ks=(40, 60),
        min_p=0.0,
        repetition_penalty=1.0,
        max_tokens=100,
        score_threshold=60.0,
        stop_score=None,
        repeats=1,
        list_size=6,
        generator_model="vlm",
        grader_model="o4-mini",
    )
    return msgspec.structs.replace(base, **changes)


def role_policy(endpoints: tuple[str, ...], model: str, **changes: object) -> RolePolicy:
    """What belongs to one role; fields may be changed."""
    made = RolePolicy(
        endpoints=endpoints,
        model=model,
        cap=8,
        endpoint_cap=8,
        timeout=100.0,
        slots=4,
        rates=Rates(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def policy(recipe_: Recipe | None = None, **changes: object) -> Policy:
    """A small policy; fields may be changed, those of a role for both roles."""
    own = set(RolePolicy.__dataclass_fields__) & set(changes)
    of_roles = {name: changes.pop(name) for name in own}
    values: dict[str, object] = {
        "recipe": recipe_ or recipe(),
        "roles": {
            Role.GENERATE: role_policy(("http://g/v1",), "vlm", **of_roles),
            Role.GRADE: role_policy(("http://j/v1",), "o4-mini", **of_roles),
        },
        "max_n": 4,
        "grade_tokens": 1000,
        "reasoning_effort": "",
        "max_attempts": 5,
        "max_age": 86400.0,
        "backoff": 1.0,
        "backoff_max": 30.0,
        "probe_pause": 1.0,
        "quota_pause": 60.0,
        "patience": 0.0,
        "once": True,
    }
    values.update(changes)
    return Policy(**values)  # type: ignore[arg-type]


def info_of(path: bytes) -> ImageInfo:
    """What preparing finds: the content is the path up to a `+`, so `a+1` duplicates `a+2`."""
    return ImageInfo(
        sha256=path.partition(b"+")[0].hex().ljust(64, "0"),
        width=100,
        height=100,
        format="PNG",
        bytes=10,
    )


def answer(task: Generate, index: int, seed: int) -> str:
    """The generator's pure answer."""
    return f"{task.sha256[:6]} {task.prompt} {task.params} {seed} {index - index}"


def score(content: str, number: int) -> float:
    """The grader's pure score."""
    return random.Random(f"{content}:{number}").randrange(1000) / 10


@dataclass
class Store:
    """The writer as plain data: applies each fact once, in order."""

    queue: list[QueuedImage] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    candidates: dict[tuple[str, int], Candidate] = field(default_factory=dict)
    grades: dict[tuple[str, int, int], Grade] = field(default_factory=dict)
    failed: set[tuple[str, int]] = field(default_factory=set)
    failed_grades: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    decided: dict[str, ImageDecided] = field(default_factory=dict)
    aside: dict[str, ImageSetAside] = field(default_factory=dict)
    started: dict[str, ImageStarted] = field(default_factory=dict)
    steps: list[StepChosen] = field(default_factory=list)
    spent: list[CallSpent] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    allotments: dict[str, int] = field(default_factory=dict)  #: of images that were retried
    seq: int = 0

    def apply(self, fact: Fact) -> None:
        match fact:
            case ImageEnrolled(path=path):
                self.queue.append(
                    QueuedImage(
                        queue_seq=len(self.queue) + 1,
                        image=image_id(path, 0),
                        path=path,
                        version=0,
                        status="queued",
                    )
                )
            case ImageStarted(image=image, info=info):
                assert image not in self.started, "started twice"
                self.started[image] = fact
                self.owners.setdefault(info.sha256, image)
            case StepChosen():
                self.steps.append(fact)
            case CandidateMade(image=image, candidate=candidate):
                assert image not in self.decided, "work for a decided image"
                assert (image, candidate.index) not in self.candidates, "made twice"
                self.candidates[image, candidate.index] = candidate
            case CandidateGraded(image=image, grade=grade):
                assert image not in self.decided, "work for a decided image"
                assert (image, grade.index, grade.number) not in self.grades, "graded twice"
                self.grades[image, grade.index, grade.number] = grade
            case SampleFailed(image=image, index=index):
                self.failed.add((image, index))
            case GradingFailed(image=image, index=index, number=number):
                self.failed_grades.setdefault(image, []).append((index, number))
            case CallSpent():
                self.spent.append(fact)
            case DecodeCrashed(image=image):
                self.crashes.append(image)
            case ImageDecided(image=image):
                assert image not in self.decided
                self.decided[image] = fact
            case ImageSetAside(image=image):
                assert image not in self.decided
                self.aside[image] = fact

    def retry(self, path: bytes) -> None:
        """A person asks for a decided image again."""
        image = image_id(path, 0)
        info = self.started.pop(image).info
        self.decided.pop(image, None)
        self.aside.pop(image, None)
        self.failed = {where for where in self.failed if where[0] != image}
        self.failed_grades.pop(image, None)
        row = QueuedImage(
            queue_seq=len(self.queue) + 1,
            image=image,
            path=path,
            version=0,
            status="queued",
            sha256=info.sha256,
            started=True,
        )
        self.queue.append(row)

    def history(self, image: str, info: ImageInfo) -> ImageHistory:
        """All that is known of an image."""
        return ImageHistory(
            image=image,
            path=b"",
            version=0,
            sha256=info.sha256,
            info=info,
            config="",
            decision=0,
            allotment=self.allotments.get(image, 1),
            steps=tuple(s for s in self.steps if s.image == image),
            candidates=tuple(c for (i, _), c in self.candidates.items() if i == image),
            grades=tuple(g for (i, _, _), g in self.grades.items() if i == image),
            failed_samples=tuple(index for i, index in self.failed if i == image),
            failed_grades=tuple(self.failed_grades.get(image, ())),
        )


class World:
    """Runs a brain to its end: `rng` picks what happens next, `trouble` what fails."""

    def __init__(
        self, rng: random.Random, policy_: Policy, trouble=None, kills: float = 0.0
    ) -> None:
        self.rng = rng
        self.policy = policy_
        self.brain = Brain(policy_)
        self.store = Store()
        self.trouble = trouble or (lambda task, now: None)
        self.kills = kills
        self.now = 0.0
        self.leases: dict[str, dict[int, object]] = {}
        self.facts: list[tuple[int, Fact]] = []
        self.questions: list[object] = []
        self.finished = False
        self.calls: dict[object, int] = {}
        self.most: dict[str, int] = {}
        self.ended: list[events.Ended] = []
        self._workers = 0
        self._told = 0

    def think(self, event: events.Event) -> None:
        for action in self.brain.handle(event, self.now, 1000.0 + self.now):
            self.act(action)
        self.check()

    def act(self, action: Action) -> None:
        match action:
            case Assign(worker=worker, lease=lease):
                self.leases[worker][lease.lease] = lease.task
            case Persist(seq=seq, fact=fact):
                self.facts.append((seq, fact))
            case Ask(query=query):
                self.questions.append((self.brain.turn.seq, query))
            case Finished():
                self.finished = True
            case events.Ended():
                self.ended.append(action)
            case events.KillWorker(worker=worker):
                self.kill(worker)

    def check(self) -> None:
        for worker, leases in self.leases.items():
            calls = [
                t for t in leases.values() if not isinstance(t, Prepare | ReadLoad | ProbeSampling)
            ]
            self.most[worker] = max(self.most.get(worker, 0), len(calls))
            slots = self.slots
            assert len(calls) <= slots + max(1, slots // 8)
        assert len(self.brain.intake.window) <= 256

    @property
    def slots(self) -> int:
        """Threads of every worker, whatever its role."""
        return self.policy.roles[Role.GENERATE].slots

    def hire(self, role: Role) -> None:
        self._workers += 1
        name = f"{role}-{self._workers}"
        self.leases[name] = {}
        self.think(events.WorkerUp(worker=name, role=role, slots=self.slots))

    def kill(self, worker: str) -> None:
        self.leases.pop(worker)
        self.think(events.WorkerGone(worker=worker))
        self.hire(Role(worker.partition("-")[0]))

    def open(self, paths: list[bytes]) -> None:
        self.think(events.Started(stats=Stats(backlog_high=len(self.store.queue)), dialects=()))
        for _ in range(2):
            self.hire(Role.GENERATE)
            self.hire(Role.GRADE)
        facts = tuple(ImageEnrolled(path=p, size=1, mtime_ns=1, time=0.0) for p in paths)
        self.think(FilesSeen(facts=facts))
        self.think(events.ScanDone(only=None))

    def run(self, paths: list[bytes], limit: int = 200_000) -> None:
        """Until `Finished`; asserts that something can always go on."""
        self.open(paths)
        for _ in range(limit):
            if self.finished:
                return
            self.step()
        raise AssertionError(f"not finished: {self.brain.rounds.images or self.brain.intake}")

    def answerable(self, worker: str) -> list[int]:
        """Its leases of which any may be answered next."""
        return list(self.leases[worker])

    def step(self) -> None:
        choices = ["tick"]
        if self.facts:
            choices += ["commit"] * 3
        if self.questions:
            choices += ["reply"] * 3
        busy = [w for w in self.leases if self.answerable(w)]
        if busy:
            choices += ["work"] * 8
            if self.rng.random() < self.kills:
                choices = ["kill"]
        match self.rng.choice(choices):
            case "tick":
                self.now += self.rng.choice((0.25, 1.0, 5.0))
                self.think(events.Tick())
            case "commit":
                self.commit(self.rng.randint(1, len(self.facts)))
            case "reply":
                self.reply()
            case "kill":
                self.kill(self.rng.choice(busy))
            case "work":
                worker = self.rng.choice(busy)
                lease = self.rng.choice(self.answerable(worker))
                task = self.leases[worker].pop(lease)
                self.now += 0.1
                self.think(events.Replied(worker=worker, reply=self.work(lease, task)))

    def commit(self, count: int) -> None:
        for seq, fact in self.facts[:count]:
            self.store.apply(fact)
            self.store.seq = seq
        del self.facts[:count]
        self.think(Committed(seq=self.store.seq, stats=Stats(backlog_high=len(self.store.queue))))

    def reply(self) -> None:
        after, query = self.questions.pop(0)
        while self.facts and self.facts[0][0] <= after:
            self.commit(1)
        if isinstance(query, ReadBacklog):
            rows = [q for q in self.store.queue if q.queue_seq > query.after][: query.count]
            self.think(BacklogPage(query=query.query, images=tuple(rows)))
        elif isinstance(query, FindContent):
            owner = self.store.owners.get(query.sha256)
            asker = query.image
            rows = {q.image: q for q in self.store.queue if q.started}
            history = None
            if asker in rows:
                history = self.store.history(asker, info_of(rows[asker].path))
            self.think(
                ContentFound(
                    query=query.query,
                    sha256=query.sha256,
                    image=asker,
                    owner=owner,
                    history=history,
                )
            )

    def score(self, task: GradeCandidates, content: str, number: int) -> float:
        """What the grader gives."""
        return score(content, number)

    def work(self, lease: int, task: object):
        error = self.trouble(task, self.now)
        if error is not None:
            return Failed(lease=lease, error=error)
        if isinstance(task, Prepare):
            return Prepared(lease=lease, image=task.image, info=info_of(task.path))
        if isinstance(task, Probe):
            model = task.model or "served"
            return Probed(lease=lease, model=model, models=(model,))
        if isinstance(task, ProbeSampling):
            return SamplingProbed(lease=lease)
        if isinstance(task, ReadLoad):
            waiting = self.rng.choice((0.0, 0.0, 1.0, 20.0))
            return LoadRead(lease=lease, running=8.0, waiting=waiting)
        if isinstance(task, Generate):
            for k, index in enumerate(task.samples):
                key = (task.image, index)
                self.calls[key] = self.calls.get(key, 0) + 1
                assert k == 0 or task.params.temperature > 0
            return Generated(
                lease=lease,
                completions=tuple(
                    Completion(content=answer(task, i, task.seed + k), finish_reason="stop")
                    for k, i in enumerate(task.samples)
                ),
                usage=Usage(),
                seconds=1.0,
                model=task.model,
                timestamp=0.0,
            )
        assert isinstance(task, GradeCandidates)
        return Graded(
            lease=lease,
            grades=tuple(
                GradeGiven(
                    index=a.index,
                    number=a.number,
                    score=self.score(task, a.content, a.number),
                    explanation="",
                )
                for a in task.candidates
            ),
            usage=Usage(),
            seconds=1.0,
            model=task.model,
            timestamp=0.0,
        )


def transient(reason: str = "timeout") -> CallError:
    """A time-out."""
    return CallError(error=ErrorClass.TRANSIENT, message="timed out", reason=reason)
