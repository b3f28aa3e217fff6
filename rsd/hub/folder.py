"""The watched folder as the hub's main thread sees it: arrivals, departures, rescans, `--once`.

The watcher lives in threads of its own (`watcher.py`); this is where what it found becomes events
of the brain and questions to the writer.
"""

from __future__ import annotations
