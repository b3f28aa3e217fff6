"""Entry point of rsd; spawned children import it again, so it only hands over."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("rsd: needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2])  # noqa: UP031

if __name__ == "__main__":
    from rsd.system import signals

    signals.end_early(sys.argv[1:])  # the imports take a moment, and a signal may come meanwhile

from rsd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
