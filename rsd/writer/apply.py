"""Facts applied to the store: each touches all it concerns in one transaction, and twice is once.

The counters change only together with what they count, so they are exact by construction. `seen` is
always the sum of the seven classes.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import (
    CallError,
    Candidate,
    Grade,
    ImageId,
    Role,
    Stats,
    Usage,
    image_id,
    path_key,
)
from rsd.state.records import (
    ACTIVE,
    CLASSES,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    REPLACED,
    WITHDRAWN,
    Applied,
    FailureRecord,
    ImageRecord,
    OutboxRecord,
    PathRecord,
    grade_key,
    key,
    key16,
    key32,
    key64,
)
from rsd.state.transaction import Transaction, class_key, decode
from rsd.writer.tallies import Tallies


class Application:
    """One transaction's worth of facts; `finish` writes the counters."""

    def __init__(self, txn: Transaction, life: str) -> None:
        self.txn = txn
        self.stats: Stats = txn.stats()
        self.tallies = Tallies(txn)
        # Only the latest hub's facts can come again: an older one is dead.
        last = txn.load("meta", b"applied", Applied)
        known = last is not None and last.life == life
        self._applied = last if last is not None and known else Applied(life=life, seq=0)
        self._rules: dict[type, Callable[[Any], None]] = {
            f.ConfigStored: self._config,
            f.DialectLearned: self._profile,
            f.ImageEnrolled: self._enrolled,
            f.ImageGone: self._gone,
            f.ImageChecked: self._checked,
            f.ImageStarted: self._started,
            f.StepChosen: self._step,
            f.CandidateMade: self._made,
            f.CandidateGraded: self._graded,
            f.SampleFailed: self._sample_failed,
            f.GradingFailed: self._grading_failed,
            f.CallSpent: self._spent,
            f.ImageDecided: self._decided,
            f.ImageSetAside: self._set_aside,
            f.DecodeCrashed: self._crashed,
            f.ImageRetried: self._retried,
        }

    def apply(self, numbered: f.Numbered) -> None:
        """Apply a fact unless this life's facts up to its number are applied already."""
        if numbered.seq <= self._applied.seq:
            return
        self._applied.seq = numbered.seq
        self._rules[type(numbered.fact)](numbered.fact)

    def filed(self, rows: list[bytes]) -> None:
        """These rows of the outbox have become files."""
        for row in rows:
            if self.txn.delete("outbox", row):
                self.stats.outbox -= 1

    def finish(self) -> Stats:
        """Write counters and the number of the last fact."""
        self.tallies.finish()
        self.txn.put("stats", b"all", self.stats)
        self.txn.put("meta", b"applied", self._applied)
        return self.stats

    # ------------------------------------------------------------------------------------ helpers

    def _image(self, image: ImageId) -> ImageRecord | None:
        return self.txn.load("images", key(image), ImageRecord)

    def _save(self, record: ImageRecord) -> None:
        self.txn.put("images", key(record.image), record)

    def _count(self, status: str, by: int) -> None:
        if status in CLASSES:
            setattr(self.stats, status, getattr(self.stats, status) + by)

    def _move(self, record: ImageRecord, status: str, reason: str = "") -> None:
        """Change an image's class: in the record, the counters and the index."""
        self._count(record.status, -1)
        if record.status == FAILED:
            self.tallies.count("failed", record.reason, -1)
        self.txn.delete("classes", class_key(record.status, record.image))
        record.status, record.reason, record.message = status, reason, ""
        self._count(status, +1)
        if status == FAILED:
            self.tallies.count("failed", reason)
        if status in (FAILED, LOW, HIGH):
            self.txn.put("classes", class_key(status, record.image), b"")

    def _queue(self, record: ImageRecord) -> None:
        """Put an image at the end of the backlog; one row per image."""
        if record.queue_seq:
            return
        self.stats.backlog_high += 1
        record.queue_seq = self.stats.backlog_high
        self.txn.put("backlog", key64(record.queue_seq), key(record.image))

    def _unqueue(self, record: ImageRecord) -> None:
        if record.queue_seq:
            self.txn.delete("backlog", key64(record.queue_seq))
            record.queue_seq = 0

    def _file(self, record: ImageRecord, destination: str) -> None:
        """Say where the image's file belongs from now on; the outbox makes it so."""
        record.filed = destination
        self._count_win(record, +1)
        last = self.txn.last_key("outbox")
        seq = int.from_bytes(last, "big") + 1 if last else 1
        row = OutboxRecord(image=record.image, destination=destination)
        self.txn.put("outbox", key64(seq), row)
        self.stats.outbox += 1

    def _count_win(self, record: ImageRecord, by: int) -> None:
        """Winners are tallied as long as their result is the one on file."""
        if record.filed not in (HIGH, LOW) or record.winner is None or record.score is None:
            return
        made = self._candidate(record.image, record.winner)
        if made is not None:
            self.tallies.won(made, record.score, accepted=record.filed == HIGH, by=by)

    def _disown(self, record: ImageRecord) -> None:
        """The owner of a content ends without a result: its oldest duplicate is taken up."""
        if not record.sha256:
            return
        content = bytes.fromhex(record.sha256)
        if self.txn.get("contents", content) not in (None, key(record.image)):
            return
        self.txn.delete("contents", content)
        while rows := self.txn.scan("duplicates", prefix=content, limit=1):
            row = rows[0][0]
            self.txn.delete("duplicates", row)
            heir = self._image(row[len(content) + 8 :].hex())
            if heir is not None and heir.status == DUPLICATE and heir.image != record.image:
                self._move(heir, QUEUED)
                heir.of = ""
                self._queue(heir)
                self._save(heir)
                return

    def _end(self, record: ImageRecord, status: str, reason: str, time: float) -> None:
        """An image leaves the active ones (or the queue) for a class."""
        self.txn.delete("active", key(record.image))
        if status == WITHDRAWN and record.filed in (HIGH, LOW):
            # It was being tried again: a result that exists outlives its picture.
            self._move(record, record.filed)
        else:
            self._move(record, status, reason)
        if record.status == WITHDRAWN and record.version:
            self._file(record, "")  # the result of the bytes before is of no file any more
        record.ended_at = time
        if record.recheck:
            record.recheck = False
            if record.status == WITHDRAWN:
                self._move(record, QUEUED)
            self._queue(record)

    # -------------------------------------------------------------------------------------- facts

    def _config(self, fact: f.ConfigStored) -> None:
        self.txn.put("configs", fact.recipe.fingerprint.encode(), fact.recipe)

    def _profile(self, fact: f.DialectLearned) -> None:
        self.txn.put("profiles", f"{fact.endpoint}|{fact.model}".encode()[:500], fact)

    def _enrolled(self, fact: f.ImageEnrolled) -> None:
        where = path_key(fact.path)
        known = self.txn.load("paths", where, PathRecord)
        if known is None:
            record = ImageRecord(
                image=image_id(fact.path, 0),
                path=fact.path,
                version=0,
                status=QUEUED,
                enrolled_at=fact.time,
            )
            self._queue(record)
            self._save(record)
            if not self.stats.seen:
                self.txn.put_new("meta", b"first_seen", str(fact.time).encode())
            self.stats.seen += 1
            self.stats.queued += 1
            known = PathRecord(path=fact.path, size=0, mtime_ns=0, image=record.image)
        elif (known.size, known.mtime_ns, known.gone) == (fact.size, fact.mtime_ns, False):
            return
        else:
            self._look_again(known.image)
        known.size, known.mtime_ns, known.gone = fact.size, fact.mtime_ns, False
        self.txn.put("paths", where, known)

    def _look_again(self, image: ImageId) -> None:
        record = self._image(image)
        if record is None:
            return
        if record.status == ACTIVE or record.queue_seq:
            # Its bytes may have been read already: look again when it has come to an end.
            record.recheck = True
        else:
            if record.status == WITHDRAWN:
                self._move(record, QUEUED)
                record.continues = bool(record.starts)
            self._queue(record)
        self._save(record)

    def _gone(self, fact: f.ImageGone) -> None:
        where = path_key(fact.path)
        known = self.txn.load("paths", where, PathRecord)
        if known is None or known.gone:
            return
        known.gone = True
        self.txn.put("paths", where, known)
        record = self._image(known.image)
        if record is None:
            return
        self._unqueue(record)
        record.recheck = False
        if record.status in (QUEUED, ACTIVE):
            self._end(record, WITHDRAWN, "file_removed", fact.time)
            if record.status == WITHDRAWN:
                self._disown(record)
        self._save(record)

    def _checked(self, fact: f.ImageChecked) -> None:
        record = self._image(fact.image)
        if record is None or record.queue_seq != fact.queue_seq:
            return
        self._unqueue(record)
        if record.status == QUEUED or record.recheck:  # a person asked for it, or it changed again
            record.recheck = False
            self._queue(record)
        self._save(record)

    def _replace(
        self, image: ImageId, by: ImageId, path: bytes, version: int
    ) -> ImageRecord | None:
        """New bytes at a path: a new version; the old one's history stays, its class does not."""
        old = self._image(image) if image else None
        if old is None or old.status == REPLACED:
            return None
        self._unqueue(old)
        self.txn.delete("active", key(image))
        self._disown(old)
        self._count_win(old, -1)
        filed, old.filed, old.recheck = old.filed, "", False
        self._move(old, REPLACED, old.reason)
        self._save(old)
        self.stats.queued += 1
        where = path_key(path)
        known = self.txn.load("paths", where, PathRecord)
        if known is not None:
            known.image = by
            self.txn.put("paths", where, known)
        return ImageRecord(
            image=by,
            path=path,
            version=version,
            status=QUEUED,
            enrolled_at=old.enrolled_at,
            filed=FAILED if filed == FAILED else "",  # goes away when the new bytes start
        )

    def _started(self, fact: f.ImageStarted) -> None:
        record = self._image(fact.image)
        if record is None:
            record = self._replace(fact.queued_as, fact.image, fact.path, fact.version)
        # A withdrawn image can start when its file went away during the last look at it, and a
        # failed one when its first bytes could not even be hashed.
        if record is None or record.status not in (QUEUED, WITHDRAWN, FAILED):
            return
        self._unqueue(record)
        if record.filed == FAILED:
            self._file(record, "")
        self._move(record, ACTIVE)
        record.sha256, record.info, record.config = fact.info.sha256, fact.info, fact.config
        record.starts += 1
        record.started_at = fact.time
        record.continues = False
        self.txn.put("active", key(fact.image), b"")
        self.txn.put_new("contents", bytes.fromhex(fact.info.sha256), key(fact.image))
        self._save(record)

    def _step(self, fact: f.StepChosen) -> None:
        self.txn.put_new("steps", key16(fact.image, fact.round), fact)

    def _made(self, fact: f.CandidateMade) -> None:
        made = fact.candidate
        if not self.txn.put_new("candidates", key32(fact.image, made.index), made):
            return
        self.stats.generated += 1
        self.stats.generation_time += made.generation_time
        self._tokens(Role.GENERATE, made.usage)
        self.tallies.generated(made)

    def _graded(self, fact: f.CandidateGraded) -> None:
        grade = fact.grade
        rows = self.txn.scan("grades", prefix=key32(fact.image, grade.index))
        before = [decode(Grade, value).score for _, value in rows]
        where = grade_key(fact.image, grade.index, grade.number)
        if not self.txn.put_new("grades", where, grade):
            return
        self.stats.grades += 1
        self.stats.grading_time += grade.grading_time
        self._tokens(Role.GRADE, grade.usage)
        self.stats.graded += not before
        made = self._candidate(fact.image, grade.index)
        if made is not None:
            after = [*before, grade.score]
            self.tallies.graded(made, fmean(before) if before else None, fmean(after))

    def _candidate(self, image: ImageId, index: int) -> Candidate | None:
        return self.txn.load("candidates", key32(image, index), Candidate)

    def _sample_failed(self, fact: f.SampleFailed) -> None:
        record = FailureRecord(error=fact.error, time=fact.time)
        if self.txn.put_new("sample_failures", key32(fact.image, fact.index), record):
            self.stats.sample_failures += 1
            self.tallies.count("sample_failure", _word(fact.error))

    def _grading_failed(self, fact: f.GradingFailed) -> None:
        record = FailureRecord(error=fact.error, time=fact.time)
        where = grade_key(fact.image, fact.index, fact.number)
        if self.txn.put_new("grade_failures", where, record):
            self.stats.grading_failures += 1
            self.tallies.count("grading_failure", _word(fact.error))

    def _spent(self, fact: f.CallSpent) -> None:
        self.stats.unused_calls += 1
        self.stats.unused_input_tokens += fact.usage.input_tokens
        self.stats.unused_output_tokens += fact.usage.output_tokens
        self._tokens(fact.role, fact.usage)
        self.tallies.count("unused", f"{fact.role.value}:{fact.outcome}")

    def _tokens(self, role: Role, usage: Usage) -> None:
        """Whatever a call gave, its tokens are paid for."""
        stats = self.stats
        if role is Role.GENERATE:
            stats.generator_input_tokens += usage.input_tokens
            stats.generator_output_tokens += usage.output_tokens
            stats.generator_cached_tokens += usage.cached_tokens
            stats.generator_reasoning_tokens += usage.reasoning_tokens
        else:
            stats.grader_input_tokens += usage.input_tokens
            stats.grader_output_tokens += usage.output_tokens
            stats.grader_cached_tokens += usage.cached_tokens
            stats.grader_reasoning_tokens += usage.reasoning_tokens

    def _decided(self, fact: f.ImageDecided) -> None:
        record = self._image(fact.image)
        if record is None or fact.decision != record.decision + 1 or record.status != ACTIVE:
            return
        self._count_win(record, -1)
        record.decision, record.winner = fact.decision, fact.winner
        record.score, record.expected_score = fact.score, fact.expected_score
        record.stop_reason = fact.reason
        status = HIGH if fact.quality == "high" else LOW
        self._end(record, status, "", fact.time)
        self.stats.decided += 1
        self._file(record, status)
        self._save(record)

    def _set_aside(self, fact: f.ImageSetAside) -> None:
        record = self._image(fact.image)
        if record is None:
            record = self._replace(fact.queued_as, fact.image, fact.path, fact.version)
            if record is None:
                return
        elif record.status not in (QUEUED, ACTIVE) and (
            not record.queue_seq or record.queue_seq != fact.queue_seq
        ):
            return
        self._unqueue(record)
        record.info = fact.info or record.info
        record.sha256 = fact.sha256 or record.sha256
        of = self._original(record) if fact.status == DUPLICATE else ""
        if fact.status == DUPLICATE and not of:
            # The original lost these bytes before this was said: it is nobody's duplicate.
            self._queue(record)
            self._save(record)
            return
        self._end(record, fact.status, fact.reason, fact.time)
        record.message, record.of = fact.message, of
        if record.status in (FAILED, WITHDRAWN):
            self._disown(record)
        if fact.status == DUPLICATE:
            self._remember_duplicate(record)
        if fact.status == FAILED or (fact.status == DUPLICATE and (record.filed or record.version)):
            self._count_win(record, -1)
            self._file(record, FAILED if fact.status == FAILED else "")
        self._save(record)

    def _original(self, record: ImageRecord) -> ImageId:
        """The image that has a duplicate's bytes now; "" when no other has."""
        owner = self.txn.get("contents", bytes.fromhex(record.sha256))
        return "" if owner in (None, key(record.image)) else owner.hex()

    def _remember_duplicate(self, record: ImageRecord) -> None:
        self.stats.backlog_high += 1  # any rising number keeps the oldest first
        row = bytes.fromhex(record.sha256) + key64(self.stats.backlog_high) + key(record.image)
        self.txn.put("duplicates", row, b"")

    def _crashed(self, fact: f.DecodeCrashed) -> None:
        record = self._image(fact.image)
        if record is not None:
            record.crashes += 1
            self._save(record)

    def _retried(self, fact: f.ImageRetried) -> None:
        record = self._image(fact.image)
        if record is None or record.status not in (FAILED, LOW, HIGH):
            return
        for database, counter, kind in (
            ("sample_failures", "sample_failures", "sample_failure"),
            ("grade_failures", "grading_failures", "grading_failure"),
        ):
            for row, value in self.txn.scan(database, prefix=key(fact.image)):
                self.txn.delete(database, row)
                setattr(self.stats, counter, getattr(self.stats, counter) - 1)
                self.tallies.count(kind, _word(decode(FailureRecord, value).error), -1)
        if record.filed == FAILED:
            self._file(record, "")
        if fact.fresh:
            record.allotment += 1
        record.crashes = 0
        record.continues = False
        self._move(record, QUEUED)
        self._queue(record)
        self._save(record)


def _word(error: CallError) -> str:
    """What an error is counted under."""
    return error.reason or error.error.value
