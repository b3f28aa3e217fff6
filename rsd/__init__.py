"""rsd: a rejection-sampling daemon for images and netlists."""

from __future__ import annotations

__version__ = "0.1.0"
