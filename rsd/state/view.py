"""Reading the store: what the hub asks for, and what `show`, `status` and result files need."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from rsd.protocol.facts import DialectLearned, StepChosen
from rsd.protocol.vocabulary import Candidate, FileStat, Grade, ImageId, Recipe, image_id, path_key
from rsd.protocol.writer_talk import ContentFound, ImageHistory, QueuedImage, Recovered
from rsd.state.records import (
    ACTIVE,
    DUPLICATE,
    FailureRecord,
    ImageRecord,
    PathRecord,
    key,
    key64,
)
from rsd.state.transaction import Transaction, decode

#: Duplicates that one image names; `status` counts them all.
DUPLICATES_MAX = 100


@dataclass(slots=True)
class ImageView:
    """All that is known of one image."""

    record: ImageRecord
    candidates: list[Candidate] = field(default_factory=list)
    grades: dict[int, list[Grade]] = field(default_factory=dict)
    sample_failures: dict[int, FailureRecord] = field(default_factory=dict)
    grade_failures: dict[tuple[int, int], FailureRecord] = field(default_factory=dict)
    steps: list[StepChosen] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    rubric: str = (
        ""  #: whose grades count: that of its decision, or of the recipe it is worked on by
    )
    #: Other contents that its path has held, by version.
    versions: list[ImageRecord] = field(default_factory=list)
    #: Paths that hold the same bytes, the oldest first, DUPLICATES_MAX at most.
    duplicates: list[bytes] = field(default_factory=list)

    def twins(self, rubric: str) -> dict[int, int]:
        """Candidates without a grade of this rubric -> the first with the same text that has one:
        a strategy that learns grades each text once, and all its candidates have the grades.
        """
        graded = {i for i, of in self.grades.items() if any(g.rubric == rubric for g in of)}
        first: dict[str, int] = {}
        for made in self.candidates:
            if made.index in graded:
                first.setdefault(made.content.rstrip(), made.index)
        return {
            made.index: first[text]
            for made in self.candidates
            if made.index not in graded
            and not made.rejected_because
            and (text := made.content.rstrip()) in first
        }


def image_record(txn: Transaction, image: ImageId) -> ImageRecord | None:
    """The record of an image id."""
    return txn.load("images", key(image), ImageRecord)


def image_at(txn: Transaction, path: bytes) -> ImageRecord | None:
    """The current version at a path relative to the image folder."""
    known = txn.load("paths", path_key(path), PathRecord)
    return image_record(txn, known.image) if known is not None else None


def view(txn: Transaction, record: ImageRecord) -> ImageView:
    """Everything of an image, with the recipes that its candidates were made with."""
    found = ImageView(record)
    prefix = key(record.image)
    for _, value in txn.scan("candidates", prefix=prefix):
        found.candidates.append(decode(Candidate, value))
    for _, value in txn.scan("grades", prefix=prefix):
        grade = decode(Grade, value)
        found.grades.setdefault(grade.index, []).append(grade)
    for row, value in txn.scan("sample_failures", prefix=prefix):
        found.sample_failures[int.from_bytes(row[16:20], "big")] = decode(FailureRecord, value)
    for row, value in txn.scan("grade_failures", prefix=prefix):
        where = int.from_bytes(row[16:20], "big"), int.from_bytes(row[20:22], "big")
        found.grade_failures[where] = decode(FailureRecord, value)
    for _, value in txn.scan("steps", prefix=prefix):
        found.steps.append(decode(StepChosen, value))
    found.versions = _versions(txn, record)
    found.duplicates = _duplicates(txn, record)
    configs = {record.config, record.decided_config, *(c.config for c in found.candidates)}
    for fingerprint in configs - {""}:
        recipe = recipe_of(txn, fingerprint)
        if recipe is not None:
            found.recipes[fingerprint] = recipe
    found.rubric = _rubric(found, config_in_force(record))
    if any(not g.rubric for grades in found.grades.values() for g in grades):
        _name_rubrics(found)
    return found


def _name_rubrics(found: ImageView) -> None:
    """A reader may come before the migration from format 1, which names the rubric of grades."""
    rubrics = {c.index: _rubric(found, c.config) for c in found.candidates}
    for index, grades in found.grades.items():
        found.grades[index] = [
            g if g.rubric else msgspec.structs.replace(g, rubric=rubrics.get(index, ""))
            for g in grades
        ]


def _rubric(found: ImageView, config: str) -> str:
    recipe = found.recipes.get(config)
    return recipe.rubric if recipe is not None else ""


def config_in_force(record: ImageRecord) -> str:
    """The recipe by which the scores of an image are to be read: that of its decision, unless it is
    being worked on again.
    """
    return record.config if record.status == ACTIVE else record.decided_config or record.config


def _versions(txn: Transaction, record: ImageRecord) -> list[ImageRecord]:
    last = image_at(txn, record.path) or record
    others = (image_record(txn, image_id(record.path, n)) for n in range(last.version + 1))
    return [r for r in others if r is not None and r.image != record.image]


def _duplicates(txn: Transaction, record: ImageRecord) -> list[bytes]:
    if not record.sha256 or content_owner(txn, record.sha256) != record.image:
        return []
    prefix = bytes.fromhex(record.sha256)
    rows = txn.scan("duplicates", prefix=prefix, limit=DUPLICATES_MAX)
    copies = (image_record(txn, row[len(prefix) + 8 :].hex()) for row, _ in rows)
    return [c.path for c in copies if c is not None and c.status == DUPLICATE]


def recipe_of(txn: Transaction, fingerprint: str) -> Recipe | None:
    """A stored recipe."""
    return txn.load("configs", fingerprint.encode(), Recipe)


def history(txn: Transaction, record: ImageRecord) -> ImageHistory | None:
    """What a hub needs to continue an image; None when it was never started."""
    if record.info is None or not record.starts:
        return None
    seen = view(txn, record)
    return ImageHistory(
        image=record.image,
        path=record.path,
        version=record.version,
        sha256=record.sha256,
        info=record.info,
        config=record.config,
        decision=record.decision,
        allotment=record.allotment,
        retried_at=record.retried_at,
        steps=tuple(seen.steps),
        candidates=tuple(seen.candidates),
        grades=tuple(g for grades in seen.grades.values() for g in grades),
        failed_samples=tuple(seen.sample_failures),
        failed_grades=tuple(seen.grade_failures),
        crashes=record.crashes,
    )


def recovered(txn: Transaction, image: ImageId) -> Recovered | None:
    """An active image and the recipe that it finishes on."""
    record = image_record(txn, image)
    if record is None or record.status != ACTIVE:
        return None
    past = history(txn, record)
    recipe = recipe_of(txn, record.config)
    if past is None or recipe is None:
        return None
    return Recovered(history=past, recipe=recipe)


def active_images(txn: Transaction) -> list[ImageId]:
    """The recovery list."""
    return [row.hex() for row, _ in txn.scan("active")]


def backlog_page(txn: Transaction, after: int, count: int) -> list[QueuedImage]:
    """Queued images above a queue number; fewer than `count` only at the end."""
    page: list[QueuedImage] = []
    while len(page) < count:
        rows = txn.scan("backlog", start=key64(after + 1), limit=count - len(page))
        for row, image in rows:
            after = int.from_bytes(row, "big")
            record = image_record(txn, image.hex())
            if record is not None:
                page.append(_queued(record, after))
        if not rows:
            break
    return page


def _queued(record: ImageRecord, queue_seq: int) -> QueuedImage:
    return QueuedImage(
        queue_seq=queue_seq,
        image=record.image,
        path=record.path,
        version=record.version,
        status=record.status,
        sha256=record.sha256,
        crashes=record.crashes,
        started=bool(record.starts),
    )


def content_found(txn: Transaction, query: int, sha256: str, image: ImageId) -> ContentFound:
    """Who first had these bytes, and what is stored of the image that asks about them."""
    owner = content_owner(txn, sha256)
    record = image_record(txn, image)
    same = record is not None and record.sha256 == sha256
    past = history(txn, record) if record is not None and same else None
    recipe = None
    if record is not None and past is not None and record.continues:
        recipe = recipe_of(txn, record.config)
    return ContentFound(
        query=query, sha256=sha256, image=image, owner=owner, history=past, recipe=recipe
    )


def content_owner(txn: Transaction, sha256: str) -> ImageId | None:
    """The image that first had these bytes."""
    owner = txn.get("contents", bytes.fromhex(sha256))
    return owner.hex() if owner is not None else None


def is_active(txn: Transaction, sha256: str) -> bool:
    """Whether an active image has these bytes."""
    owner = content_owner(txn, sha256)
    record = image_record(txn, owner) if owner is not None else None
    return record is not None and record.status == ACTIVE


def changed_files(txn: Transaction, files: tuple[FileStat, ...]) -> tuple[FileStat, ...]:
    """The files that are new, differ from what is known, or were gone."""
    changed = []
    for file in files:
        known = txn.load("paths", path_key(file.path), PathRecord)
        if known is None or (known.size, known.mtime_ns, known.gone) != (
            file.size,
            file.mtime_ns,
            False,
        ):
            changed.append(file)
    return tuple(changed)


def pending_paths(txn: Transaction, after: int, count: int) -> tuple[tuple[int, bytes], ...]:
    """Paths of undecided images: the active ones first (as number 0), then the backlog's order."""
    rows: list[tuple[int, bytes]] = []
    if after == 0:
        for image in active_images(txn):
            record = image_record(txn, image)
            if record is not None:
                rows.append((0, record.path))
    for row, image_key in txn.scan("backlog", start=key64(after + 1), limit=count):
        record = image_record(txn, image_key.hex())
        if record is not None:
            rows.append((int.from_bytes(row, "big"), record.path))
    return tuple(rows)


def dialects(txn: Transaction) -> tuple[DialectLearned, ...]:
    """What was learned of the endpoints."""
    rows = txn.scan("profiles")
    return tuple(msgspec.json.decode(value, type=DialectLearned) for _, value in rows)
