"""A hub without processes, for the state machine of the brain: the brain, the writer client and the
store are the real ones, the processes around them are played.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import msgspec

from rsd.errors import ErrorClass
from rsd.hub.brain import events
from rsd.hub.brain.brain import Brain
from rsd.hub.brain.events import Ask, Assign, KillWorker, Persist, Recall
from rsd.hub.brain.queue import WorkKind
from rsd.hub.children.writer_client import WriterClient
from rsd.protocol.facts import Numbered
from rsd.protocol.tasks import (
    Generate,
    GivenBack,
    GradeCandidates,
    Prepare,
    ProbeSampling,
    ReadLoad,
)
from rsd.protocol.vocabulary import CallError, Recipe, Role, SummaryConfig
from rsd.protocol.writer_talk import BacklogPage, Committed, FindContent, Open, ReadBacklog
from rsd.state import view
from rsd.state.store import Store
from rsd.state.transaction import Transaction
from rsd.writer.apply import Application
from tests.unit.world import policy, recipe, transient

PATHS = (b"a.png", b"b.png", b"deep/c.png", b"\xff.png", b"e.png")
#: Contents of files; `broken` cannot be decoded.
CONTENTS = ("cat", "dog", "owl", "broken")
small = functools.partial(recipe, top_ps=(0.9,), top_ks=(40,))
RECIPES = (
    small(candidates=2),
    small(candidates=4, repeats=2),
    small(stop_score=80.0, candidates=5),
    small(grading_template="score {candidate_answers}", candidates=5, list_size=3),
    small(prompts={"p1": "one"}, temperatures=(1.0,), candidates=4),
    small(strategy="adaptive", candidates_max=6, grades_max=3, min_gain=0.0),
    small(
        strategy="adaptive",
        candidates_max=6,
        grades_max=4,
        grading_template="score {candidate_answers}",
        list_size=2,
        consensus="off",
    ),
)
#: Errors that pass and consume nothing, however often they come.
PASSING = (
    transient(),
    CallError(error=ErrorClass.RATE_LIMITED, message="busy", retry_after=2.0),
    CallError(error=ErrorClass.QUOTA, message="no credit", reason="quota"),
    CallError(error=ErrorClass.MISCONFIGURED, message="key", reason="unauthorized"),
)
#: Errors that end a candidate or a grade.
LASTING = (
    CallError(error=ErrorClass.REFUSED, message="no", reason="refusal"),
    CallError(error=ErrorClass.BAD_REPLY, message="?", reason="unparsable"),
)


class Hub:
    """A hub without processes: the brain, the writer client, and what is on its way."""

    def __init__(self, store: Store, with_recipe: Recipe, life: int) -> None:
        self.store = store
        self.life = f"life-{life}"
        self.policy = policy(with_recipe, once=False, max_attempts=100_000)
        self.brain = Brain(self.policy)
        self.to_writer: list[msgspec.Struct] = []
        summary = SummaryConfig(
            image_dir="",
            prompt_keys=(),
            score_threshold=60.0,
            temperature_range=(),
            top_p_range=(),
            top_k_range=(),
        )
        opening = Open(
            state_dir="",
            output_dir="",
            life=self.life,
            recover=True,
            checkpoint_interval=1,
            summary=summary,
        )
        self.writer_client = WriterClient(opening, self.to_writer.append)
        self.leases: dict[str, dict[int, Any]] = {}
        self.past: list[tuple[str, Any]] = []
        self.now = 0.0
        self.hired = 0
        self.graders_changed = False
        self.paid: set[tuple[str, int]] = set()  #: answers that came while their lease was open
        with store.reading() as txn:
            active = [view.recovered(txn, image) for image in view.active_images(txn)]
            stats, dialects = txn.stats(), view.dialects(txn)
        self.writer_client.started(self.now)
        for found in active:
            assert found is not None, "an active image whose recipe is not stored"
            self.think(found)
        self.writer_client.opened(stats)
        self.think(events.Started(stats=stats, dialects=dialects))
        self.think(events.ScanDone(only=None))

    def think(self, event: events.Event) -> None:
        kills, recalled, lent = [], [], set()
        for action in self.brain.handle(event, self.now, 1000.0 + self.now):
            match action:
                case Assign(worker=worker, lease=lease):
                    self.leases[worker][lease.lease] = lease.task
                    self.allowed(lease.task)
                    if isinstance(lease.task, Generate | GradeCandidates):
                        lent.add(lease.task.endpoint)
                case Persist(seq=seq, fact=fact):
                    self.writer_client.fact(seq, fact)
                case Ask(query=query):
                    self.writer_client.ask(query)
                case KillWorker(worker=worker):
                    kills.append(worker)
                case Recall(worker=worker):
                    recalled.append(worker)
        for endpoint in self.brain.dispatch.endpoints:
            if endpoint.url in lent:  # a reload may have lowered the cap of what is under way
                running = min(endpoint.in_flight, self.brain.dispatch.leases.running(endpoint.role))
                assert running <= endpoint.cap, "more calls under way than the endpoint may have"
        for worker in kills:
            self.kill(worker)
        for worker in recalled:
            self.give_back(worker)

    def give_back(self, worker: str) -> None:
        """What no thread has taken yet: threads take leases in the order in which they came."""
        held = self.leases.get(worker, {})
        about = self.brain.dispatch.leases.workers.get(worker)
        calls = [
            k for k, t in held.items() if not isinstance(t, Prepare | ReadLoad | ProbeSampling)
        ]
        waiting = tuple(calls[about.slots :]) if about is not None else ()
        for lease in waiting:
            del held[lease]
        self.think(events.Replied(worker=worker, reply=GivenBack(leases=waiting)))

    def allowed(self, task: Any) -> None:
        """No call is made for what has its answer, for a decided image or for an unsaved step."""
        if not isinstance(task, Generate | GradeCandidates):
            return
        with self.store.reading() as txn:
            record = view.image_record(txn, task.image)
            assert record is not None, "a call for an image that the writer does not know"
            seen = view.view(txn, record)
        planned = {s.index for step in seen.steps for s in step.samples}
        made = {c.index for c in seen.candidates}
        if isinstance(task, Generate):
            assert set(task.samples) <= planned, "a call for a step that is not durable"
            assert not set(task.samples) & made, "a call for a candidate that is stored"
        else:
            graded = {(i, g.number) for i, grades in seen.grades.items() for g in grades}
            assert any((a.index, a.number) not in graded for a in task.candidates), "graded already"

    def hire(self, role: Role) -> None:
        self.hired += 1
        name = f"{role}-{self.hired}"
        self.leases[name] = {}
        self.think(events.WorkerUp(worker=name, role=role, slots=2))

    def staffed(self, role: Role) -> bool:
        """Whether anybody of a role takes leases."""
        workers = self.brain.dispatch.leases.workers.values()
        return any(w.role is role and w.hiring for w in workers)

    def replace_worker(self, name: str) -> None:
        """A reload replaces it: it ends with its last lease."""
        role = Role(name.partition("-")[0])
        self.think(events.WorkerLeaving(worker=name))
        self.hire(role)
        self.retire()

    def retire(self) -> None:
        """Leavers that hold nothing any more end."""
        for name in self.brain.dispatch.leases.idle_leavers():
            self.leases.pop(name)
            self.think(events.WorkerGone(worker=name, crashed=False))

    def reload(self, model: str, cap: int, servers: int) -> None:
        """Other settings: the generators' model, their number, and how much all may be asked."""
        urls = tuple(f"http://{name}/v1" for name in "gh"[:servers])
        roles = {
            role: replace(of, cap=cap * len(of.endpoints), endpoint_cap=cap)
            for role, of in self.policy.roles.items()
        }
        generate = replace(roles[Role.GENERATE], model=model, endpoints=urls, cap=cap * servers)
        self.policy = replace(self.policy, roles=roles | {Role.GENERATE: generate})
        self.think(events.PolicyChanged(policy=self.policy))

    def reload_grader(self, model: str) -> None:
        """Another grader: its grades do not mix with those of the former one."""
        with_grader = msgspec.structs.replace(self.policy.recipe, grader_model=model)
        grade = replace(self.policy.roles[Role.GRADE], model=model)
        roles = self.policy.roles | {Role.GRADE: grade}
        self.policy = replace(self.policy, roles=roles, recipe=with_grader)
        self.graders_changed = True
        self.think(events.PolicyChanged(policy=self.policy))

    def kill(self, worker: str) -> None:
        self.past += [(worker, lease) for lease in self.leases.pop(worker)]
        self.think(events.WorkerGone(worker=worker))

    # ------------------------------------------------------------------------------- the writer

    def write(self, messages: int, *, heard: bool = True) -> None:
        """The writer takes so many messages; unheard, it dies before it can say what it did."""
        taken, self.to_writer[:] = self.to_writer[:messages], self.to_writer[messages:]
        facts = [m for m in taken if isinstance(m, Numbered)]
        replies: list[msgspec.Struct] = []
        if facts:

            def work(txn: Transaction) -> None:
                application = Application(txn, self.life)
                for numbered in facts:
                    application.apply(numbered)
                application.finish()

            self.store.write(work)
            with self.store.reading() as txn:
                replies.append(Committed(seq=facts[-1].seq, stats=txn.stats()))
        for message in taken:
            with self.store.reading() as txn:
                match message:
                    case ReadBacklog(query=query, after=after, count=count):
                        page = view.backlog_page(txn, after, count)
                        replies.append(BacklogPage(query=query, images=tuple(page)))
                    case FindContent(query=query, sha256=content, image=image):
                        replies.append(view.content_found(txn, query, content, image))
        if heard:
            for reply in replies:
                self.hear(reply)
        else:
            self.writer_dies()

    def hear(self, reply: Any) -> None:
        if isinstance(reply, Committed):
            self.writer_client.committed(reply.seq, reply.stats)
            self.think(reply)
        elif self.writer_client.answered(reply.query) is not None:
            self.think(reply)

    def writer_dies(self) -> None:
        self.to_writer.clear()
        self.writer_client.gone()
        self.writer_client.started(self.now)
        with self.store.reading() as txn:
            stats = txn.stats()
        self.writer_client.opened(stats)

    # ------------------------------------------------------------------------------- invariants

    def check(self) -> None:
        table = self.brain.dispatch.leases
        for name, worker in table.workers.items():
            assert len(worker.calls) <= worker.slots + worker.prefetch_slots, (
                "more leases than may wait"
            )
            assert worker.calls | worker.prepares | worker.sides <= set(self.leases[name]), (
                "a lease not sent"
            )
        for endpoint in self.brain.dispatch.endpoints:
            calls = [
                loan
                for loan in table.loans.values()
                if loan.item.kind.pays
                and (loan.item.role, loan.item.endpoint) == (endpoint.role, endpoint.url)
            ]
            assert endpoint.in_flight == len(calls), "an endpoint's calls are miscounted"
            probes = [
                loan
                for loan in table.loans.values()
                if loan.item.kind is WorkKind.PROBE and loan.item.limit is endpoint
            ]
            assert endpoint.probing == bool(probes), "a probe is forgotten"
        for loan in table.loans.values():
            # An image may be decided while calls of a grader that is not in force are under way.
            if loan.item.kind.pays and not (loan.item.role is Role.GRADE and self.graders_changed):
                known = loan.item.image in self.brain.rounds.images
                assert known or loan.item.image in self.brain.rounds.departed
        assert len(self.brain.intake.window) <= 256
        self.nothing_is_stuck()

    def nothing_is_stuck(self) -> None:
        """Every active image has a lease, queued or delayed work, or a message on its way."""
        dispatch, rounds = self.brain.dispatch, self.brain.rounds
        busy = {loan.item.image for loan in dispatch.leases.loans.values()}
        busy |= {work.image for work in dispatch.queue}
        for image in rounds.images.values():
            at_barrier = image.choosing
            assert at_barrier or image.image in busy, f"nobody works on {image.path!r}"
        for image in self.brain.intake.preparing:
            assert image in busy, "nobody prepares an admitted image"
