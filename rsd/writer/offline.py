"""What people ask for while no hub runs: the same facts, applied by whoever holds the locks."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from rsd.errors import StateError, UserError
from rsd.protocol.facts import LearnedImported, Numbered
from rsd.protocol.learned import Learned
from rsd.protocol.user_requests import PATHS_MAX, PriorBrought, UserRequest, facts_of
from rsd.protocol.vocabulary import ImageId
from rsd.state import cursor
from rsd.state.lessons import prior_refused
from rsd.state.rebuild import Rebuilt, rebuild, replace_records
from rsd.state.store import StateRefused, Store
from rsd.state.transaction import Transaction
from rsd.system.files import InstanceLock, holding, refusal
from rsd.writer.apply import Application


def apply_requests(state: Path, requests: Iterable[UserRequest]) -> int:
    """Apply requests, a bounded number of images in a transaction; returns how many images were
    meant. The caller holds the state's instance lock. Raises StateError, and UserError when one
    cannot be fulfilled.
    """
    with _opened(state) as store:
        return sum(_apply(store, request) for request in requests)


def rebuild_records(state: Path) -> list[Rebuilt]:
    """Sum up again what was learned, and store what differs. The caller holds the state's instance
    lock. Raises StateError.
    """
    with _opened(state) as store:
        found = rebuild(store)
        replace_records(store, [one for one in found if not one.equal])
        return found


@contextlib.contextmanager
def _opened(state: Path) -> Iterator[Store]:
    """The store, as its writer opens it. Raises StateError."""
    with holding(InstanceLock(state / "writer.lock")) as taken:
        if not taken:
            raise StateError(f"{state}: its writer is still ending; try again")
        try:
            store = Store(state / "lmdb")
            try:
                yield store
            finally:
                store.close()
        except StateRefused as e:
            raise StateError(refusal("state_dir", state, str(e))) from None


def _bring(store: Store, prior: Learned, life: str) -> None:
    def work(txn: Transaction) -> None:
        if why := prior_refused(txn, prior):
            raise UserError(why)
        application = Application(txn, life)
        application.apply(Numbered(seq=1, fact=LearnedImported(learned=prior)))
        application.finish()

    store.write(work)


def _apply(store: Store, request: UserRequest) -> int:
    life = f"offline-{uuid.uuid4().hex}"
    if isinstance(request, PriorBrought):
        _bring(store, request.learned, life)
        return 0
    seq, after = 0, ""
    while True:
        images: tuple[ImageId, ...] = ()

        def page(txn: Transaction, after: str = after, first: int = seq + 1) -> None:
            nonlocal images
            images = (
                cursor.images_at(txn, request.paths)
                if request.status is None
                else cursor.images_of(txn, request.status, after, PATHS_MAX)
            )
            application = Application(txn, life)
            for number, fact in enumerate(facts_of(request, images, time.time()), first):
                application.apply(Numbered(seq=number, fact=fact))
            application.finish()

        store.write(page)
        seq += len(images)
        if request.status is None or len(images) < PATHS_MAX:
            return seq
        after = images[-1]
