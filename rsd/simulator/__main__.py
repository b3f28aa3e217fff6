"""`python -m rsd.simulator`: the simulator on its own."""

from __future__ import annotations

import sys

from rsd.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
