"""Requests of users: given to the daemon that runs, or applied here when none does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rsd.commands.isolated import isolated
from rsd.errors import StateError, UserError
from rsd.protocol.learned import Learned
from rsd.protocol.user_requests import PriorBrought, UserRequest
from rsd.state.lessons import prior_refused
from rsd.state.store import Store
from rsd.system.files import InstanceLock, holding, write_atomically
from rsd.writer.offline import apply_requests


def hand_over(state: Path, requests: Sequence[UserRequest]) -> None:
    """A daemon runs: leave requests for it, which are durable when this returns."""
    folder = state / "requests"
    stem = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
    for number, request in enumerate(requests):
        try:
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"{stem}-{number:06}.json", msgspec.json.encode(request))
        except OSError as e:
            done = f"; {number} of {len(requests)} requests were handed over before"
            raise StateError(f"{folder}: {e.strerror}{done if number else ''}") from None


def bring_prior(state: Path, prior: Learned) -> bool:
    """Let a state begin with what another run has learned (`rsd.strategy.prior.prior_of`). True: it
    is stored; False: a daemon runs and was given it.

    Raises UserError when it cannot be taken, StateError when the state cannot be used.
    """
    request = msgspec.json.encode(PriorBrought(learned=prior))
    with holding(InstanceLock(state / "instance.lock")) as taken:
        if taken:
            isolated(_apply_prior, state, request)
        else:
            isolated(_check_prior, state, request)
            hand_over(state, [PriorBrought(learned=prior)])
        return taken


def _apply_prior(state: Path, request: bytes) -> bytes:
    apply_requests(state, [msgspec.json.decode(request, type=PriorBrought)])
    return b""


def _check_prior(state: Path, request: bytes) -> bytes:
    """Say at once what the daemon would only log."""
    prior = msgspec.json.decode(request, type=PriorBrought).learned
    with Store(state / "lmdb", readonly=True).reading() as txn:
        if why := prior_refused(txn, prior):
            raise UserError(why)
    return b""
