"""The score parser against mutations of the corpus of graders' answers.

    python -m tests.fuzz_scores --seconds 300 --seed 1

Every result must be `unparsable` or a score that an oracle of its own finds stated in the text: a
number from 0 to 100, with its scale, close behind a word for a score. A text that is strict JSON
with a score is held to that score alone. Ends with code 1 after the first wrong one.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import re
import sys
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.workers.grading.scores import Score, listwise, pointwise
from tests.evidence import record

CORPUS = Path(__file__).resolve().parent / "data" / "grader_answers.json"
#: Pieces that are put in; those with numbers would be wrong scores.
PIECES = (
    *("score", "Score:", "score: 7/100", "Score: 99", "100", "/100", "/10", " out of 10", "%", "."),
    *(",", ":", "-", "~", "{", "}", '"', "'", "[", "]", "\n", "\n\n", "|", "**", "`", "```", "\\"),
    *("<think>", "</think>", '{"score": 3}', '"score": 4', "max", "not ", "about ", " to 90", "e2"),
    *("Wait, ", "Total: 5", "得分：", "８", "分", "\u0000", "\u200b", "//", "/*", "*/", "#", "NaN"),
)
_WORDS = re.compile(
    r"score|rating|grade|punktzahl|bewertung|puntuaci|calificaci|punteggio|pontua|оценка|得分|评分|分数|"
    r"スコア|得点|点数|점수|总分|合计|总计|最终|最后|overall|total|final|sum|verdict|result|mark|average|"
    r"gesamt|summe",
    re.IGNORECASE,
)
_NUMERAL = re.compile(r"(?<![\d.,])-?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?(?![\d])")
_SCALE = re.compile(r"[^\w\n]*(?:[^\W\d]+\.?\s*)?\(?\s*(?:/|out of|von|of)[^\d\n]{0,14}(\d+)", re.I)
#: Characters between a word for a score and its number, at most.
REACH = 110


@dataclass(frozen=True)
class Case:
    """An answer: what a careful reader takes from it, and what rsd is expected to."""

    why: str
    text: str
    candidate: str
    ids: tuple[str, ...]
    truth: Any  #: a score, "unparsable", or a dict of scores by id
    expected: Any


def cases() -> list[Case]:
    """The corpus; `grow` repeats a piece of a text."""
    found = []
    for entry in json.loads(CORPUS.read_text("utf-8")):
        text, grow = entry["text"], entry.get("grow")
        if grow:
            text = text.replace(grow["at"], grow["by"] * grow["times"], 1)
        found.append(
            Case(
                why=entry["why"],
                text=text,
                candidate=entry.get("candidate", ""),
                ids=tuple(entry.get("ids", ())),
                truth=entry["score"],
                expected=entry.get("rsd", entry["score"]),
            )
        )
    return found


def verdict(case: Case) -> Any:
    """What rsd reads from a case, in the corpus's own form."""
    return _verdict(case.text, case.candidate, case.ids)


@functools.cache
def _verdict(text: str, candidate: str, ids: tuple[str, ...]) -> Any:
    if ids:
        return {name: score.score for name, score in listwise(text, ids).items()}
    found = pointwise(text, candidate)
    return found.score if isinstance(found, Score) else "unparsable"


def stated(text: str) -> set[float]:
    """The scores that a text may be said to state; of strict JSON its own score alone."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict) and isinstance(data.get("score"), int | float):
        return {float(data["score"])}
    plain = unicodedata.normalize("NFKC", text)
    plain = re.sub(r"(?<![\d.,*`#])[*`#]+|[*`#]+(?![\d.,*`#])", "", plain)  # not inside of a number
    found: set[float] = set()
    bare = not _WORDS.search(plain)
    for number in _NUMERAL.finditer(plain):
        near = plain[max(0, number.start() - REACH) : number.start()]
        if bare or _WORDS.search(near):
            found |= _values(plain, number)
    return found


def _values(plain: str, number: re.Match[str]) -> set[float]:
    try:
        value = float(number.group().replace(",", "."))
    except ValueError:
        return set()
    values = {value} if 0 <= value <= 100 else set()
    scale = _SCALE.match(plain, number.end())
    if scale and int(scale[1]) in (5, 10, 20, 50) and 0 <= value <= int(scale[1]):
        values.add(value * 100 / int(scale[1]))
    return values


def mutated(text: str, rng: random.Random, times: int) -> str:
    """The text with so many random changes."""
    for _ in range(times):
        at = rng.randint(0, len(text))
        end = min(len(text), at + rng.randint(1, 12))
        match rng.randrange(6):
            case 0:
                text = text[:at] + text[end:]
            case 1:
                text = text[:end] + text[at:end] + text[end:]
            case 2:
                text = text[:at]
            case 3:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 4:
                text = (
                    text[:at]
                    + chr(rng.choice((32, 45, 48, 57, rng.randrange(0xD7FF))))
                    + text[end:]
                )
            case _:
                other = rng.randint(0, len(text))
                text = text[:at] + text[other : other + 40] + text[at:]
    return text


def main() -> int:
    """Fuzz for some seconds; says how many of what."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    corpus = [case for case in cases() if len(case.text) < 20_000]
    seen: Counter[str] = Counter()
    slowest = (0.0, "")
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        case = rng.choice(corpus)
        text = mutated(case.text, rng, rng.randint(1, 8))
        started = time.process_time()
        found = pointwise(text, case.candidate)
        many = listwise(text, case.ids or ("K7QX",))
        slowest = max(slowest, (time.process_time() - started, text))
        seen["texts"] += 1
        seen["scores" if isinstance(found, Score) else "unparsable"] += 1
        seen["listed"] += len(many)
        if isinstance(found, Score) and found.score not in stated(text):
            print(f"WRONG {found.score}: {text!r}")
            return 1
    record(
        "answers",
        f"Mutations of the answers for {options.seconds:g} s, seed {options.seed}",
        times=seen["texts"],
        wrong=0,
        seen=f"{seen['scores']:,} scores, each stated in its text by an independent reading; "
        f"{seen['unparsable']:,} unparsable",
    )
    rate = seen["texts"] / options.seconds
    print(
        f"{seen['texts']:,} texts ({rate:,.0f} a second): {seen['scores']:,} scores, all stated; "
        f"{seen['unparsable']:,} unparsable; {seen['listed']:,} of lists; wrong: 0; "
        f"longest {slowest[0] * 1000:.0f} ms of CPU for {len(slowest[1]):,} characters"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
