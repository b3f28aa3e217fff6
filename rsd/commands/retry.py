"""`daemon.py retry`: take images up again; nothing that was paid for is asked again."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.locate import find, image_dir_of
from rsd.commands.requests import hand_over
from rsd.commands.status import needed_states
from rsd.errors import UserError
from rsd.protocol.user_requests import Retry, UserRequest, in_pieces
from rsd.protocol.vocabulary import ImageStatus
from rsd.state.records import FAILED, HIGH, LOW
from rsd.state.store import Store
from rsd.system.files import InstanceLock, holding
from rsd.writer.offline import apply_requests


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
    which = [ImageStatus.FAILED] * args.failed + [ImageStatus.LOW_QUALITY] * args.low
    found = isolated(_meant, state, image_dir, args.images, which)
    meant = msgspec.json.decode(found, type=Meant)
    if not meant.images:
        print("nothing to retry")
        return 0
    with holding(InstanceLock(state / "instance.lock")) as taken:
        if taken:
            done = isolated(_apply, state, found)
            print(f"{_images(int(done))} taken up again at the next run")
        else:
            hand_over(state, meant.requests)
            print(f"{_images(meant.images)} taken up again")
    return 0


def _images(count: int) -> str:
    return f"{count} image is" if count == 1 else f"{count} images are"


class Meant(msgspec.Struct, frozen=True, kw_only=True):
    """What the flags ask for, and how many images that is at present."""

    requests: list[UserRequest]
    images: int


def _meant(
    state: Path, image_dir: Path | None, names: list[str], classes: list[ImageStatus]
) -> bytes:
    """The requests, as JSON of `Meant`. A class is not resolved here: it may hold millions."""
    again: dict[bytes, None] = {}
    fresh: dict[bytes, None] = {}
    with Store(state / "lmdb", readonly=True).reading() as txn:
        stats = txn.stats()
        for name in names:
            record = find(txn, name, image_dir)
            if record is None:
                raise UserError(f"{name}: no such image is known")
            if record.status not in (FAILED, LOW, HIGH):
                raise UserError(f"{name}: is {record.status}; only ended images are retried")
            (again if record.status == FAILED else fresh)[record.path] = None
    requests: list[UserRequest] = [
        *in_pieces(again, fresh=False),
        *in_pieces(fresh, fresh=True),
    ]
    count = len(again) + len(fresh)
    for status in classes:
        if number := getattr(stats, status):
            requests.append(Retry(status=status, fresh=status == LOW))
            count += number
    return msgspec.json.encode(Meant(requests=requests, images=count))


def _apply(state: Path, meant: bytes) -> bytes:
    """No daemon runs: write the facts here, as its writer would. The number of images as text."""
    requests = msgspec.json.decode(meant, type=Meant).requests
    return b"%d" % apply_requests(state, requests)
