"""Encoded pictures: each is made once, the cache is bounded, what is dropped is read again."""

from __future__ import annotations

import base64
import io
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rsd.protocol.tasks import HALF, WHOLE
from rsd.workers.api.replies import CallFailed
from rsd.workers.pictures import MAP_FROM, MAPS_MAX, SPOOL_MISSING, SpooledPictures
from rsd.workers.spool import Url, data_url

HEAD = b"data:image/png;base64,"


def spool(folder: Path, name: str, size: int = 300) -> bytes:
    url = HEAD + base64.b64encode(name.encode() * (size // len(name)))
    (folder / f"{name}.url").write_bytes(url)
    return url


def test_a_picture_is_encoded_once(tmp_path: Path) -> None:
    url = spool(tmp_path, "a")
    pictures = SpooledPictures(tmp_path)
    assert pictures.get("a")[0] == url
    (tmp_path / "a.url").unlink()
    assert pictures.get("a")[0] == url


def test_the_oldest_picture_goes_when_there_is_no_room(tmp_path: Path) -> None:
    urls = {name: spool(tmp_path, name) for name in "abc"}
    pictures = SpooledPictures(tmp_path, capacity=2 * len(urls["a"]))
    for name in "abac":  # b is the one that was used longest ago
        assert pictures.get(name)[0] == urls[name]
    for name in "abc":
        (tmp_path / f"{name}.url").unlink()
    assert pictures.get("a")[0] == urls["a"]
    assert pictures.get("c")[0] == urls["c"]
    with pytest.raises(CallFailed) as caught:
        pictures.get("b")
    assert caught.value.error.reason == "spool_missing"


def test_a_picture_larger_than_the_cache_is_served(tmp_path: Path) -> None:
    url = spool(tmp_path, "a")
    pictures = SpooledPictures(tmp_path, capacity=10)
    assert pictures.get("a")[0] == url


def test_a_dropped_picture_makes_room(tmp_path: Path) -> None:
    urls = {name: spool(tmp_path, name) for name in "abc"}
    pictures = SpooledPictures(tmp_path, capacity=2 * len(urls["a"]))
    for name in "ab":
        pictures.get(name)
    pictures.drop("a")
    pictures.drop("a")
    pictures.drop("never seen")
    pictures.get("c")
    (tmp_path / "b.url").unlink()
    assert pictures.get("b")[0] == urls["b"]


def test_threads_share_a_picture(tmp_path: Path) -> None:
    url = spool(tmp_path, "a", size=300_000)
    pictures = SpooledPictures(tmp_path)
    found: list[Url] = []
    threads = [
        threading.Thread(target=lambda: found.append(pictures.get("a")[0])) for _ in range(8)
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
    pictures = SpooledPictures(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [pictures.get(name)[0] for name in names[:3]]
    for name in names:
        assert bytes(pictures.get(name)[0]) == urls[name]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= MAPS_MAX + len(kept)
    assert bytes(kept[0]) == urls[names[0]], "one that was let go while it is being sent"


def png(size: tuple[int, int] = (64, 32), compress_level: int = 6) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG", compress_level=compress_level)
    return out.getvalue()


def test_a_picture_at_half_its_size_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.url").write_bytes(data_url(png()))
    pictures = SpooledPictures(tmp_path)
    assert reason(pictures, "a", variant=HALF) == SPOOL_MISSING, "and never made in a call thread"
    (tmp_path / "a.half.url").write_bytes(data_url(png((32, 16))))
    assert pictures.get("a", variant=HALF, sent_bytes=len(png()))[0] == data_url(png((32, 16)))
    assert pictures.get("a", sent_bytes=len(png()))[0] == data_url(png())
    pictures.drop("a")
    (tmp_path / "a.half.url").unlink()
    assert reason(pictures, "a", variant=HALF) == SPOOL_MISSING


def reason(pictures: SpooledPictures, sha256: str, **wanted: Any) -> str:
    with pytest.raises(CallFailed) as caught:
        pictures.get(sha256, **wanted)
    return caught.value.error.reason


def zeroed(data: bytes, at: int = 0, size: int = 1 << 30) -> bytes:
    gap = len(data[at : at + size])
    return data[:at] + bytes(gap) + data[at + gap :]


@pytest.mark.parametrize("variant", [WHOLE, HALF])
@pytest.mark.parametrize("size", [(64, 32), (512, 512)], ids=["read", "mapped"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: zeroed(d),
        lambda d: zeroed(d, 4096),
        lambda d: zeroed(d, len(d) - 1),
        lambda d: zeroed(d, len(d) // 2, 1),
        lambda d: d[:-1],
        lambda d: d[:-4],
        lambda d: d[: len(d) // 8 * 4],
        lambda d: d[22:],
        lambda d: d[:22],
        lambda d: d + bytes(4),
        lambda d: b"<" + d[1:],
    ],
)
def test_what_a_power_loss_left_is_never_sent(
    tmp_path: Path, variant: str, size: tuple[int, int], damage: Callable[[bytes], bytes]
) -> None:
    data = png(size, compress_level=0 if size[0] > 64 else 6)
    good = data_url(data)
    assert (len(good) >= MAP_FROM) == (size[0] > 64)
    path = tmp_path / ("a.half.url" if variant == HALF else "a.url")
    path.write_bytes(good)
    wanted = {"variant": variant, "sent_bytes": len(data)}
    assert bytes(SpooledPictures(tmp_path).get("a", **wanted)[0]) == good
    damaged = damage(good)
    if damaged == good:
        return
    path.write_bytes(damaged)
    assert reason(SpooledPictures(tmp_path), "a", **wanted) == SPOOL_MISSING
    assert not path.exists(), "it is prepared again, and not taken for a good one"


def test_a_file_that_servers_read_is_compared_with_its_data_url(tmp_path: Path) -> None:
    data = png()
    (tmp_path / "a.url").write_bytes(data_url(data))
    pictures = SpooledPictures(tmp_path)
    assert pictures.file("a", sent_bytes=len(data)) is None
    (tmp_path / "a").write_bytes(data)
    assert pictures.file("a", sent_bytes=len(data)) == tmp_path / "a"
    pictures.drop("a")
    (tmp_path / "a").write_bytes(bytes(len(data)))
    with pytest.raises(CallFailed) as caught:
        pictures.file("a", sent_bytes=len(data))
    assert caught.value.error.reason == SPOOL_MISSING
    assert not (tmp_path / "a").exists()
