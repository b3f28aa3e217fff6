"""`daemon.py retry`: take images up again; nothing that was paid for is asked again."""

from __future__ import annotations

import argparse
import base64
import time
import uuid
from pathlib import Path

import msgspec

from rsd.commands import flags
from rsd.commands.locate import find, image_dir_of
from rsd.commands.status import needed_states
from rsd.errors import StateError, UserError
from rsd.facts import ImageRetried, Numbered
from rsd.files import InstanceLock, holding, write_atomically
from rsd.writer import view
from rsd.writer.apply import Application
from rsd.writer.records import FAILED, HIGH, LOW
from rsd.writer.store import Store, Transaction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `retry`."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="path, result file or id")
    parser.add_argument("--failed", action="store_true", help="all failed images")
    parser.add_argument(
        "--low", action="store_true", help="all low-quality images, with a fresh round"
    )
    flags.add_state(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 done or handed over, 2 unknown image."""
    if not (args.images or args.failed or args.low):
        raise UserError("name images, or give --failed or --low")
    states = needed_states(args)
    if len(states) > 1:
        raise UserError("several daemons run; say which with --output-dir")
    state = states[0]
    settings = flags.settings_for_state(args)
    image_dir = image_dir_of(state, settings.image_dir if settings else "")
    wanted = _wanted(state, image_dir, args)
    if not wanted:
        print("nothing to retry")
        return 0
    with holding(InstanceLock(state / "instance.lock")) as taken:
        if taken:
            _apply(state, wanted)
        else:
            _hand_over(state, wanted)
    word = "image is" if len(wanted) == 1 else "images are"
    print(f"{len(wanted)} {word} taken up again" + ("" if not taken else " at the next run"))
    return 0


def _wanted(
    state: Path, image_dir: Path | None, args: argparse.Namespace
) -> list[tuple[str, bytes, bool]]:
    """(image, path, fresh) of every image meant."""
    store = Store(state / "lmdb", readonly=True)
    found: dict[str, tuple[str, bytes, bool]] = {}
    try:
        with store.reading() as txn:
            for name in args.images:
                record = find(txn, name, image_dir)
                if record is None:
                    raise UserError(f"{name}: no such image is known")
                if record.status not in (FAILED, LOW, HIGH):
                    raise UserError(f"{name}: is {record.status}; only ended images are retried")
                fresh = record.status in (LOW, HIGH)
                found[record.image] = (record.image, record.path, fresh)
            for status, fresh in (("failed", False), ("low", True)):
                for image in view.find_images(txn, b"", status) if getattr(args, status) else ():
                    ended = view.image_record(txn, image)
                    if ended is not None:
                        found[image] = (image, ended.path, fresh)
    finally:
        store.close()
    return list(found.values())


def _apply(state: Path, wanted: list[tuple[str, bytes, bool]]) -> None:
    """No daemon runs: write the facts here, as its writer would."""
    with holding(InstanceLock(state / "writer.lock")) as taken:
        if not taken:
            raise StateError(f"{state}: its writer is still ending; try again")
        store = Store(state / "lmdb")
        try:

            def work(txn: Transaction) -> None:
                application = Application(txn, f"retry-{uuid.uuid4().hex}")
                for seq, (image, _, fresh) in enumerate(wanted, 1):
                    fact = ImageRetried(image=image, fresh=fresh, time=time.time())
                    application.apply(Numbered(seq=seq, fact=fact))
                application.finish()

            store.write(work)
        finally:
            store.close()


def _hand_over(state: Path, wanted: list[tuple[str, bytes, bool]]) -> None:
    """A daemon runs: leave request files for it."""
    for fresh in (False, True):
        paths = [base64.b64encode(p).decode() for _, p, f in wanted if f is fresh]
        if not paths:
            continue
        request = {"retry": {"paths": paths, "status": ""}, "fresh": fresh}
        target = state / "requests" / f"{uuid.uuid4().hex}.json"
        try:
            write_atomically(target, msgspec.json.encode(request))
        except OSError as e:
            raise StateError(f"{target.parent}: {e.strerror}") from None
