"""`daemon.py retry`: take images up again; nothing that was paid for is asked again."""

from __future__ import annotations

import argparse
import base64
import time
import uuid
from pathlib import Path

import msgspec

from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.locate import find, image_dir_of
from rsd.commands.status import needed_states
from rsd.errors import StateError, UserError
from rsd.protocol.facts import ImageRetried, Numbered
from rsd.protocol.vocabulary import ImageId
from rsd.state import view
from rsd.state.records import FAILED, HIGH, LOW
from rsd.state.store import StateRefused, Store
from rsd.state.transaction import Transaction
from rsd.system.files import InstanceLock, holding, refusal, write_atomically
from rsd.writer.apply import Application


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
    which = [name for name in ("failed", "low") if getattr(args, name)]
    found = isolated(_wanted, state, image_dir, args.images, which)
    wanted = msgspec.json.decode(found, type=list[Wanted])
    if not wanted:
        print("nothing to retry")
        return 0
    with holding(InstanceLock(state / "instance.lock")) as taken:
        if taken:
            isolated(_apply, state, found)
        else:
            _hand_over(state, wanted)
    word = "image is" if len(wanted) == 1 else "images are"
    print(f"{len(wanted)} {word} taken up again" + ("" if not taken else " at the next run"))
    return 0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One image to be taken up again; with `fresh`, for another round."""

    image: ImageId
    path: bytes
    fresh: bool


def _wanted(state: Path, image_dir: Path | None, names: list[str], classes: list[str]) -> bytes:
    """Every image meant, as JSON of `Wanted`."""
    found: dict[str, Wanted] = {}
    with Store(state / "lmdb", readonly=True).reading() as txn:
        for name in names:
            record = find(txn, name, image_dir)
            if record is None:
                raise UserError(f"{name}: no such image is known")
            if record.status not in (FAILED, LOW, HIGH):
                raise UserError(f"{name}: is {record.status}; only ended images are retried")
            fresh = record.status in (LOW, HIGH)
            found[record.image] = Wanted(image=record.image, path=record.path, fresh=fresh)
        for status in classes:
            for image in view.find_images(txn, b"", status):
                ended = view.image_record(txn, image)
                if ended is not None:
                    fresh = status == "low"
                    found[image] = Wanted(image=image, path=ended.path, fresh=fresh)
    return msgspec.json.encode(list(found.values()))


def _apply(state: Path, found: bytes) -> bytes:
    """No daemon runs: write the facts here, as its writer would."""
    wanted = msgspec.json.decode(found, type=list[Wanted])
    with holding(InstanceLock(state / "writer.lock")) as taken:
        if not taken:
            raise StateError(f"{state}: its writer is still ending; try again")
        store = Store(state / "lmdb")
        try:

            def work(txn: Transaction) -> None:
                application = Application(txn, f"retry-{uuid.uuid4().hex}")
                for seq, one in enumerate(wanted, 1):
                    fact = ImageRetried(image=one.image, fresh=one.fresh, time=time.time())
                    application.apply(Numbered(seq=seq, fact=fact))
                application.finish()

            store.write(work)
        except StateRefused as e:
            raise StateError(refusal("state_dir", state, str(e))) from None
        finally:
            store.close()
    return b""


def _hand_over(state: Path, wanted: list[Wanted]) -> None:
    """A daemon runs: leave request files for it."""
    for fresh in (False, True):
        paths = [base64.b64encode(w.path).decode() for w in wanted if w.fresh is fresh]
        if not paths:
            continue
        request = {"retry": {"paths": paths, "status": ""}, "fresh": fresh}
        target = state / "requests" / f"{uuid.uuid4().hex}.json"
        try:
            write_atomically(target, msgspec.json.encode(request))
        except OSError as e:
            raise StateError(f"{target.parent}: {e.strerror}") from None
