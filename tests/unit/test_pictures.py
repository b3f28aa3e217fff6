"""Encoded pictures: each is made once, the cache is bounded, what is dropped is read again."""

from __future__ import annotations

import base64
import io
import mmap
import threading
from pathlib import Path

import pytest
from PIL import Image

from rsd.workers.api.replies import CallFailed
from rsd.workers.pictures import MAP_FROM, MAPS_MAX, Pictures, Url

HEAD = b"data:image/png;base64,"


def spool(folder: Path, name: str, size: int = 300) -> bytes:
    url = HEAD + base64.b64encode(name.encode() * (size // len(name)))
    (folder / f"{name}.url").write_bytes(url)
    return url


def test_a_picture_is_encoded_once(tmp_path: Path) -> None:
    url = spool(tmp_path, "a")
    pictures = Pictures()
    assert pictures.get(tmp_path, "a", reduced=False)[0] == url
    (tmp_path / "a.url").unlink()
    assert pictures.get(tmp_path, "a", reduced=False)[0] == url


def test_the_oldest_picture_goes_when_there_is_no_room(tmp_path: Path) -> None:
    urls = {name: spool(tmp_path, name) for name in "abc"}
    pictures = Pictures(capacity=2 * len(urls["a"]))
    for name in "abac":  # b is the one that was used longest ago
        assert pictures.get(tmp_path, name, reduced=False)[0] == urls[name]
    for name in "abc":
        (tmp_path / f"{name}.url").unlink()
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
    (tmp_path / "b.url").unlink()
    assert pictures.get(tmp_path, "b", reduced=False)[0] == urls["b"]


def test_threads_share_a_picture(tmp_path: Path) -> None:
    url = spool(tmp_path, "a", size=300_000)
    pictures = Pictures()
    found: list[Url] = []
    threads = [
        threading.Thread(target=lambda: found.append(pictures.get(tmp_path, "a", reduced=False)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bytes(one) for one in found] == [url] * 8
    assert len({id(one) for one in found}) == 1
    assert isinstance(found[0], mmap.mmap), "a large one is mapped, not copied"


def test_no_more_pictures_are_mapped_than_files_may_be_open(tmp_path: Path) -> None:
    names = [f"p{k}" for k in range(MAPS_MAX + 10)]
    urls = {name: spool(tmp_path, name, size=MAP_FROM) for name in names}
    pictures = Pictures()
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [pictures.get(tmp_path, name, reduced=False)[0] for name in names[:3]]
    for name in names:
        assert bytes(pictures.get(tmp_path, name, reduced=False)[0]) == urls[name]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= MAPS_MAX + len(kept)
    assert bytes(kept[0]) == urls[names[0]], "one that was let go while it is being sent"


def test_a_picture_at_half_its_size_is_made_of_the_same_file(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(whole, "PNG")
    (tmp_path / "a.url").write_bytes(HEAD + base64.b64encode(whole.getvalue()))
    pictures = Pictures()
    half = bytes(pictures.get(tmp_path, "a", reduced=True)[0])
    assert half.startswith(HEAD)
    assert Image.open(io.BytesIO(base64.b64decode(half[len(HEAD) :]))).size == (32, 16)
    assert bytes(pictures.get(tmp_path, "a", reduced=False)[0])[len(HEAD) :] != half[len(HEAD) :]
