"""Every kind of process killed for real, a few times; `make crash` does it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.soak import Soak, undisturbed, verdict


@pytest.mark.crash
def test_kills_of_each_process_lose_and_double_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    figures = Soak(other, seed=7, images=40, seconds=0.2).run(kills=12, minutes=None)
    assert sum(figures["killed"].values()) == 12
    assert verdict(figures, undisturbed(one, figures["images"])) == []
