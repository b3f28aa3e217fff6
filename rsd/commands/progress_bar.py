"""The progress bar of a pass on a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from rsd.commands.progress_lines import Lines, facts_of, starting
from rsd.protocol.status import Status


class Bar(Lines):
    """Progress of `--once`, drawn on stderr."""

    live = True

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("images", total=None)
        self._facts = Text("", no_wrap=True, overflow="ellipsis")
        self._screen = Live(Group(self._bar, self._facts), console=self._console, transient=True)

    def close(self) -> None:
        """Leave the screen as it was."""
        self._screen.stop()

    def show(self, status: Status) -> None:
        """Take a status document."""
        self.last = status
        self._screen.start()  # not before: it has a thread, and the hub forks until it has one
        images = status.images
        self._bar.update(self._task, total=images.seen or None, completed=images.ended)
        self._facts.plain = "starting" if starting(status) else facts_of(status)

    def print_line(self, line: str) -> None:
        """One line."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
