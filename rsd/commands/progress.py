"""How far a pass is: a line now and then, or a bar on a terminal."""

from __future__ import annotations

import sys

from rsd.commands.progress_lines import Lines


def shown() -> Lines:
    """What suits stderr. The bar takes a moment to import, which services do not need."""
    if not sys.stderr.isatty():
        return Lines()
    from rsd.commands.progress_bar import Bar

    return Bar()
