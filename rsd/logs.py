"""Logging: children forward their records to the hub, which alone writes stderr and the file."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from rsd.messages import LogLine

#: One log file's size in bytes, and how many old ones are kept.
FILE_BYTES, FILE_COUNT = 10 * 1024 * 1024, 5
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Forward(logging.Handler):
    def __init__(self, send: Callable[[msgspec.Struct], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._send(LogLine(level=record.levelno, logger=record.name, text=text))


class _OneLine(logging.Formatter):
    """One record, one line, whatever a file name or a server's answer holds; no secrets.

    The text of tracebacks keeps its line breaks: they are ours.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(_FORMAT)
        self.secrets = [s for s in secrets if s]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def forward(send: Callable[[msgspec.Struct], None], level: str) -> None:
    """In a child: send every record through `send` (a mailbox's `reply`)."""
    root = logging.getLogger()
    root.handlers = [_Forward(send)]
    root.setLevel(level)
    logging.captureWarnings(True)


def to_stderr_and_file(
    folder: Path | None, level: str, secrets: Iterable[str], *, stderr: bool = True
) -> None:
    """In the hub: one line per record to stderr, and to `folder`/rsd.log with rotation."""
    formatter = _OneLine(secrets)
    handlers: list[logging.Handler] = []
    if stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "rsd.log"
        path.touch(mode=0o640)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8"
            )
        )
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(level)
    logging.raiseExceptions = False  # a full disk under the log must not disturb the line
    for noisy in ("watchdog", "urllib3", "PIL", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def replay(line: LogLine) -> None:
    """In the hub: write a child's record."""
    logging.getLogger(line.logger).log(line.level, "%s", line.text)
