"""Work in a process of its own: its ends, and what it knows of the command line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from rsd.commands.isolated import isolated
from rsd.errors import StateError, UserError

KEY = "sk-test-0123456789abcdef"


def _words(place: Path) -> bytes:
    return "\0".join(sys.argv).encode() + Path("/proc/self/environ").read_bytes()


def _killed(place: Path) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def _mistaken(place: Path) -> bytes:
    raise UserError("no such picture")


def test_flags_with_keys_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["rsd", "check", "--grading-key", KEY]
    monkeypatch.setattr(sys, "argv", words)
    assert KEY.encode() not in isolated(_words, tmp_path)
    assert sys.argv is words


def test_whatever_ends_it_is_an_error_with_its_text(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="it killed its decoder"):
        isolated(_killed, tmp_path, died="it killed its decoder")
    with pytest.raises(StateError, match="lmdb: is damaged"):
        isolated(_killed, tmp_path)
    with pytest.raises(UserError, match="no such picture"):
        isolated(_mistaken, tmp_path)
