"""What every benchmark has: options, progress on stderr, tables on the terminal and as markdown."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

CLIENTS = ("rsd", "aiohttp", "spliced", "openai")
#: Beside them: `before`, rsd of the checkout that RSD_BENCH_BEFORE names.


def print_line(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """What it ran on, in a line."""
    version = sys.version.split()[0]
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores (shared), Python {version}"


class Report:
    """Tables on the terminal, and as markdown in a file when one is asked for."""

    def __init__(self, title: str, args: argparse.Namespace) -> None:
        self._file: Path | None = args.markdown
        words = [w for w in sys.argv[1:] if not w.startswith("--markdown")]
        if args.markdown is not None:
            words = [w for w in words if w != str(args.markdown)]
        command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *words])
        self._lines = [f"## {title}", "", f"{machine()}; `{command}`", ""]

    def table(self, columns: list[str], rows: list[list[str]], note: str = "") -> None:
        """One table; the first column is text, the others are figures."""
        table = Table(*columns)
        for k in range(1, len(columns)):
            table.columns[k].justify = "right"
        for row in rows:
            table.add_row(*row)
        console = Console(width=max(130, Console().width))
        console.print(table)
        if note:
            console.print(note)
        self._lines.append("| " + " | ".join(columns) + " |")
        self._lines.append("|---|" + "---:|" * (len(columns) - 1))
        self._lines += ["| " + " | ".join(row) + " |" for row in rows]
        self._lines += ["", note, ""] if note else [""]

    def close(self) -> None:
        """Write the file."""
        if self._file is not None:
            self._file.write_text("\n".join(self._lines))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--markdown", type=Path, metavar="FILE", help="the tables as markdown")
    made.add_argument("--rounds", type=int, default=3, help="rounds, each with every client (3)")
    made.add_argument("--clients", nargs="+", choices=(*CLIENTS, "before"), default=list(CLIENTS))
    made.add_argument("--scale", type=float, default=1.0, help="share of the images (1.0)")
    return made
