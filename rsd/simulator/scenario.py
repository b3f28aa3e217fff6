"""Scenario files: what the models say about certain pictures, written down before.

`docs/simulator.md` describes the format. A file is read once, checked whole, and refused in one
line.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from rsd.errors import UserError
from rsd.simulator.truth import TRUTHS_MAX

SCHEMA: Final = "rsd.scenario/1"
#: Longest file, unpacked, in bytes: 100,000 pictures with 10 kB each.
FILE_MAX: Final = 1 << 30
_PIXELS: Final = re.compile(r"[0-9a-f]{32}")
_HOTTEST: Final = 2.0

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Spread = Annotated[float, Meta(ge=0, le=1000)]
Number = Annotated[float, Meta(ge=-1000, le=1000)]
Score = Annotated[float, Meta(ge=0, le=100)]


class Tokens(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What calls use, each as (input, output). The defaults are assumptions, not measurements."""

    candidate: tuple[Count, Count] = (1300, 400)
    grading: tuple[Count, Count] = (2060, 700)  #: of a call, whatever is in it; reasoning is output
    graded: tuple[Count, Count] = (420, 150)  #: and of each candidate in it


class Grader(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the grader errs, in points; `sd` are standard deviations.

    `noisy`: a grade is the quality and all that stands here. `recorded`: the image's own grades.
    """

    kind: Literal["noisy", "recorded"] = "noisy"
    tau: Spread = 6.0  #: sd of each grading of a text anew
    text_sd: Spread = 4.0  #: sd of what a text is misjudged by, whenever it is graded
    image_sd: Spread = 3.0  #: sd of what an image's texts are misjudged by, all alike
    call_sd: Spread = 2.5  #: sd of what the texts of one call share, if there are several
    lenient: Number = 3.0
    gross: Share = 0.015  #: of grades that have nothing to do with the text: 20 to 95
    knee: Score = 90.0  #: above it a point counts `slope`
    slope: Share = 0.6
    rounded: Share = 0.7  #: of grades that are rounded to `step`; others are whole numbers
    step: Annotated[float, Meta(gt=0, le=100)] = 5.0


class World(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Qualities that nobody recorded: 100 / (1 + exp(-z)), all effects on z in logits.

    z = level of the image + prompt + image x prompt + prompt x temperature
    - curvature * (temperature - the image's best one)^2 + top-p + top-k + spread of a draw.
    """

    prompts: dict[str, Number]  #: effect by the prompt's key
    later_prompts: dict[str, Number] = {}  #: of the second half of the images; empty: the same
    later_shift: Number = 0.0  #: what the best temperature changes by for them
    #: Kinds of images: (weight, mean, sd) of their levels.
    levels: Annotated[tuple[tuple[Share, Number, Spread], ...], Meta(min_length=1)] = (
        (0.35, 1.6, 0.5),
        (0.40, 0.6, 0.5),
        (0.25, -0.7, 0.6),
    )
    image_prompt_sd: Spread = 0.30
    prompt_temperature_sd: Spread = 0.10
    draw_sd: tuple[Spread, Spread] = (0.30, 0.75)  #: at temperature 0 and 1, on a line
    curvature: Spread = 1.2
    best_temperature: tuple[Number, Spread] = (0.6, 0.25)  #: mean, sd; kept within 0 and 1.3
    top_p: Number = 0.05  #: effect of the highest; of the lowest the same below zero
    top_ps: tuple[Number, Number] = (0.7, 0.9)  #: lowest, highest
    top_k: Number = 0.02
    top_ks: tuple[Number, Number] = (40, 80)
    tail: tuple[Share, Share] = (0.06, 0.06)  #: share of much worse draws; more from T = 1 on
    failures: tuple[Share, Share] = (0.03, 0.04)  #: share of broken ones; more from T = 1 on
    detected: Share = 0.8  #: of broken ones, those that are cut off, for all to see
    claims: Annotated[int, Meta(ge=4, le=120)] = 40  #: edges of a picture


class Image(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A picture, and what was recorded about it; with a world only the first field."""

    pixels: str  #: digest of the decoded pixels, 32 hex digits
    edges: tuple[tuple[str, str], ...] = ()  #: the truth: from, to
    texts: tuple[str, ...] = ()
    #: prompt key -> temperature -> numbers of texts, in the order they were drawn.
    draws: dict[str, dict[str, tuple[Count, ...]]] = {}
    #: Of each text (score, explanation), null for one that no draw has.
    grades: tuple[tuple[Score, str] | None, ...] = ()
    #: Of each text the points that it is misjudged by whenever it is graded; instead of `text_sd`.
    misjudged: tuple[Number, ...] = ()


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole file."""

    schema: Literal["rsd.scenario/1"]
    seed: int = 0
    prompts: Annotated[dict[str, str], Meta(min_length=1)]  #: key -> text, as requests carry it
    tokens: Tokens = Tokens()
    grader: Grader = Grader()
    world: World | None = None
    images: Annotated[tuple[Image, ...], Meta(min_length=1, max_length=TRUTHS_MAX)]


def load(path: Path) -> Scenario:
    """Read a file, gzipped or not. Raises UserError: one line with the place of the mistake."""
    try:
        scenario = msgspec.json.decode(_unpacked(path), type=Scenario)
        check(scenario)
    except OSError as e:
        raise UserError(f"--scenario {path}: not readable: {e.strerror or e}") from None
    except (EOFError, zlib.error) as e:
        raise UserError(f"--scenario {path}: damaged: {e}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as e:
        raise UserError(f"--scenario {path}: not usable: {e}") from None
    return scenario


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        data: bytes = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ValueError(f"more than {FILE_MAX:,} bytes")
    return data


def check(scenario: Scenario) -> None:
    """What types do not say. Raises ValueError that begins with the place."""
    texts = [text.strip() for text in scenario.prompts.values()]
    if len(set(texts)) < len(texts):
        raise ValueError("`$.prompts`: two prompts have the same text")
    world = scenario.world
    if world is not None:
        for name in ("prompts", "later_prompts"):
            effects = getattr(world, name)
            if (effects or name == "prompts") and effects.keys() != scenario.prompts.keys():
                raise ValueError(f"`$.world.{name}`: its keys are not those of `$.prompts`")
        if not sum(weight for weight, _, _ in world.levels) > 0:
            raise ValueError("`$.world.levels`: all weights are 0")
        if scenario.grader.kind == "recorded":
            raise ValueError("`$.grader.kind`: a world has no recorded grades")
    seen: set[str] = set()
    for number, image in enumerate(scenario.images):
        place = f"`$.images[{number}]"
        if not _PIXELS.fullmatch(image.pixels):
            raise ValueError(f"{place}.pixels`: not 32 hex digits: {image.pixels[:40]!r}")
        if image.pixels in seen:
            raise ValueError(f"{place}.pixels`: the same picture a second time")
        seen.add(image.pixels)
        if world is None:
            _check_recorded(scenario, image, place)
        elif image.edges or image.texts or image.draws or image.grades or image.misjudged:
            raise ValueError(f"{place}`: recorded answers have no place in a world")


def _check_recorded(scenario: Scenario, image: Image, place: str) -> None:
    if not image.draws:
        raise ValueError(f"{place}.draws`: there are none")
    for name in ("grades", "misjudged"):
        given = getattr(image, name)
        if given and len(given) != len(image.texts):
            raise ValueError(f"{place}.{name}`: {len(given)} for {len(image.texts)} texts")
    recorded = scenario.grader.kind == "recorded"
    for key, temperatures in image.draws.items():
        if key not in scenario.prompts:
            raise ValueError(f"{place}.draws`: `$.prompts` has no {key[:40]!r}")
        if not temperatures:
            raise ValueError(f"{place}.draws[{key!r}]`: no temperature")
        for name, drawn in temperatures.items():
            where = f"{place}.draws[{key!r}][{name[:40]!r}]`"
            temperature_of(name, where)
            if not drawn:
                raise ValueError(f"{where}: no texts")
            if max(drawn) >= len(image.texts):
                raise ValueError(f"{where}: no text {max(drawn)} among {len(image.texts)}")
            bare = next((t for t in drawn if not image.grades or image.grades[t] is None), None)
            if recorded and bare is not None:
                raise ValueError(f"{where}: text {bare} has no recorded grade")


def temperature_of(name: str, where: str = "temperature") -> float:
    """A temperature as it is written in a file. Raises ValueError for none from 0 to 2."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _HOTTEST:
        raise ValueError(f"{where}: {name[:40]!r} is no temperature from 0 to 2")
    return value
