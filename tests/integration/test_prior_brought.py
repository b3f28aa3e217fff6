"""What another run has learned, brought to a daemon that runs and to one that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from rsd.commands.requests import bring_prior
from rsd.errors import UserError
from rsd.protocol.learned import Learned
from rsd.state.records import prior_key
from rsd.state.store import Store
from tests.histories import PRIOR
from tests.support import Daemon, Simulator, wait_for


def stored(state: Path) -> tuple[Learned | None, Learned | None]:
    """The record and its prior."""
    store = Store(state / "lmdb", readonly=True)
    with store.reading() as txn:
        found = (
            txn.load("learned", PRIOR.key.encode(), Learned),
            txn.load("learned", prior_key(PRIOR.key), Learned),
        )
    store.close()
    return found


def test_a_running_daemon_is_given_it_and_a_stopped_one_has_it_stored(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon]
) -> None:
    d = daemon(simulator())
    d.start()
    state = d.output / "state"
    wait_for(lambda: d.live(), "the daemon")
    assert bring_prior(state, PRIOR) is False
    wait_for(lambda: not list((state / "requests").glob("*.json")), "the request to be done")
    assert stored(state) == (PRIOR, PRIOR)
    assert "began with what 7 images taught another run" in d.log()
    seen = d.run("db", "rebuild-stats")
    assert (seen.returncode, seen.stderr) == (0, "")
    assert "0 images: equal, bit by bit" in seen.stdout
    refused = d.run("db", "rebuild-stats", "--write")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--write: a daemon works on this state" in refused.stderr
    with pytest.raises(UserError, match="1 to 50 images"):
        bring_prior(state, msgspec.structs.replace(PRIOR, prior_images=51))
    assert d.stop() == 0
    later = msgspec.structs.replace(PRIOR, prior_images=9)
    assert bring_prior(state, later) is True
    assert stored(state) == (later, later)
    with pytest.raises(UserError, match="1 to 50 images"):
        bring_prior(state, msgspec.structs.replace(PRIOR, prior_images=51))
    wrong = msgspec.structs.replace(later, prior_images=10)
    store = Store(state / "lmdb")
    store.write(lambda txn: txn.put("learned", PRIOR.key.encode(), wrong))
    store.close()
    seen = d.run("db", "rebuild-stats")
    assert seen.returncode == 1
    assert "DIFFERENT in prior_images\n" in seen.stdout
    assert d.run("db", "rebuild-stats", "--write").returncode == 1, "it differed"
    assert d.run("db", "rebuild-stats").returncode == 0
    assert stored(state) == (later, later)


def test_a_state_of_which_nothing_was_learned(daemon: Callable[..., Daemon]) -> None:
    d = daemon(None)
    seen = d.run("db", "rebuild-stats")
    assert (seen.returncode, seen.stderr.count("\n")) == (1, 1), "there is no state yet"
    Store(d.output / "state/lmdb").close()
    seen = d.run("db", "rebuild-stats")
    assert (seen.returncode, seen.stdout) == (0, "nothing was learned yet\n")
