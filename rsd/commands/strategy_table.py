"""What was learned in words and tables, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rsd.strategy.estimates import FEW, Estimate
from rsd.strategy.insight import GraderInsight, Insight, Plan, Record, Signal, Spending
from rsd.strategy.ranking import Cell, LevelInsight, Setting

#: Words for why images end.
REASONS: Final = {
    "agreed": "one answer, graded",
    "no_gain": "more would not pay",
    "cap": "a limit",
    "audit": "audit",
}
LEGEND: Final = (
    f"Ranges hold the mean in 95 of 100 cases; ? is from fewer than {FEW}. An effect is in points "
    "beside the mean of its factor's values, from all images. Evenly: candidates whose arm was "
    "drawn uniformly and that were graded in any case. Scores are as graded: the best of several "
    "owes some of it to luck. A cost of 1 is one candidate that is made and graded alone; as "
    "elsewhere: what an effort has taken of other pictures."
)


def print_records(out: Console, records: Sequence[Record]) -> None:
    """All records, one below the other."""
    for k, record in enumerate(records):
        if k:
            out.print()
        print_record(out, record)


def print_record(out: Console, record: Record) -> None:
    """Head, notes, and a table for everything of which something is known."""
    insight = record.insight
    out.print(head(record))
    if not insight.images + insight.prior_images:
        return
    tables = (
        levels_table(insight.levels) if insight.levels else None,
        cells_table(insight.cells) if insight.cells else None,
        plans_table(insight.plans) if insight.plans else None,
    )
    for table in tables:
        if table is not None:
            out.print()
            out.print(table)
    if insight.setting is not None:
        out.print()
        for line in setting_lines(insight.setting):
            out.print(line, soft_wrap=True)  # to be copied
    out.print()
    out.print(f"[dim]{LEGEND}[/]")


def head(record: Record) -> Table:
    """What it is about, what is wrong with it, and what was counted."""
    learned, insight = record.learned, record.insight
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    models = f"{learned.generator_model or 'the only model served'}, graded by "
    models += f"{learned.grader_model} (rubric {learned.rubric[:8]})"
    rows = [("models", models), ("learned", images_words(insight))]
    rows += [("", f"! {note}") for note in insight.notes]
    if insight.images:
        rows += spending_rows(insight.spending)
        rows += [("grader", grader_words(insight.grader))]
    if insight.images or insight.prior_images:
        rows += [("agreement", signal_words(insight.signal))]
    for name, text in rows:
        grid.add_row(name, escape(text))
    return grid


def images_words(insight: Insight) -> str:
    """From how many images."""
    text = "1 image" if insight.images == 1 else f"{insight.images} images"
    if insight.prior_images:
        text += f"; another run's, which weigh as {insight.prior_images}"
    return text


def spending_rows(spending: Spending) -> list[tuple[str, str]]:
    """What an image took, what that has saved, and how images ended."""
    rows = [
        (
            "an image",
            f"candidates {number(spending.candidates)}, different texts "
            f"{number(spending.distinct)}, graded {number(spending.graded)}, grades "
            f"{number(spending.grades)}",
        ),
        (
            "saved",
            (
                _of(spending.saved, "grade", spending.saved_share) + " and "
                if spending.saved != spending.calls_saved
                else ""
            )
            + _of(spending.calls_saved, "grading call", spending.calls_saved_share)
            + " beside grading every candidate once",
        ),
        (
            "decided",
            f"{percent(spending.one_grade)} by one grade; {percent(spending.accepted)} reach the "
            "threshold; " + reason_words(spending.reasons),
        ),
        (
            "score kept",
            f"{number(spending.winner_score)} as graded, {number(spending.winner_expected)} "
            "expected of another grade",
        ),
    ]
    if spending.unanimous_score is not None:
        text = f"{percent(spending.unanimous)} of the images, mean score "
        rows.append(("unanimous", text + number(spending.unanimous_score)))
    return rows


def _of(count: int, what: str, share: float | None) -> str:
    """So many, and which share that is."""
    text = f"{count} {what}" if count == 1 else f"{count} {what}s"
    return text if share is None else f"{text} ({100 * share:.0f} %)"


def reason_words(reasons: dict[str, int]) -> str:
    """Why images ended, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{REASONS.get(name, name)} {count}" for name, count in ordered) or "-"


def grader_words(grader: GraderInsight) -> str:
    """What its scores are worth."""
    again = "1 text" if grader.regraded == 1 else f"{grader.regraded} texts"
    guess = "a guess" if not grader.regraded else f"{again} graded again"
    text = f"one grade is off by {grader.repeatability:.1f} points ({guess})"
    if grader.second_change is not None:
        text += f"; the second is {grader.second_change:+.1f} points beside the first"
    if grader.tied.n:
        text += f"; best two tied in {percent(grader.tied)} of the images"
    if grader.fives.n:
        text += f"; {percent(grader.fives)} of the scores are multiples of five"
    return text


def signal_words(signal: Signal) -> str:
    """What agreement is worth."""
    weight = signal.weight
    text = f"0.1 more of it is worth {number(tenth(weight.mean))} points of score"
    text += f" ({interval(weight, 0.1)})"
    if signal.slope is not None and signal.correlation is not None:
        text += f"; in {signal.images} audit images {number(tenth(signal.slope))} points, "
        text += f"r = {signal.correlation:.2f} within an image"
    if signal.votes is False:
        text += "; candidates do not vote here (sampling.consensus"
        if signal.grade_price is not None:
            text += f"; a grade costs {number(signal.grade_price)} candidates"
        text += ")"
    return text


def levels_table(levels: Sequence[LevelInsight]) -> Table:
    """Each value of each factor: effect, and mean of the candidates that were drawn evenly."""
    table = _table("", "", "effect", "", "evenly", "", "n", justify="l rrrrr")
    factor = ""
    alone = {x.factor for x in levels if sum(y.factor == x.factor for y in levels) == 1}
    for level in levels:
        name = escape(level.name) + (" <- best" if level.best and level.factor not in alone else "")
        effect = level.effect
        table.add_row(
            level.factor if level.factor != factor else "",
            name if level.in_use else f"[dim]{name} (not in use)[/]",
            "" if level.factor in alone else signed(effect.mean),
            "" if level.factor in alone else interval(effect),
            marked(level.uniform),
            interval(level.uniform),
            str(level.uniform.n),
        )
        factor = level.factor
    return table


def cells_table(cells: Sequence[Cell]) -> Table:
    """Prompts against temperatures: mean score of candidates that were drawn evenly."""
    temperatures = sorted({c.temperature for c in cells}, key=float)
    titles = (f"T {t}" for t in temperatures)
    table = _table("evenly (n)", *titles, justify=" " + "r" * len(temperatures))
    by_place = {(c.prompt, c.temperature): c.uniform for c in cells}
    for prompt in dict.fromkeys(c.prompt for c in cells):
        row = [by_place.get((prompt, t), Estimate()) for t in temperatures]
        words = [f"{marked(e)} ({e.n})" if e.n else "-" for e in row]
        table.add_row(escape(prompt), *words)
    return table


def plans_table(plans: Sequence[Plan]) -> Table:
    """What a price buys, the cheapest first."""
    table = _table("an image", "made", "graded", "cost", "score", "", "accepted", justify=" rrrrrr")
    for plan in sorted(plans, key=lambda p: (p.cost is None, p.cost or 0.0, p.candidates)):
        table.add_row(
            plan.name,
            number(plan.candidates),
            number(plan.grades),
            "-" if plan.cost is None else f"{plan.cost:.2f}",
            marked(plan.score),
            interval(plan.score),
            percent(plan.passing),
        )
    return table


def setting_lines(setting: Setting) -> list[str]:
    """The request for inference without a grader."""
    expected = setting.expected
    score = "its score: too little to say"
    if expected.mean is not None:
        score = f"score to expect: {marked(expected)}, {interval(expected)}"
    return [
        f"[bold]without a grader[/]: {escape(setting.prompt)}; {score}",
        f"vLLM: {escape(msgspec.json.encode(setting.request).decode())}",
        f"OpenAI client: {escape(msgspec.json.encode(setting.client).decode())}",
    ]


def _table(*titles: str, justify: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for title, side in zip(titles, justify, strict=True):
        table.add_column(
            title,
            justify="right" if side == "r" else "left",
            no_wrap=side != " ",
            overflow="fold",
        )
    return table


def number(value: float | None) -> str:
    """One digit behind the point; nothing known is a minus."""
    return "-" if value is None else f"{value:.1f}".removesuffix(".0")


def signed(value: float | None) -> str:
    """With its sign."""
    return "-" if value is None else f"{value:+.1f}"


def marked(estimate: Estimate) -> str:
    """A mean; one of few observations has a question mark."""
    if estimate.mean is None:
        return "-"
    return f"{estimate.mean:.1f}" + ("?" if estimate.few else "")


def tenth(value: float | None) -> float | None:
    """Of a unit of agreement."""
    return None if value is None else value / 10


def interval(estimate: Estimate, scale: float = 1.0) -> str:
    """Its ends."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{scale * estimate.low:.1f} to {scale * estimate.high:.1f}"


def percent(share: Estimate) -> str:
    """A share; one of few observations has a question mark."""
    if share.mean is None:
        return "-"
    return f"{100 * share.mean:.0f} %" + ("?" if share.few else "")
