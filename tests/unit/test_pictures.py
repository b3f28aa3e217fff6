"""Encoded pictures: each is made once, the cache is bounded, what is dropped is read again."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest

from rsd.workers.process import Pictures
from rsd.workers.replies import CallFailed

HEAD = b"data:image/png;base64,"


def spool(folder: Path, name: str, size: int = 300) -> bytes:
    data = name.encode() * (size // len(name))
    (folder / name).write_bytes(data)
    return HEAD + base64.b64encode(data)


def test_a_picture_is_encoded_once(tmp_path: Path) -> None:
    url = spool(tmp_path, "a")
    pictures = Pictures()
    assert pictures.get(tmp_path, "a", reduced=False)[0] == url
    (tmp_path / "a").unlink()
    assert pictures.get(tmp_path, "a", reduced=False)[0] == url


def test_the_oldest_picture_goes_when_there_is_no_room(tmp_path: Path) -> None:
    urls = {name: spool(tmp_path, name) for name in "abc"}
    pictures = Pictures(capacity=2 * len(urls["a"]))
    for name in "abac":  # b is the one that was used longest ago
        assert pictures.get(tmp_path, name, reduced=False)[0] == urls[name]
    for name in "abc":
        (tmp_path / name).unlink()
    assert pictures.get(tmp_path, "a", reduced=False)[0] == urls["a"]
    assert pictures.get(tmp_path, "c", reduced=False)[0] == urls["c"]
    with pytest.raises(CallFailed) as caught:
        pictures.get(tmp_path, "b", reduced=False)
    assert caught.value.error.reason == "spool_missing"


def test_a_picture_larger_than_the_cache_is_served(tmp_path: Path) -> None:
    url = spool(tmp_path, "a")
    pictures = Pictures(capacity=10)
    assert pictures.get(tmp_path, "a", reduced=False)[0] == url


def test_a_dropped_picture_makes_room(tmp_path: Path) -> None:
    urls = {name: spool(tmp_path, name) for name in "abc"}
    pictures = Pictures(capacity=2 * len(urls["a"]))
    for name in "ab":
        pictures.get(tmp_path, name, reduced=False)
    pictures.drop("a")
    pictures.drop("a")
    pictures.drop("never seen")
    pictures.get(tmp_path, "c", reduced=False)
    (tmp_path / "b").unlink()
    assert pictures.get(tmp_path, "b", reduced=False)[0] == urls["b"]


def test_threads_share_a_picture(tmp_path: Path) -> None:
    url = spool(tmp_path, "a", size=300_000)
    pictures = Pictures()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(pictures.get(tmp_path, "a", reduced=False)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [url] * 8
    assert len({id(one) for one in found}) == 1
