"""Every kind of process killed for real, a few times; `make crash` does it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.soak import Soak, undisturbed, verdict, verdict_adaptive


@pytest.mark.crash
def test_kills_of_each_process_lose_and_double_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    figures = Soak(other, seed=7, images=40, seconds=0.2).run(kills=12, minutes=None)
    assert sum(figures["killed"].values()) == 12
    assert verdict(figures, undisturbed(one, figures["images"])) == []


@pytest.mark.crash
def test_what_is_learned_survives_kills_and_is_learned_once(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=8, images=16, seconds=0.05, adaptive=True)
    figures = soak.run(kills=12, minutes=None)
    assert sum(figures["killed"].values()) == 12
    assert figures["learned"] >= 16
    assert verdict_adaptive(figures) == []
