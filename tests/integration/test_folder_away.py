"""The image folder goes away under a running daemon, and comes back."""

from __future__ import annotations

from collections.abc import Callable

from tests.support import Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]


def test_nothing_is_withdrawn_or_failed_while_the_folder_is_away(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2")
    sim.fault("generator", "hang", match="connection")
    draw(d.images / "a.png", 1)
    d.start()
    wait_for(lambda: sim.stats("generator")["in_flight"], "open calls")
    elsewhere = d.images.with_name("elsewhere")
    d.images.rename(elsewhere)
    for path in (d.output / "state" / "spool").iterdir():
        path.unlink()  # graders find no picture, and none can be prepared
    sim.clear()
    wait_for(lambda: d.status_live("generated") == 2, "candidates")
    wait_for(lambda: d.live()["watch"]["away"], "that it is said")
    counts = d.live()["images"]
    assert (counts["active"], counts["withdrawn"], counts["failed"]) == (1, 0, 0)
    elsewhere.rename(d.images)
    wait_for(lambda: d.settled(1), "the image")
    assert d.stop() == 0
    assert len(d.results()) == 1 and "Traceback" not in d.log()
    assert sim.stats("generator")["calls"] == {"distinct": 2, "repeated": 0}
