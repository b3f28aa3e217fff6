"""Rows of the reliability document: recorded, replaced, rendered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evidence import record, render


def test_a_row_is_replaced_by_its_next_run_and_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSD_EVIDENCE", str(tmp_path))
    record("disks", "state | full", times=1, lost=7)
    record("disks", "state | full", times=1200, lost=0, seen="paused")
    text = render(tmp_path)
    assert "| state \\| full | 1,200 | 0 | – | – | paused |" in text
    assert "7" not in text.partition("## Disks")[2]
    assert "## Hostile files" not in text


def test_nothing_is_written_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RSD_EVIDENCE", raising=False)
    monkeypatch.chdir(tmp_path)
    record("soak", "kills")
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match="wrong"):
        record("soak", "kills", wrong=1)
