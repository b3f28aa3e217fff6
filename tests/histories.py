"""Histories of facts, as a hub would send them: chosen at random, but never a lie.

`FactSource` looks into a real store to know what a hub would know, and applies facts through
`Application`, one transaction each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from rsd.errors import ErrorClass
from rsd.protocol import facts as f
from rsd.protocol.learned import nothing_learned
from rsd.protocol.vocabulary import (
    Arm,
    CallError,
    Candidate,
    Grade,
    ImageInfo,
    Recipe,
    Role,
    SamplingParams,
    Usage,
    image_id,
)
from rsd.protocol.writer_talk import QueuedImage
from rsd.state import view
from rsd.state.records import (
    ACTIVE,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    ImageRecord,
)
from rsd.state.store import NAMES, Store
from rsd.state.tallies import score_of
from rsd.state.transaction import Transaction, decode
from rsd.writer.apply import Application

PATHS = (b"a.png", b"deep/b.png", b"\xff.png", b"d.png")
#: What a file may hold: pictures, a bad one that can be hashed, one that cannot even be read.
CONTENTS = ("cat", "dog", "owl", "elk", "fox", "broken", "unreadable")
ERROR = CallError(error=ErrorClass.REFUSED, message="no", reason="content_filter")

RECIPE = Recipe(
    prompts={"p1": "What is this?", "p2": "Describe it."},
    grading_template="{generated_answer}",
    strategy="random",
    candidates=2,
    seed=0,
    temperatures=(0.3, 1.0),
    top_ps=(0.9,),
    top_ks=(40,),
    min_p=0.0,
    repetition_penalty=1.0,
    max_tokens=64,
    score_threshold=80.0,
    stop_score=None,
    repeats=1,
    list_size=6,
    generator_model="m",
    grader_model="g",
)
#: Another way of grading: what was graded by the first is history to it.
STRICT = msgspec.structs.replace(RECIPE, grading_template="Be strict: {generated_answer}")

#: The same rubric, by the strategy that learns.
ADAPTIVE = msgspec.structs.replace(RECIPE, strategy="adaptive")

#: What another run has learned of the same models and rubric.
PRIOR = msgspec.structs.replace(nothing_learned(ADAPTIVE), prior_images=7)


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def info_of(content: str) -> ImageInfo:
    return ImageInfo(sha256=sha(content), width=96, height=64, format="PNG", bytes=len(content))


def candidate(index: int, *, round: int = 0, time: float = 0.0) -> Candidate:
    return Candidate(
        index=index,
        round=round,
        prompt_key=("p1", "p2")[index % 2],
        params=SamplingParams(temperature=(0.3, 1.0)[index // 2 % 2], top_p=0.9, top_k=40),
        seed=index,
        content=f"answer {index}",
        finish_reason="stop",
        generation_time=0.5,
        usage=Usage(input_tokens=10, output_tokens=5),
        model="m",
        endpoint="http://127.0.0.1:1/v1",
        config=RECIPE.fingerprint,
        timestamp=time,
    )


def grade(
    index: int, score: float, *, number: int = 0, time: float = 0.0, rubric: str = RECIPE.rubric
) -> Grade:
    return Grade(
        index=index,
        number=number,
        score=score,
        explanation=f"because {score:g}",
        grading_time=0.25,
        usage=Usage(input_tokens=20, output_tokens=2),
        model="g",
        endpoint="http://127.0.0.1:2/v1",
        timestamp=time,
        rubric=rubric,
    )


def apply_facts(store: Store, facts: list[f.Numbered], life: str) -> None:
    """Apply facts in one transaction, as the writer does."""

    def work(txn: Transaction) -> None:
        application = Application(txn, life)
        for numbered in facts:
            application.apply(numbered)
        application.finish()

    store.write(work)


def dump(store: Store) -> dict[str, dict[bytes, bytes]]:
    """Everything that is stored."""
    with store.reading() as txn:
        return {name: dict(txn.scan(name)) for name in NAMES}


class FactSource:
    """Adds facts. `n` of each operation picks its target and its details."""

    def __init__(
        self, store: Store, *, life: str = "life-0", paths: tuple[bytes, ...] = PATHS
    ) -> None:
        self.store = store
        self.paths = paths
        self.life = life
        self.facts: list[f.Numbered] = []  #: in this life
        self.all_facts: list[tuple[str, f.Numbered]] = []  #: in all lives
        self.files: dict[bytes, str] = {}
        self.now = 1000.0
        self.recipe = RECIPE
        self.add(f.ConfigStored(recipe=RECIPE))
        self.operations: dict[str, Callable[[int], None]] = {
            "enrol": self.enrol,
            "touch": self.touch,
            "gone": self.gone,
            "take": self.take,
            "work": self.work,
            "end": self.end,
            "crash": self.crash,
            "retry": self.retry,
            "restart": self.restart,
            "spend": self.spend,
            "rubric": self.rubric,
        }

    def add(self, fact: f.Fact) -> None:
        self.now += 1.0
        numbered = f.Numbered(seq=len(self.facts) + 1, fact=fact)
        apply_facts(self.store, [numbered], self.life)
        self.facts.append(numbered)
        self.all_facts.append((self.life, numbered))

    def record(self, path: bytes) -> ImageRecord:
        """The current version at a path."""
        with self.store.reading() as txn:
            found = view.image_at(txn, path)
        assert found is not None
        return found

    def images(self, *classes: str) -> list[ImageRecord]:
        with self.store.reading() as txn:
            found = [decode(ImageRecord, value) for _, value in txn.scan("images")]
        return [r for r in found if r.status in classes]

    # ------------------------------------------------------------------------------------- files

    def put(self, path: bytes, content: str) -> ImageRecord:
        """Write a file, and let the watcher see it."""
        self.files[path] = content
        self.add(
            f.ImageEnrolled(path=path, size=len(content), mtime_ns=int(self.now), time=self.now)
        )
        return self.record(path)

    def enrol(self, n: int) -> None:
        self.put(self.paths[n % len(self.paths)], CONTENTS[n // len(self.paths) % len(CONTENTS)])

    def touch(self, n: int) -> None:
        if self.files:
            path = sorted(self.files)[n % len(self.files)]
            self.put(path, self.files[path])

    def gone(self, n: int) -> None:
        if self.files:
            path = sorted(self.files)[n % len(self.files)]
            del self.files[path]
            self.add(f.ImageGone(path=path, time=self.now))

    # ------------------------------------------------------------------------------------- intake

    def take(self, n: int) -> None:
        """Prepare a queued image: what `hub/brain/intake.py` does."""
        with self.store.reading() as txn:
            page = view.backlog_page(txn, 0, 8)
        if page:
            self.prepare(page[n % len(page)])

    def prepare(self, queued: QueuedImage) -> None:
        content = self.files.get(queued.path, "vanished")
        known = queued.status != QUEUED
        hashed = "" if content in ("unreadable", "vanished") else sha(content)
        if content in ("broken", "unreadable", "vanished"):
            if known and (content == "vanished" or (hashed and hashed == queued.sha256)):
                self.add(f.ImageChecked(image=queued.image, queue_seq=queued.queue_seq))
            else:
                status = "withdrawn" if content == "vanished" else "failed"
                self.aside(queued, status, content, sha256=hashed)
            return
        if known and queued.sha256 == hashed:
            self.add(f.ImageChecked(image=queued.image, queue_seq=queued.queue_seq))
            return
        mine, version = identity(queued, hashed)
        with self.store.reading() as txn:
            owner = view.content_owner(txn, hashed)
            own = view.image_record(txn, mine)
        continued = own.config if own is not None and own.continues else ""
        if owner is not None and owner != mine:
            self.aside(
                queued, "duplicate", "same_content", sha256=hashed, of=owner, info=info_of(content)
            )
            return
        self.add(
            f.ImageStarted(
                image=mine,
                queued_as=queued.image,
                queue_seq=queued.queue_seq,
                path=queued.path,
                version=version,
                info=info_of(content),
                config=continued or self.recipe.fingerprint,
                time=self.now,
            )
        )

    def aside(
        self,
        queued: QueuedImage,
        status: str,
        reason: str,
        *,
        sha256: str = "",
        of: str = "",
        info: ImageInfo | None = None,
    ) -> None:
        mine, version = identity(queued, sha256)
        self.add(
            f.ImageSetAside(
                image=mine,
                status=status,
                reason=reason,
                of=of,
                info=info,
                sha256=sha256,
                queue_seq=queued.queue_seq,
                queued_as=queued.image,
                path=queued.path,
                version=version,
                time=self.now,
            )
        )

    def crash(self, n: int) -> None:
        if queued := self.images(QUEUED):
            self.add(f.DecodeCrashed(image=queued[n % len(queued)].image))

    # --------------------------------------------------------------------------------------- work

    def seen(self, record: ImageRecord) -> view.ImageView:
        with self.store.reading() as txn:
            return view.view(txn, record)

    def work(self, n: int) -> None:
        """The next thing that a worker could send for an active image, or one of its mishaps."""
        active = self.images(ACTIVE)
        if not active:
            return
        record = active[n % len(active)]
        seen, image = self.seen(record), record.image
        planned = [s.index for step in seen.steps for s in step.samples]
        if len(seen.steps) < record.allotment:
            arm = Arm(prompt_key="p1", params=candidate(0).params)
            first = max(planned, default=-1) + 1
            samples = tuple(
                f.PlannedSample(index=i, arm=arm, seed=i) for i in range(first, first + 2)
            )
            gradings = tuple(f.PlannedGrading(index=s.index, number=0) for s in samples)
            self.add(
                f.StepChosen(
                    image=image,
                    round=len(seen.steps),
                    samples=samples,
                    gradings=gradings,
                    rubric=seen.rubric,
                )
            )
            return
        made = {c.index for c in seen.candidates}
        for index in planned:
            if index not in made and index not in seen.sample_failures:
                if n % 5 == 0:
                    self.add(f.SampleFailed(image=image, index=index, error=ERROR, time=self.now))
                else:
                    answer = candidate(index, time=self.now)
                    self.add(f.CandidateMade(image=image, candidate=answer))
                return
        for index in sorted(made):
            given = seen.grades.get(index, [])
            number, mine = len(given), sum(g.rubric == seen.rubric for g in given)
            if mine < 2 and (index, number) not in seen.grade_failures:
                if n % 4 == 0:
                    self.add(
                        f.GradingFailed(
                            image=image, index=index, number=number, error=ERROR, time=self.now
                        )
                    )
                else:
                    graded = grade(
                        index, n * 7 % 101, number=number, time=self.now, rubric=seen.rubric
                    )
                    self.add(f.CandidateGraded(image=image, grade=graded))
                return

    def spend(self, n: int) -> None:
        """A call that gave nothing to keep."""
        usage = Usage(input_tokens=3, output_tokens=1, cached_tokens=2, reasoning_tokens=1)
        role = (Role.GENERATE, Role.GRADE)[n % 2]
        outcome = ("late", "truncated")[n // 2 % 2]
        self.add(f.CallSpent(role=role, endpoint="e", model="m", usage=usage, outcome=outcome))

    def end(self, n: int) -> None:
        """Decide an active image, or give it up when nothing of it is graded."""
        if active := self.images(ACTIVE):
            self.conclude(active[n % len(active)])

    def conclude(self, record: ImageRecord) -> None:
        seen = self.seen(record)
        found = {i: score_of(grades, seen.rubric) for i, grades in seen.grades.items()}
        scores = {i: score for i, score in found.items() if score is not None}
        if not scores:
            self.add(
                f.ImageSetAside(
                    image=record.image,
                    status="failed",
                    reason="ungraded",
                    info=record.info,
                    sha256=record.sha256,
                    queued_as=record.image,
                    path=record.path,
                    version=record.version,
                    time=self.now,
                )
            )
            return
        winner = min(scores, key=lambda i: (-scores[i], i))
        self.add(
            f.ImageDecided(
                image=record.image,
                decision=record.decision + 1,
                winner=winner,
                score=scores[winner],
                expected_score=scores[winner],
                quality="high" if scores[winner] >= RECIPE.score_threshold else "low",
                reason="all_drawn",
                time=self.now,
            )
        )

    def retry(self, n: int) -> None:
        if ended := self.images(FAILED, LOW, HIGH, DUPLICATE):
            record = ended[n % len(ended)]
            fresh = record.status in (LOW, HIGH)
            self.add(
                f.ImageRetried(image=record.image, fresh=fresh, first=n % 3 == 0, time=self.now)
            )

    def rubric(self, n: int) -> None:
        """A reload: images that start from now on are graded in this way."""
        self.recipe = (RECIPE, STRICT, ADAPTIVE)[n % 3]
        self.add(f.ConfigStored(recipe=self.recipe))

    def restart(self, n: int) -> None:
        """A new hub: its facts are numbered from 1."""
        self.life = f"life-{int(self.life.partition('-')[2]) + 1}"
        self.facts = []

    def conclude_all(self) -> None:
        """Until nothing is queued or active."""
        n = 1
        while True:
            with self.store.reading() as txn:
                stats, backlog = txn.stats(), txn.entries("backlog")
            if not stats.active and not backlog:
                return
            n += 1
            if backlog:
                self.take(n)
            for _ in range(12):
                self.work(n * 3 + 1)
            self.end(0)


def identity(queued: QueuedImage, sha256: str) -> tuple[str, int]:
    """As the hub reckons it: other bytes at a path are its next version."""
    if queued.sha256 and sha256 and queued.sha256 != sha256:
        return image_id(queued.path, queued.version + 1), queued.version + 1
    return queued.image, queued.version
