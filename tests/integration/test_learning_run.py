"""The strategy that learns, through the real daemon: what it leaves in files and in the state."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from rsd.protocol.vocabulary import Candidate
from rsd.state.records import ImageRecord
from rsd.state.store import Store
from rsd.state.transaction import decode
from rsd.strategy.insight import StrategyDocument
from tests.recount import learned_once, planned_once
from tests.support import Daemon, Simulator, draw

IMAGES = 5


def test_a_retry_of_low_images_adds_candidates_and_teaches_nothing_again(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon]
) -> None:
    d = daemon(simulator(), "--strategy", "adaptive", "--score-threshold", "100")
    for seed in range(IMAGES):
        draw(d.images / f"p{seed}.png", seed)
    assert d.once().returncode == 0
    first = (d.output / "strategy.json").read_bytes()
    document = msgspec.json.decode(first, type=StrategyDocument)
    (record,) = document.records
    assert record.learned.images == record.insight.images == IMAGES
    summary = json.loads((d.output / "summary.json").read_text())
    assert [entry["images"] for entry in summary["strategy"]] == [IMAGES]
    results = d.results()
    before = {name: len(r["all_candidates"]) + r["ungraded"] for name, r in results.items()}
    for result in results.values():
        assert 0 < result["agreement"]["level"] <= 1
        assert result["stop_reason_text"] != result["stop_reason"]
        graded = {c["index"]: c["content"].rstrip() for c in result["all_candidates"]}
        for made in result["all_candidates"]:
            if made["same_as"] is not None:
                assert graded[made["same_as"]] == made["content"].rstrip()
    low = [name for name, r in results.items() if r["folder"] == "low_quality"]
    assert low, "the threshold is out of reach"

    assert d.run("retry", "--low").returncode == 0
    assert d.once().returncode == 0
    again = d.results()
    assert all(again[name]["decision"] == 2 for name in low)
    grown = {n: len(r["all_candidates"]) + r["ungraded"] for n, r in again.items()}
    assert all(grown[name] > before[name] for name in low)
    store = Store(d.output / "state/lmdb", readonly=True)
    assert learned_once(store) == IMAGES
    assert planned_once(store) > 2 * IMAGES
    with store.reading() as txn:
        records = [decode(ImageRecord, v) for _, v in txn.scan("images")]
        made = [decode(Candidate, v) for _, v in txn.scan("candidates")]
    store.close()
    assert sorted(r.learned for r in records) == [*range(1, IMAGES + 1)]
    assert len(made) >= sum(grown.values())
    latest = msgspec.json.decode((d.output / "strategy.json").read_bytes(), type=StrategyDocument)
    assert latest.records[0].learned == record.learned
    compared = d.run("db", "rebuild-stats")
    assert (compared.returncode, compared.stderr) == (0, "")
    assert f"{IMAGES} images: equal, bit by bit" in compared.stdout
    shown = d.run("show", "p0.png")
    assert "agreement" in shown.stdout and "learned" in shown.stdout
