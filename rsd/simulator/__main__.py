"""`python -m rsd.simulator`: the simulator alone."""

from __future__ import annotations

import sys

from rsd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["simulate", *sys.argv[1:]]))
