"""The brain as a state machine: hypothesis chooses what happens next, in any order.

The brain, the writer client and the store are the real ones; only the processes around them are
played, so that every loss, repetition and delay is possible between any two steps. After each step
the invariants of `Hub.check` hold; at the end the disturbance stops and every image must come to
its end as its bytes deserve, with the winner of an undisturbed run.
"""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rsd.errors import ErrorClass
from rsd.hub.brain import events
from rsd.protocol.facts import ImageEnrolled, ImageGone, ImageRetried, Numbered
from rsd.protocol.tasks import (
    Completion,
    Decoding,
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
from rsd.protocol.vocabulary import CallError, Role, Usage, path_key
from rsd.state import view
from rsd.state.records import (
    ACTIVE,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    WITHDRAWN,
    PathRecord,
    key32,
)
from rsd.state.store import Store
from rsd.state.tallies import score_of
from rsd.state.transaction import Transaction
from tests.histories import dump, info_of, sha
from tests.recount import recount
from tests.unit.machine import CONTENTS, LASTING, PASSING, PATHS, RECIPES, Hub
from tests.unit.world import answer, score

FOLDER = next((p for p in (Path("/dev/shm"), Path("/tmp")) if p.is_dir()), None)


@functools.cache
def winners(which: int) -> dict[str, tuple[int | None, float | None]]:
    """Content -> winner and score when nobody disturbs."""
    machine = BrainMachine()
    machine.begin(which)
    for path, name in zip(PATHS, CONTENTS[:3], strict=False):
        machine.write_file(path, name)
    machine.run_out()
    with machine.store.reading() as txn:
        found = [view.image_at(txn, path) for path in PATHS[:3]]
    machine.close()
    return {r.sha256: (r.winner, r.score) for r in found if r is not None}


class BrainMachine(RuleBasedStateMachine):
    """Files come, change and go; workers, writer and hub die; servers fail; words get lost."""

    @initialize(which=st.integers(0, len(RECIPES) - 1))
    def begin(self, which: int) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FOLDER))
        self.store = Store(self.folder, map_size=1 << 26)
        self.which = which
        self.files: dict[bytes, str] = {}
        self.mtime = 0
        self.lives = 0
        self.touched: set[bytes] = set()  # retried, or met by an error that lasts
        self.lasting: set[str] = set()
        self.start()
        for path, content in zip(PATHS, CONTENTS, strict=False):
            self.write_file(path, content)
        self.go_on(4, random.Random(which))

    def start(self) -> None:
        self.lives += 1
        self.hub = Hub(self.store, RECIPES[self.which], self.lives)
        for role in (Role.GENERATE, Role.GENERATE, Role.GRADE):
            self.hub.hire(role)

    def teardown(self) -> None:
        if not hasattr(self, "hub"):
            return
        try:
            self.run_out()
            recount(self.store)
            self.everything_has_its_end()
        finally:
            self.close()

    def close(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------------- files

    @rule(path=st.sampled_from(PATHS), content=st.sampled_from(CONTENTS))
    def write_file(self, path: bytes, content: str) -> None:
        self.files[path] = content
        self.mtime += 1
        self.see(path)

    @rule(path=st.sampled_from(PATHS))
    def see(self, path: bytes) -> None:
        """The watcher reports a file, perhaps not for the first time."""
        if path in self.files:
            fact = ImageEnrolled(path=path, size=1, mtime_ns=self.mtime, time=0.0)
            self.hub.think(events.FilesSeen(facts=(fact,)))

    @rule(path=st.sampled_from(PATHS))
    def remove(self, path: bytes) -> None:
        if self.files.pop(path, None) is not None:
            fact = ImageGone(path=path, time=0.0)
            self.hub.think(events.PathsGone(facts=(fact,)))

    @rule(path=st.sampled_from(PATHS), fresh=st.booleans())
    def retry(self, path: bytes, fresh: bool) -> None:
        with self.store.reading() as txn:
            record = view.image_at(txn, path)
        if record is not None:
            self.touched.add(path)
            fact = ImageRetried(image=record.image, fresh=fresh, time=0.0)
            self.hub.think(events.RetryAsked(facts=(fact,)))

    # ------------------------------------------------------------------------------------- time

    @rule(seconds=st.sampled_from((0.1, 2.0, 40.0, 400.0, 1000.0)))
    def time_passes(self, seconds: float) -> None:
        self.hub.now += seconds
        self.hub.think(events.Tick())
        self.hub.retire()

    @rule(level=st.sampled_from(("normal", "reduced", "paused")))
    def pressure(self, level: str) -> None:
        factor = {"normal": 1.0, "reduced": 0.5, "paused": 0.0}[level]
        self.hub.think(events.HostPressure(level=level, factor=factor))

    # ------------------------------------------------------------------------------------ workers

    def lent(self) -> list[tuple[str, int]]:
        return [(w, lease) for w, held in self.hub.leases.items() for lease in held]

    @rule(pick=st.integers(0, 99), times=st.integers(1, 12))
    def work(self, pick: int, times: int) -> None:
        for _ in range(times):
            lent = self.lent()
            if not lent:
                return
            worker, lease = lent[pick % len(lent)]
            self.reply(worker, lease, self.done(lease, self.hub.leases[worker].pop(lease)))

    @rule(steps=st.integers(1, 6), picks=st.randoms(use_true_random=False))
    def go_on(self, steps: int, picks: random.Random) -> None:
        """A while in which most things go well, so that the rest meets images in the middle."""
        for _ in range(steps):
            self.work(picks.randrange(100), picks.randint(1, 6))
            if picks.random() < 0.1:
                self.mishap(picks.randrange(100), picks.choice(PASSING))
            self.time_passes(0.5)
            self.hub.write(picks.randint(1, 12))

    @rule(pick=st.integers(0, 99), error=st.sampled_from(PASSING))
    def fail(self, pick: int, error: CallError) -> None:
        self.mishap(pick, error)

    @rule(pick=st.integers(0, 99), error=st.sampled_from(LASTING))
    def fail_for_good(self, pick: int, error: CallError) -> None:
        self.mishap(pick, error, (Generate, GradeCandidates))

    def mishap(
        self,
        pick: int,
        error: CallError,
        kinds: tuple[type, ...] = (Generate, GradeCandidates, Probe),
    ) -> None:
        calls = [(w, i) for w, i in self.lent() if isinstance(self.hub.leases[w][i], kinds)]
        if calls:
            worker, lease = calls[pick % len(calls)]
            task = self.hub.leases[worker].pop(lease)
            if error in LASTING and isinstance(task, Generate | GradeCandidates):
                self.lasting.add(task.sha256)
            self.reply(worker, lease, Failed(lease=lease, error=error))

    @rule(pick=st.integers(0, 99))
    def spool_is_missing(self, pick: int) -> None:
        calls = [
            (w, i)
            for w, i in self.lent()
            if isinstance(self.hub.leases[w][i], Generate | GradeCandidates)
        ]
        if calls:
            worker, lease = calls[pick % len(calls)]
            self.hub.leases[worker].pop(lease)
            error = CallError(error=ErrorClass.BAD_IMAGE, message="gone", reason="spool_missing")
            self.reply(worker, lease, Failed(lease=lease, error=error))

    @rule(pick=st.integers(0, 99))
    def lose_the_answer(self, pick: int) -> None:
        """The call is made, its answer never arrives: the lease must run out."""
        lent = self.lent()
        if lent:
            worker, lease = lent[pick % len(lent)]
            self.hub.past.append((worker, lease))

    @rule(pick=st.integers(0, 99))
    def say_it_again(self, pick: int) -> None:
        """A reply for a lease that has ended, of a living or a dead worker."""
        if self.hub.past:
            worker, lease = self.hub.past[pick % len(self.hub.past)]
            if lease not in self.hub.leases.get(worker, {}):
                error = CallError(error=ErrorClass.REFUSED, message="stale", reason="refusal")
                reply = Failed(lease=lease, error=error)
                self.hub.think(events.Replied(worker=worker, reply=reply))

    @rule(pick=st.integers(0, 99), decoding=st.booleans())
    def kill_a_worker(self, pick: int, decoding: bool) -> None:
        names = sorted(self.hub.leases)
        if not names:
            return
        name = names[pick % len(names)]
        for lease, task in self.hub.leases[name].items():
            if decoding and isinstance(task, Prepare):
                self.touched.add(task.path)
                reply = Decoding(lease=lease, image=task.image)
                self.hub.think(events.Replied(worker=name, reply=reply))
                break
        self.hub.kill(name)

    @rule(role=st.sampled_from(Role))
    def hire(self, role: Role) -> None:
        if sum(name.startswith(role + "-") for name in self.hub.leases) < 3:
            self.hub.hire(role)

    @rule(pick=st.integers(0, 99))
    def replace_a_worker(self, pick: int) -> None:
        names = sorted(self.hub.leases)
        if names and len(names) < 9:
            self.hub.replace_worker(names[pick % len(names)])

    @rule(
        model=st.sampled_from(("vlm", "another")),
        cap=st.sampled_from((1, 3, 8)),
        servers=st.integers(1, 2),
    )
    def reload(self, model: str, cap: int, servers: int) -> None:
        self.hub.reload(model, cap, servers)

    @rule(model=st.sampled_from(("o4-mini", "another")))
    def reload_grader(self, model: str) -> None:
        self.touched |= set(PATHS)  # its scores are others
        self.hub.reload_grader(model)

    def reply(self, worker: str, lease: int, reply: Any) -> None:
        self.hub.past.append((worker, lease))
        loan = self.hub.brain.dispatch.leases.loans.get(lease)
        if isinstance(reply, Generated) and loan is not None and loan.worker == worker:
            self.hub.paid |= {(loan.item.image, index) for index in loan.item.indices}
        self.hub.now += 0.1
        self.hub.think(events.Replied(worker=worker, reply=reply))

    def done(self, lease: int, task: Any) -> Any:
        """What a worker answers when all goes well."""
        match task:
            case Prepare(image=image, path=path):
                content = self.files.get(path)
                bad = functools.partial(CallError, error=ErrorClass.BAD_IMAGE, message="bad")
                if content is None:
                    return Failed(lease=lease, error=bad(reason="vanished"))
                if content == "broken":
                    return Failed(lease=lease, error=bad(reason="corrupt", sha256=sha(content)))
                return Prepared(lease=lease, image=image, info=info_of(content))
            case ReadLoad():
                return LoadRead(lease=lease, running=4.0, waiting=float(lease % 3))
            case ProbeSampling():
                return SamplingProbed(lease=lease, usage=Usage(output_tokens=30))
            case Probe(model=model):
                return Probed(lease=lease, model=model, models=(model,))
            case Generate():
                texts = [answer(task, i, task.seed + k) for k, i in enumerate(task.samples)]
                completions = tuple(Completion(content=t, finish_reason="stop") for t in texts)
                n = len(texts)
                return Generated(
                    lease=lease,
                    completions=completions,
                    usage=Usage(input_tokens=10 * n, output_tokens=5 * n),
                    seconds=0.5,
                    model=task.model,
                    timestamp=0.0,
                )
            case GradeCandidates():
                grades = tuple(
                    GradeGiven(
                        index=a.index,
                        number=a.number,
                        score=score(a.content, a.number),
                        explanation="",
                    )
                    for a in task.candidates
                )
                n = len(grades)
                return Graded(
                    lease=lease,
                    grades=grades,
                    usage=Usage(input_tokens=20 * n, output_tokens=2 * n),
                    seconds=0.25,
                    model=task.model,
                    timestamp=0.0,
                )

    # ------------------------------------------------------------------------- writer and hub

    @rule(messages=st.integers(1, 40))
    def writer_works(self, messages: int) -> None:
        self.hub.write(messages)

    @rule()
    def writer_dies(self) -> None:
        self.hub.writer_dies()

    @rule(messages=st.integers(1, 40))
    def writer_dies_unheard(self, messages: int) -> None:
        self.hub.write(messages, heard=False)

    @rule(messages=st.integers(1, 40))
    def writer_applies_twice(self, messages: int) -> None:
        """The same facts in the next transaction: nothing may change."""
        sent = [m for m in self.hub.to_writer[:messages] if isinstance(m, Numbered)]
        self.hub.write(messages)
        before = dump(self.store)
        self.hub.to_writer[:0] = sent
        if sent:
            self.hub.write(len(sent))
        assert dump(self.store) == before, "a fact that comes twice counts twice"

    @rule(chance=st.integers(0, 3))
    def hub_dies(self, chance: int) -> None:
        """What was not committed is lost; the folder is scanned again."""
        if chance:
            return
        self.start()
        for path in self.files:
            self.see(path)
        with self.store.reading() as txn:
            for path in PATHS:
                known = txn.load("paths", path_key(path), PathRecord)
                if known is not None and not known.gone and path not in self.files:
                    fact = ImageGone(path=path, time=0.0)
                    self.hub.think(events.PathsGone(facts=(fact,)))

    # ---------------------------------------------------------------------------------- checks

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "hub"):
            self.hub.check()
            with self.store.reading() as txn:
                stats = txn.stats()
                counted = Counter(status for status, *_ in self.classes(txn))
            kept = (QUEUED, ACTIVE, HIGH, LOW, FAILED, DUPLICATE, WITHDRAWN)
            assert stats.seen == sum(getattr(stats, name) for name in kept)
            assert all(getattr(stats, name) == counted[name] for name in kept)

    def classes(self, txn: Transaction) -> list[tuple[str, bytes, int]]:
        found = []
        for path in PATHS:
            record = view.image_at(txn, path)
            if record is not None:
                found.append((record.status, path, record.version))
        return found

    def run_out(self) -> None:
        """The disturbance stops: everything must end."""
        self.hub.think(events.HostPressure(level="normal"))
        for path in self.files:
            self.see(path)
        for role in Role:
            if not self.hub.staffed(role):
                self.hub.hire(role)
        for _ in range(5_000):
            if self.lent():
                self.work(0, 50)
            self.hub.write(200)
            for role in Role:
                if not self.hub.staffed(role):
                    self.hub.hire(role)
            self.time_passes(1.0)
            self.hub.check()
            with self.store.reading() as txn:
                stats, backlog = txn.stats(), txn.entries("backlog")
            quiet = not (self.hub.to_writer or self.lent() or backlog)
            if quiet and not stats.queued and not stats.active:
                break
        else:
            raise AssertionError(f"not at an end: {self.hub.brain.rounds.images} {stats}")

    def everything_has_its_end(self) -> None:
        with self.store.reading() as txn:
            found = {p: view.image_at(txn, p) for p in PATHS}
            stored = {txn.get("candidates", key32(i, index)) for i, index in self.hub.paid}
        assert None not in stored, "an answer that was paid for is lost"
        holders: dict[str, list[str]] = {}
        for path, content in self.files.items():
            record = found[path]
            assert record is not None, f"{path!r} is forgotten"
            if record.status == FAILED and record.reason == "crashes_worker":
                assert path in self.touched
                continue
            if content == "broken":
                assert record.status == FAILED and record.reason == "corrupt", record
                continue
            assert record.sha256 == sha(content), "the result is of other bytes"
            holders.setdefault(content, []).append(record.status)
            if record.status in (HIGH, LOW):
                with self.store.reading() as txn:
                    seen = view.view(txn, record)
                winner = seen.grades[record.winner if record.winner is not None else -1]
                assert record.score == score_of(winner, seen.rubric), "grades of two rubrics"
                quality = "high" if (record.score or 0) >= 60 else "low"
                assert (record.status == HIGH) == (quality == "high")
                plain = record.sha256 not in self.lasting and path not in self.touched
                if plain and record.allotment == 1:
                    expected = winners(self.which)[record.sha256]
                    assert (record.winner, record.score) == expected, "another winner"
            elif record.status == FAILED:
                assert record.sha256 in self.lasting, f"failed without a cause: {record.reason}"
            else:
                assert record.status == DUPLICATE, f"{path!r} ends as {record.status}"
        for content, statuses in holders.items():
            owners = [s for s in statuses if s in (HIGH, LOW)]
            failed = statuses.count(FAILED)
            assert len(owners) <= 1, f"two results for {content}"
            elsewhere = any(
                r is not None and r.sha256 == sha(content) and r.status in (HIGH, LOW)
                for p, r in found.items()
                if p not in self.files
            )
            assert owners or failed or elsewhere, f"no result for {content}"


BrainMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestBrainMachine = BrainMachine.TestCase
