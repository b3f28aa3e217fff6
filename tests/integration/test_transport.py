"""How pictures travel: in each request, once and then by name, or as a path."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import Daemon, Simulator, essence, make_diagram, wait_for

IMAGES = 6
FLAGS = ("--candidates", "8", "--gen-workers", "2", "--grade-workers", "4")

Make = Callable[..., Daemon]


def fill(d: Daemon) -> None:
    for seed in range(IMAGES):
        make_diagram(d.images / f"p{seed}.png", seed, (640, 480))


@pytest.fixture
def expected(simulator: Callable[..., Simulator], daemon: Make) -> dict[str, object]:
    sim = simulator()
    d = daemon(sim, *FLAGS)
    fill(d)
    assert d.once().returncode == 0
    return {"results": essence(d.results()), "bytes": sim.stats("generator")["received_bytes"]}


def test_a_picture_that_the_server_holds_is_only_named(
    expected: dict[str, object], simulator: Callable[..., Simulator], daemon: Make
) -> None:
    sim = simulator()
    d = daemon(sim, *FLAGS, RSD_GENERATION_PICTURES="uuid")
    d.output = d.output.with_name("by-name")
    assert d.once().returncode == 0
    assert essence(d.results()) == expected["results"]
    received = sim.stats("generator")["received_bytes"]
    assert received < expected["bytes"] / 2  # type: ignore[operator]


@pytest.mark.slow
def test_a_server_that_lost_its_cache_is_sent_the_bytes_again(
    expected: dict[str, object], simulator: Callable[..., Simulator], daemon: Make
) -> None:
    sim = simulator("--service-seconds", "0.2")
    d = daemon(sim, *FLAGS, RSD_GENERATION_PICTURES="uuid")
    d.output = d.output.with_name("lost")
    d.start()
    wait_for(lambda: sim.stats("generator")["children"] >= 8, "some answers")
    sim.restart()
    wait_for(lambda: d.settled(IMAGES), "the rest")
    assert essence(d.results()) == expected["results"]
    assert d.status()["candidates"]["failed"] == 0
    assert d.stop() == 0


@pytest.mark.slow
def test_a_server_on_this_host_reads_the_file(
    expected: dict[str, object], simulator: Callable[..., Simulator], daemon: Make
) -> None:
    d = daemon(None, *FLAGS)
    d.output = d.output.with_name("by-path")
    sim = simulator("--allowed-local-media-path", str(d.output / "state/spool"))
    e = daemon(sim, *FLAGS, RSD_GENERATION_PICTURES="file")
    e.output = d.output
    assert e.once().returncode == 0
    assert essence(e.results()) == expected["results"]
    assert sim.stats("generator")["received_bytes"] < expected["bytes"] / 4  # type: ignore[operator]


@pytest.mark.slow
def test_a_server_that_may_not_read_files_is_named_and_nothing_fails(
    simulator: Callable[..., Simulator], daemon: Make
) -> None:
    sim = simulator()
    d = daemon(sim, *FLAGS, RSD_GENERATION_PICTURES="file")
    fill(d)
    d.start()

    def said() -> bool:
        return "allowed-local-media-path" in " ".join(d.status().get("reasons", []))

    wait_for(said, "the reason")
    assert d.failures() == {}
    d.stop()
