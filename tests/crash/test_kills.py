"""Every kind of process killed for real, three times each; `make crash` does it twenty times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.soak import soak, undisturbed, verdict

IMAGES = 60


@pytest.mark.crash
def test_three_kills_of_each_process_lose_and_double_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    expected = undisturbed(one, IMAGES)
    figures = soak(other, IMAGES, kills=3, seed=7, seconds=0.4)
    assert verdict(figures, expected, IMAGES) == []
    assert figures["left"] == 0, "the run was too short for all kills"
