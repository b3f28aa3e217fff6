"""The simulator's parts: pictures, faults, figures and slots."""

from __future__ import annotations

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from rsd.simulator.counters import Counters
from rsd.simulator.faults import Faults, refusal
from rsd.simulator.pictures import DataUrls, NotAPicture, Reader
from rsd.simulator.rules import Picture, Plan, Refused, Reply
from rsd.simulator.slots import Slots, service_seconds
from rsd.workers.api import refusals
from tests.support import data_url, make_diagram

PICTURE = Picture("ab" * 16, "cd" * 32, 224, 168)


# ---------------------------------------------------------------------------------- pictures


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


NOISE = Image.effect_noise((64, 64), 80.0)


def test_a_picture_is_known_as_a_viewer_shows_it() -> None:
    reader = Reader()
    image = Image.new("RGB", (40, 20), "white")
    image.putpixel((3, 2), (255, 0, 0))
    plain = reader.read(encode(image))
    assert (plain.width, plain.height) == (40, 20)
    assert reader.read(encode(image, "BMP")).pixels == plain.pixels
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    clear.putpixel((3, 2), (255, 0, 0, 255))
    assert reader.read(encode(clear)).pixels == plain.pixels
    turned = Image.Exif()
    turned[0x0112] = 6
    lying = image.transpose(Image.Transpose.ROTATE_90)
    assert reader.read(encode(lying, exif=turned)).pixels == plain.pixels
    assert reader.read(encode(Image.new("RGB", (20, 40), "white"))).pixels != plain.pixels
    grey = Image.new("I;16", (8, 8), 0x8000)
    assert (
        reader.read(encode(grey)).pixels == reader.read(encode(Image.new("L", (8, 8), 128))).pixels
    )


def test_without_decoding_the_bytes_tell_pictures_apart() -> None:
    reader = Reader(decode=False)
    assert reader.read(b"no picture").pixels != reader.read(b"another").pixels
    with pytest.raises(NotAPicture, match="Failed to load image"):
        Reader().read(b"no picture")


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("data:image/png;base64,@@@@", 400, "Non-base64 digit found"),
        (data_url(b"no picture"), 400, "Failed to load image: cannot identify image file"),
        (data_url(b""), 400, "Failed to load image"),
        ("data:image/png,raw", 501, "Only base64 data URLs are supported"),
        ("AAAA", 400, "The URL must be either a HTTP, data or file URL."),
        ("file:///etc/hostname", 500, "Cannot load local files"),
        ("http://127.0.0.1:9/x.png", 500, "Cannot connect to host"),
        (data_url(encode(Image.new("1", (2010, 10)))), 400, "image processor"),
        (data_url(encode(NOISE, "JPEG")[:2000]), 400, "truncated"),
    ],
)
def test_unusable_pictures_are_refused_in_vllms_words(url: str, status: int, message: str) -> None:
    async def look() -> None:
        with ThreadPoolExecutor(1) as executor:
            await DataUrls(Reader(), executor).of(url)

    with pytest.raises(Refused, match="error") as caught:
        asyncio.run(look())
    assert caught.value.status == status
    assert message in caught.value.body["error"]["message"]


def test_a_picture_asked_for_by_many_is_decoded_once(tmp_path: Path) -> None:
    url = data_url(make_diagram(tmp_path / "a.png", 3).read_bytes())
    reads: list[bytes] = []

    class Counting(Reader):
        def read(self, data: bytes) -> Picture:
            reads.append(data)
            return super().read(data)

    async def look() -> list[Picture]:
        with ThreadPoolExecutor(1) as executor:
            urls = DataUrls(Counting(), executor)
            found = await asyncio.gather(*(urls.of(url) for _ in range(10)))
            return [*found, await urls.of(url)]

    found = asyncio.run(look())
    assert len(reads) == 1 and len(set(found)) == 1
    assert reads[0] == base64.b64decode(url.partition(",")[2])


# ---------------------------------------------------------------------------- faults, figures


def fault_of(**fields: Any) -> Faults:
    faults = Faults()
    faults.add(msgspec.json.encode({"role": "grader", **fields}))
    return faults


def test_a_fault_meets_what_it_is_for() -> None:
    faults = fault_of(kind="error", count=2, match="needle")
    assert faults.strike("generator", "id", "a needle") is None
    assert faults.strike("grader", "id", "hay") is None
    assert faults.strike("grader", "id", "a needle") is not None
    assert faults.strike("grader", "id", "a needle") is not None
    assert faults.strike("grader", "id", "a needle") is None
    assert faults.struck == {"grader:error": 2} and faults.rules() == []


def test_a_share_of_the_tries_is_drawn_from_their_content() -> None:
    def drawn() -> list[bool]:
        faults = fault_of(kind="busy", rate=0.3)
        return [faults.strike("grader", f"call {k % 100}", "") is not None for k in range(400)]

    first = drawn()
    assert first == drawn() and 60 < sum(first) < 180
    assert first[:100] != first[100:200]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "nonsense"},
        {"kind": "error", "rate": 2},
        {"kind": "error", "count": -1},
        {"kind": "error", "unknown": 1},
        {"kind": "no_score", "role": "generator"},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        fault_of(**wrong)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("rate_limit", {"retry_after": 3}, "rate_limited"),
        ("rate_limit", {"reset": 3}, "rate_limited"),
        ("busy", {}, "rate_limited"),
        ("quota", {}, "quota"),
        ("error", {}, "transient"),
        ("bad_gateway", {}, "transient"),
        ("unauthorized", {}, "misconfigured"),
        ("not_found_model", {}, "misconfigured"),
        ("too_big", {}, "too_big"),
        ("content_filter", {}, "refused"),
    ],
)
@pytest.mark.parametrize("role", ["generator", "grader"])
def test_the_workers_see_in_a_fault_what_it_stands_for(
    role: str, kind: str, fields: dict[str, Any], expected: str
) -> None:
    faults = fault_of(kind=kind, **fields | {"role": role})
    struck = faults.strike(role, "id", "")
    assert struck is not None
    made = refusal(struck)
    assert made is not None
    seen = refusals.classify_status(made.status, made.body, "", made.headers, 0.0)
    assert seen.error == expected
    assert seen.retry_after == fields.get("retry_after", fields.get("reset"))


def plan_of(text: str, picture: Picture | None = PICTURE, parts: int = 1) -> Plan:
    names = tuple(f"{text}:{k}" for k in range(parts))
    calls = names if picture else ()
    return Plan(text, text, picture, names, calls, lambda _: REPLY, 66, 48)


REPLY = Reply({}, 66, 10, ("stop",))


def test_repeated_calls_are_counted_by_their_logic() -> None:
    counters = Counters(Slots())
    for plan in (plan_of("a", parts=2), plan_of("a"), plan_of("b"), plan_of("probe", None)):
        counters.answer(plan, REPLY)
    counters.answer(plan_of("b"), Reply({}, 66, 10, ("length",), final=False))
    document = counters.document(detail=True)
    assert document["calls"]["distinct"] == 3 and document["calls"]["repeated"] == 1
    assert document["calls"]["detail"] == {"a:0": 2, "a:1": 1, "b:0": 1}
    assert (document["answered"], document["children"], document["probes"]) == (5, 6, 1)
    counters.reset()
    assert counters.document()["calls"] == {"distinct": 0, "repeated": 0}


def test_another_encoding_of_a_picture_is_news() -> None:
    counters = Counters(Slots())
    again = Picture(PICTURE.pixels, "ef" * 32, 224, 168)
    for picture in (PICTURE, PICTURE, again):
        counters.admit(plan_of("a", picture))
    document = counters.document(detail=True)
    assert document["images"] == 1 and document["byte_strings_per_image_max"] == 2
    assert document["byte_strings_per_image"] == {PICTURE.pixels: 2}
    assert (counters.picture_queries, counters.picture_hits) == (3, 1)


def test_the_prefix_cache_hits_whole_blocks() -> None:
    counters = Counters(Slots())
    counters.admit(plan_of("a"))
    assert counters.prefix_hits == 0
    counters.admit(plan_of("a"))
    assert counters.prefix_hits == 64
    counters.admit(plan_of("b"))
    assert counters.prefix_hits == 64 + 48
    counters.admit(plan_of("c", Picture("x", "y", 224, 168), parts=8))
    assert counters.prefix_hits == 64 + 48 + 7 * 64
    text = counters.metrics('a "model"')
    labels = 'engine="0",model_name="a \\"model\\""'
    assert f"vllm:prefix_cache_queries_total{{{labels}}} {66 * 11}" in text
    assert f"vllm:num_requests_waiting{{{labels}}} 0" in text


# ------------------------------------------------------------------------------------- slots


def test_service_times_are_decided_by_what_is_asked() -> None:
    assert service_seconds(0.0, "a") == 0.0
    times = [service_seconds(2.0, f"part {k}") for k in range(2000)]
    assert times[0] == service_seconds(2.0, "part 0") and len(set(times)) == 2000
    assert sum(times) / len(times) == pytest.approx(2.0, rel=0.05)


def test_slots_serve_in_order_and_hand_on() -> None:
    async def play() -> None:
        slots = Slots(2, max_queue=3)
        tasks = [asyncio.create_task(slots.serve((3600.0,))) for _ in range(4)]
        await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (2, 2)
        assert not slots.full(1) and slots.full(2)
        tasks[2].cancel()  # one that waits
        tasks[0].cancel()  # one that is served
        for _ in range(5):
            await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (2, 0) and not tasks[3].done()
        slots.resize(1)
        late = asyncio.create_task(slots.serve((3600.0,)))
        tasks[1].cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (1, 1)
        slots.resize(0)
        await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (2, 0)
        for task in (tasks[3], late):
            task.cancel()
        await asyncio.gather(*tasks, late, return_exceptions=True)
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(play())


def test_a_place_handed_to_a_client_that_leaves_goes_on() -> None:
    async def play() -> None:
        slots = Slots(1)
        first, second, third = (asyncio.create_task(slots.serve((3600.0,))) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        second.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (1, 0) and not third.done()
        third.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert slots.running == 0

    asyncio.run(play())


def test_each_of_n_answers_takes_a_place() -> None:
    async def play() -> None:
        slots = Slots(4, max_queue=2)
        assert slots.full(8) and not slots.full(6)
        task = asyncio.create_task(slots.serve((3600.0,) * 6))
        for _ in range(3):
            await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (4, 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(play())
