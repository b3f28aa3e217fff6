"""What a decision of the strategy that learns costs, and what an image teaches in how long.

python benchmarks/bench_strategy.py

Answers have eight edges of which some are read wrongly; 32 candidates are the most of an image but
under `maximal`, which has 108.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rsd.protocol.learned import Learned, nothing_learned
from rsd.protocol.vocabulary import Recipe, Usage
from rsd.strategy.arms import Arms
from rsd.strategy.base import CallPrices, ImageState, Lesson, Seen
from rsd.strategy.choose import next_step
from rsd.strategy.learn import learn
from rsd.strategy.memory import Memory, Solved

EDGES = ("ab", "bc", "cd", "de", "ea", "af", "bg", "ch")
PRICES = CallPrices(candidate=0.029, grading=5.346, graded=1.122, pointwise=True)
RECIPE = Recipe(
    prompts={f"p{i}": f"Prompt {i}." for i in range(6)},
    grading_template="{generated_answer}",
    strategy="adaptive",
    candidates=1,
    seed=0,
    temperatures=(0.3, 0.7, 1.0),
    top_ps=(0.7, 0.9),
    top_ks=(40, 60, 80),
    min_p=0.0,
    repetition_penalty=1.0,
    max_tokens=1024,
    score_threshold=80.0,
    stop_score=None,
    repeats=1,
    list_size=6,
    generator_model="generator",
    grader_model="grader",
    consensus="on",
    effort="maximal",
    candidates_max=108,
    grades_max=24,
)


def candidates(count: int, graded: int) -> tuple[Seen, ...]:
    """So many, about a third of them equal to another one."""
    roll = random.Random(count)
    arms = Arms.of(RECIPE).arms
    found = []
    for index in range(count):
        edges = (e if roll.random() < 0.75 else e[::-1] for e in EDGES)
        text = "\n".join(f"block {a} --> block {b}" for a, b in edges)
        scores = (roll.uniform(40, 90),) if index < graded else ()
        found.append(
            Seen(
                index=index,
                arm=arms[roll.randrange(len(arms))],
                explore=False,
                text=text,
                scores=scores,
                bought=len(scores),
            )
        )
    return tuple(found)


def state(seen: tuple[Seen, ...], learned: Learned) -> ImageState:
    """Of one image."""
    return ImageState(
        recipe=RECIPE,
        sha256="ab" * 32,
        planned=len(seen),
        rounds=2,
        allotment=1,
        bought={c.index: c.bought for c in seen},
        scores={c.index: c.scores[0] for c in seen if c.scores},
        candidates=seen,
        learned=learned,
        prices=PRICES,
    )


def lesson(seen: tuple[Seen, ...]) -> Lesson:
    """The image is decided."""
    return Lesson(
        recipe=RECIPE,
        sha256="ab" * 32,
        candidates=seen,
        winner=0,
        score=80.0,
        expected_score=80.0,
        accepted=True,
        reason="no_gain",
        generated=tuple(Usage(input_tokens=900, output_tokens=100) for _ in seen),
        graded=tuple((1, Usage(input_tokens=1500, output_tokens=300)) for c in seen if c.scores),
    )


def milliseconds(work: Callable[[], object], times: int = 41) -> float:
    """Median processor time of some runs."""
    spent = []
    for _ in range(times):
        begun = process_time()
        work()
        spent.append(process_time() - begun)
    return 1000 * median(spent)


def main() -> None:
    """Print the table."""
    record = nothing_learned(RECIPE)
    for graded in (2, 3, 4):
        record = learn(record, lesson(candidates(16, graded)))
    print("candidates  texts  graded  decision, new record  nothing new  from nothing  learn  [ms]")
    for count, graded in ((16, 0), (16, 3), (32, 0), (32, 5), (64, 6), (108, 6)):
        seen = candidates(count, graded)
        texts = len({c.text for c in seen})
        memory = Memory(Solved())
        next_step(state(seen, record), memory)
        records = [learn(record, lesson(candidates(16, 3))) for _ in range(12)]

        def changed(
            seen: tuple[Seen, ...] = seen,
            memory: Memory = memory,
            records: list[Learned] = records,
        ) -> object:
            return next_step(state(seen, records.pop()), memory)

        def same(seen: tuple[Seen, ...] = seen, memory: Memory = memory) -> object:
            return next_step(state(seen, record), memory)

        new = milliseconds(changed, 12)
        known = milliseconds(same)
        cold = milliseconds(lambda seen=seen: next_step(state(seen, record), Memory()))
        taught = milliseconds(lambda seen=seen: learn(record, lesson(seen)))
        print(
            f"{count:10d}  {texts:5d}  {graded:6d}  {new:20.2f}  {known:11.2f}  {cold:12.2f}"
            f"  {taught:5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
