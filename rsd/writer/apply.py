"""Facts applied to the store: each touches all it concerns in one transaction, and twice is once.

The counters change only together with what they count, so they are exact by construction. `seen` is
always the sum of the seven classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from rsd import facts as f
from rsd.messages import Stats
from rsd.vocabulary import Candidate, ImageId, image_id, path_key
from rsd.writer.records import (
    ACTIVE,
    CLASSES,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    REPLACED,
    WITHDRAWN,
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
from rsd.writer.store import Transaction, class_key
from rsd.writer.tallies import Tallies


class Application:
    """One transaction's worth of facts; `finish` writes the counters."""

    def __init__(self, txn: Transaction, life: str) -> None:
        self.txn = txn
        self.stats: Stats = txn.stats()
        self.tallies = Tallies(txn)
        self._life = life.encode()
        last = txn.get("meta", b"applied:" + self._life)
        self._applied = int(last) if last is not None else 0
        self._rules: dict[type, Callable[[Any], None]] = {
            f.ConfigStored: self._config,
            f.ProfileLearned: self._profile,
            f.ImageEnrolled: self._enrolled,
            f.ImageGone: self._gone,
            f.ImageChecked: self._checked,
            f.ImageStarted: self._started,
            f.StepChosen: self._step,
            f.CandidateMade: self._made,
            f.CandidateGraded: self._graded,
            f.SampleFailed: self._sample_failed,
            f.GradingFailed: self._grading_failed,
            f.ImageDecided: self._decided,
            f.ImageSetAside: self._set_aside,
            f.DecodeCrashed: self._crashed,
            f.ImageRetried: self._retried,
        }

    def apply(self, numbered: f.Numbered) -> None:
        """Apply a fact unless this life's facts up to its number are applied already."""
        if numbered.seq <= self._applied:
            return
        self._applied = numbered.seq
        self._rules[type(numbered.fact)](numbered.fact)

    def finish(self) -> Stats:
        """Write counters and the number of the last fact."""
        self.tallies.finish()
        self.txn.put("stats", b"all", self.stats)
        self.txn.put("meta", b"applied:" + self._life, str(self._applied).encode())
        return self.stats

    # ------------------------------------------------------------------------------------ helpers

    def _image(self, image: ImageId) -> ImageRecord | None:
        return self.txn.load("images", key(image), ImageRecord)

    def _save(self, record: ImageRecord) -> None:
        self.txn.put("images", key(record.image), record)

    def _count(self, status: str, by: int) -> None:
        if status in CLASSES:
            setattr(self.stats, status, getattr(self.stats, status) + by)

    def _move(self, record: ImageRecord, status: str) -> None:
        """Change an image's class, in the record, the counters and the index."""
        self._count(record.status, -1)
        self.txn.delete("classes", class_key(record.status, record.image))
        record.status = status
        self._count(status, +1)
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

    def _publish(self, image: ImageId, destination: str) -> None:
        last = self.txn.last_key("outbox")
        seq = int.from_bytes(last, "big") + 1 if last else 1
        self.txn.put("outbox", key64(seq), OutboxRecord(image=image, destination=destination))
        self.stats.outbox += 1

    def _disown(self, record: ImageRecord) -> None:
        """The owner of a content ends without a result: its oldest duplicate is taken up."""
        if not record.sha256:
            return
        content = bytes.fromhex(record.sha256)
        if self.txn.get("contents", content) not in (None, key(record.image)):
            return
        self.txn.delete("contents", content)
        for row, _ in self.txn.scan("duplicates", prefix=content, limit=1):
            heir = self._image(row[len(content) + 8 :].hex())
            self.txn.delete("duplicates", row)
            if heir is not None and heir.status == DUPLICATE:
                self._move(heir, QUEUED)
                heir.of = heir.reason = ""
                self._queue(heir)
                self._save(heir)

    def _end(self, record: ImageRecord, status: str, time: float) -> None:
        """An image leaves the active ones (or the queue) for a class."""
        self.txn.delete("active", key(record.image))
        self._move(record, status)
        record.ended_at = time
        if record.recheck:
            record.recheck = False
            if status == WITHDRAWN:
                self._move(record, QUEUED)
            self._queue(record)

    # -------------------------------------------------------------------------------------- facts

    def _config(self, fact: f.ConfigStored) -> None:
        self.txn.put("configs", fact.recipe.fingerprint.encode(), fact.recipe)

    def _profile(self, fact: f.ProfileLearned) -> None:
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
        if record is None or record.queue_seq:
            return
        if record.status == ACTIVE:
            record.recheck = True
        else:
            if record.status == WITHDRAWN:
                self._move(record, QUEUED)
                record.continues, record.reason = True, ""
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
            record.reason = "file_removed"
            self._end(record, WITHDRAWN, fact.time)
            self._disown(record)
        self._save(record)

    def _checked(self, fact: f.ImageChecked) -> None:
        record = self._image(fact.image)
        if record is not None and record.queue_seq == fact.queue_seq:
            self._unqueue(record)
            self._save(record)

    def _replace(self, image: ImageId, by: ImageId, path: bytes, version: int) -> ImageRecord:
        """New bytes at a path: a new version; the old one's history stays, its class does not."""
        old = self._image(image)
        if old is not None:
            self._unqueue(old)
            self._disown(old)
            self._move(old, REPLACED)
            self._save(old)
        self.stats.queued += 1
        where = path_key(path)
        known = self.txn.load("paths", where, PathRecord)
        if known is not None:
            known.image = by
            self.txn.put("paths", where, known)
        enrolled = old.enrolled_at if old is not None else 0.0
        return ImageRecord(
            image=by, path=path, version=version, status=QUEUED, enrolled_at=enrolled
        )

    def _started(self, fact: f.ImageStarted) -> None:
        record = self._image(fact.image)
        if record is None:
            record = self._replace(fact.queued_as, fact.image, fact.path, fact.version)
        elif record.status != QUEUED:
            return  # withdrawn or decided while this fact was on its way
        self._unqueue(record)
        self._move(record, ACTIVE)
        record.sha256, record.info, record.config = fact.info.sha256, fact.info, fact.config
        record.starts += 1
        record.started_at = fact.time
        record.continues, record.reason, record.message = False, "", ""
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
        self.stats.generator_input_tokens += made.usage.input_tokens
        self.stats.generator_output_tokens += made.usage.output_tokens
        self.tallies.generated(made)

    def _graded(self, fact: f.CandidateGraded) -> None:
        grade = fact.grade
        where = grade_key(fact.image, grade.index, grade.number)
        first = not self.txn.scan("grades", prefix=key32(fact.image, grade.index), limit=1)
        if not self.txn.put_new("grades", where, grade):
            return
        self.stats.grades += 1
        self.stats.grading_time += grade.grading_time
        self.stats.grader_input_tokens += grade.usage.input_tokens
        self.stats.grader_output_tokens += grade.usage.output_tokens
        if first:
            self.stats.graded += 1
            made = self._candidate(fact.image, grade.index)
            if made is not None:
                self.tallies.graded(made, grade.score)

    def _candidate(self, image: ImageId, index: int) -> Candidate | None:
        data = self.txn.get("candidates", key32(image, index))
        return None if data is None else msgspec.json.decode(data, type=Candidate)

    def _sample_failed(self, fact: f.SampleFailed) -> None:
        record = FailureRecord(error=fact.error, time=fact.time)
        if self.txn.put_new("sample_failures", key32(fact.image, fact.index), record):
            self.stats.sample_failures += 1
            self.tallies.count("sample_failure", fact.error.reason or fact.error.error.value)

    def _grading_failed(self, fact: f.GradingFailed) -> None:
        record = FailureRecord(error=fact.error, time=fact.time)
        where = grade_key(fact.image, fact.index, fact.number)
        if self.txn.put_new("grade_failures", where, record):
            self.stats.grading_failures += 1
            self.tallies.count("grading_failure", fact.error.reason or fact.error.error.value)

    def _decided(self, fact: f.ImageDecided) -> None:
        record = self._image(fact.image)
        if record is None or fact.decision != record.decision + 1 or record.status != ACTIVE:
            return
        record.decision, record.winner = fact.decision, fact.winner
        record.score, record.expected_score = fact.score, fact.expected_score
        record.stop_reason = fact.reason
        status = HIGH if fact.quality == "high" else LOW
        self._end(record, status, fact.time)
        self.stats.decided += 1
        made = self._candidate(fact.image, fact.winner)
        if made is not None:
            self.tallies.won(made, fact.score, accepted=status == HIGH)
        self._publish(fact.image, status)
        self._save(record)

    def _set_aside(self, fact: f.ImageSetAside) -> None:
        record = self._image(fact.image)
        if record is None:
            if fact.queued_as == fact.image:
                return
            record = self._replace(fact.queued_as, fact.image, fact.path, fact.version)
        elif record.status not in (QUEUED, ACTIVE):
            return
        self._unqueue(record)
        record.reason, record.message, record.of = fact.reason, fact.message, fact.of
        record.info = fact.info or record.info
        record.sha256 = fact.sha256 or record.sha256
        self._end(record, fact.status, fact.time)
        if fact.status == DUPLICATE:
            self._remember_duplicate(record)
            if record.version:
                self._publish(fact.image, "")
        else:
            self._disown(record)
        if fact.status == FAILED:
            self.tallies.count("failed", fact.reason)
            self._publish(fact.image, FAILED)
        self._save(record)

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
        if record is None or record.status not in (FAILED, LOW, HIGH) or record.queue_seq:
            return
        for database in ("sample_failures", "grade_failures"):
            for row, _ in self.txn.scan(database, prefix=key(fact.image)):
                self.txn.delete(database, row)
        if record.status == FAILED:
            self._publish(fact.image, "")
        if fact.fresh:
            record.allotment += 1
        record.crashes = 0
        record.continues = False
        self._move(record, QUEUED)
        self._queue(record)
        self._save(record)
