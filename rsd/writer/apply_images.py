"""Facts about images, from the file that was seen to the decision and beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import (
    FOLDER_AWAY,
    VANISHED,
    ImageId,
    ImageStatus,
    image_id,
    path_key,
)
from rsd.state.records import (
    ACTIVE,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    REPLACED,
    WITHDRAWN,
    FailureRecord,
    ImageRecord,
    PathRecord,
    key,
    key64,
)
from rsd.state.transaction import decode
from rsd.writer.learn import LearnRules
from rsd.writer.ledger import Ledger, error_word


class ImageRules:
    """Each rule changes all that its fact concerns, and nothing when it is applied again."""

    def __init__(self, ledger: Ledger, learn: LearnRules) -> None:
        self.ledger = ledger
        self.learn = learn
        self.rules: dict[type, Callable[[Any], None]] = {
            f.ImageEnrolled: self._enrolled,
            f.ImageGone: self._gone,
            f.ImageChecked: self._checked,
            f.ImageStarted: self._started,
            f.RecipeChanged: self._recipe_changed,
            f.ImageDecided: self._decided,
            f.ImageSetAside: self._set_aside,
            f.DecodeCrashed: self._crashed,
            f.ImageRetried: self._retried,
        }

    def _enrolled(self, fact: f.ImageEnrolled) -> None:
        where = path_key(fact.path)
        known = self.ledger.txn.load("paths", where, PathRecord)
        if known is None:
            record = ImageRecord(
                image=image_id(fact.path, 0),
                path=fact.path,
                version=0,
                status=QUEUED,
                enrolled_at=fact.time,
            )
            self.ledger.queue(record)
            self.ledger.save(record)
            if not self.ledger.stats.seen:
                self.ledger.txn.put_new("meta", b"first_seen", str(fact.time).encode())
            self.ledger.stats.seen += 1
            self.ledger.stats.queued += 1
            known = PathRecord(path=fact.path, size=0, mtime_ns=0, image=record.image)
        elif (known.size, known.mtime_ns, known.gone) == (fact.size, fact.mtime_ns, False):
            return
        else:
            self._look_again(known.image)
        known.size, known.mtime_ns, known.gone = fact.size, fact.mtime_ns, False
        self.ledger.txn.put("paths", where, known)

    def _look_again(self, image: ImageId) -> None:
        record = self.ledger.image(image)
        if record is None:
            return
        if record.status == ACTIVE or record.queue_seq:
            # Its bytes may have been read already: look again when it has come to an end.
            record.recheck = True
        else:
            if record.status == WITHDRAWN:
                self.ledger.move(record, QUEUED)
                record.continues = bool(record.starts)
            self.ledger.queue(record)
        self.ledger.save(record)

    def _gone(self, fact: f.ImageGone) -> None:
        where = path_key(fact.path)
        known = self.ledger.txn.load("paths", where, PathRecord)
        if known is None or known.gone:
            return
        known.gone = True
        self.ledger.txn.put("paths", where, known)
        record = self.ledger.image(known.image)
        if record is None:
            return
        self.ledger.unqueue(record)
        record.recheck = False
        undecided = record.status in (QUEUED, ACTIVE)
        if undecided and self._end(record, WITHDRAWN, "file_removed", fact.time) is WITHDRAWN:
            self._disown(record)
        self.ledger.save(record)

    def _checked(self, fact: f.ImageChecked) -> None:
        record = self.ledger.image(fact.image)
        if record is None or record.queue_seq != fact.queue_seq:
            return
        self.ledger.unqueue(record)
        if record.status == QUEUED or record.recheck:  # a person asked for it, or it changed again
            record.recheck = False
            self.ledger.queue(record)
        elif fact.lost:
            self._lost(record)
        self.ledger.save(record)

    def _replace(
        self, image: ImageId, by: ImageId, path: bytes, version: int
    ) -> ImageRecord | None:
        """New bytes at a path: a new version; the old one's history stays, its class does not."""
        old = self.ledger.image(image) if image else None
        if old is None or old.status == REPLACED:
            return None
        self.ledger.unqueue(old)
        self.ledger.txn.delete("active", key(image))
        self._disown(old)
        self.ledger.count_win(old, -1)
        filed, old.filed = old.filed, ""
        recheck, old.recheck = old.recheck, False  # the bytes may have changed once more
        self.ledger.move(old, REPLACED, old.reason)
        self.ledger.save(old)
        self.ledger.stats.queued += 1
        where = path_key(path)
        known = self.ledger.txn.load("paths", where, PathRecord)
        if known is not None:
            known.image = by
            self.ledger.txn.put("paths", where, known)
        return ImageRecord(
            image=by,
            path=path,
            version=version,
            status=QUEUED,
            enrolled_at=old.enrolled_at,
            filed=FAILED if filed == FAILED else "",  # goes away when the new bytes start
            recheck=recheck,
        )

    def _started(self, fact: f.ImageStarted) -> None:
        record = self.ledger.image(fact.image)
        if record is None:
            record = self._replace(fact.queued_as, fact.image, fact.path, fact.version)
        # A withdrawn image can start when its file went away during the last look at it, and a
        # failed one when its first bytes could not even be hashed.
        if record is None or record.status not in (QUEUED, WITHDRAWN, FAILED):
            return
        self.ledger.unqueue(record)
        if record.filed == FAILED:
            self.ledger.file(record, "")
        self.ledger.move(record, ACTIVE)
        ledger = self.ledger
        ledger.rescore(fact.image, ledger.rubric(record.config), ledger.rubric(fact.config))
        record.sha256, record.info, record.config = fact.info.sha256, fact.info, fact.config
        record.starts += 1
        record.started_at = fact.time
        record.continues = False
        self.ledger.txn.put("active", key(fact.image), b"")
        self.ledger.txn.put_new("contents", bytes.fromhex(fact.info.sha256), key(fact.image))
        self.ledger.save(record)

    def _recipe_changed(self, fact: f.RecipeChanged) -> None:
        record = self.ledger.image(fact.image)
        if record is None or record.status != ACTIVE:
            return
        ledger = self.ledger
        ledger.rescore(fact.image, ledger.rubric(record.config), ledger.rubric(fact.config))
        record.config = fact.config
        ledger.save(record)

    def _crashed(self, fact: f.DecodeCrashed) -> None:
        record = self.ledger.image(fact.image)
        if record is not None:
            record.crashes += 1
            self.ledger.save(record)

    def _retried(self, fact: f.ImageRetried) -> None:
        record = self.ledger.image(fact.image)
        if record is None or record.status not in (FAILED, LOW, HIGH):
            return
        for database, counter, kind in (
            ("sample_failures", "sample_failures", "sample_failure"),
            ("grade_failures", "grading_failures", "grading_failure"),
        ):
            for row, value in self.ledger.txn.scan(database, prefix=key(fact.image)):
                self.ledger.txn.delete(database, row)
                setattr(self.ledger.stats, counter, getattr(self.ledger.stats, counter) - 1)
                self.ledger.tallies.count(kind, error_word(decode(FailureRecord, value).error), -1)
        if record.filed == FAILED:
            self.ledger.file(record, "")
        if fact.fresh:
            record.allotment += 1
            record.retried_at = self._planned(fact.image)
        record.crashes = 0
        record.continues, record.first = False, fact.first
        self.ledger.move(record, QUEUED)
        self.ledger.queue(record)
        self.ledger.save(record)

    def _planned(self, image: ImageId) -> int:
        rows = self.ledger.txn.scan("steps", prefix=key(image))
        return sum(len(decode(f.StepChosen, value).samples) for _, value in rows)

    def _decided(self, fact: f.ImageDecided) -> None:
        record = self.ledger.image(fact.image)
        if record is None or fact.decision != record.decision + 1 or record.status != ACTIVE:
            return
        self.ledger.count_win(record, -1)
        record.decision, record.winner = fact.decision, fact.winner
        record.score, record.expected_score = fact.score, fact.expected_score
        record.stop_reason, record.decided_config = fact.reason, record.config
        record.agreement = fact.agreement
        self.learn.decided(record)
        status = HIGH if fact.quality == "high" else LOW
        self._end(record, status, "", fact.time)
        self.ledger.stats.decided += 1
        self.ledger.file(record, status)
        self.ledger.save(record)

    def _set_aside(self, fact: f.ImageSetAside) -> None:
        record = self.ledger.image(fact.image)
        if record is None:
            record = self._replace(fact.queued_as, fact.image, fact.path, fact.version)
            if record is None:
                return
        elif record.status not in (QUEUED, ACTIVE) and (
            not record.queue_seq or record.queue_seq != fact.queue_seq
        ):
            return
        self.ledger.unqueue(record)
        record.info = fact.info or record.info
        record.sha256 = fact.sha256 or record.sha256
        of = self._original(record) if fact.status == DUPLICATE else ""
        if fact.status == DUPLICATE and not of:
            # The original lost these bytes in the meantime: it is nobody's duplicate.
            self.ledger.queue(record)
            self.ledger.save(record)
            return
        self._end(record, ImageStatus(fact.status), fact.reason, fact.time)
        record.message, record.of = fact.message, of
        if record.status == WITHDRAWN and fact.reason in (VANISHED, FOLDER_AWAY):
            self._lost(record)
        if record.status in (FAILED, WITHDRAWN):
            self._disown(record)
        if fact.status == DUPLICATE:
            self._remember_duplicate(record)
        if fact.status == FAILED or (fact.status == DUPLICATE and (record.filed or record.version)):
            self.ledger.count_win(record, -1)
            self.ledger.file(record, FAILED if fact.status == FAILED else "")
        self.ledger.save(record)

    def _lost(self, record: ImageRecord) -> None:
        """Its file was not there when it was to be read. Should it be there again as it was, no
        scan would find it changed.
        """
        where = path_key(record.path)
        known = self.ledger.txn.load("paths", where, PathRecord)
        if known is not None and known.image == record.image:
            known.gone = True
            self.ledger.txn.put("paths", where, known)

    def _original(self, record: ImageRecord) -> ImageId:
        """The image that has a duplicate's bytes now; "" when no other has."""
        owner = self.ledger.txn.get("contents", bytes.fromhex(record.sha256))
        return "" if owner in (None, key(record.image)) else owner.hex()

    def _remember_duplicate(self, record: ImageRecord) -> None:
        self.ledger.stats.backlog_high += 1  # any rising number keeps the oldest first
        row = (
            bytes.fromhex(record.sha256) + key64(self.ledger.stats.backlog_high) + key(record.image)
        )
        self.ledger.txn.put("duplicates", row, b"")

    def _disown(self, record: ImageRecord) -> None:
        """The owner of a content ends without a result: its oldest duplicate is taken up."""
        if not record.sha256:
            return
        content = bytes.fromhex(record.sha256)
        if self.ledger.txn.get("contents", content) not in (None, key(record.image)):
            return
        self.ledger.txn.delete("contents", content)
        while rows := self.ledger.txn.scan("duplicates", prefix=content, limit=1):
            row = rows[0][0]
            self.ledger.txn.delete("duplicates", row)
            heir = self.ledger.image(row[len(content) + 8 :].hex())
            if heir is not None and heir.status == DUPLICATE and heir.image != record.image:
                self.ledger.move(heir, QUEUED)
                heir.of = ""
                self.ledger.queue(heir)
                self.ledger.save(heir)
                return

    def _end(
        self, record: ImageRecord, status: ImageStatus, reason: str, time: float
    ) -> ImageStatus:
        """An image leaves the active ones (or the queue) for a class, which is returned."""
        self.ledger.txn.delete("active", key(record.image))
        if status == WITHDRAWN and record.filed in (HIGH, LOW):
            # It was being tried again: a result that exists outlives its picture.
            self.ledger.move(record, ImageStatus(record.filed))
        else:
            self.ledger.move(record, status, reason)
        if record.status == WITHDRAWN and record.version:
            self.ledger.file(record, "")  # the result of the bytes before is of no file any more
        record.ended_at = time
        if record.recheck:
            record.recheck = False
            if record.status == WITHDRAWN:
                self.ledger.move(record, QUEUED)
            self.ledger.queue(record)
        return record.status
