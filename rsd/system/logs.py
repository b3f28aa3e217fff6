"""Logging: children forward their records to the hub, which alone writes stderr and the file."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rsd.system.files import refusal
from rsd.system.redact import Redactor

#: One log file's size in bytes, and how many old ones are kept.
FILE_BYTES, FILE_COUNT = 10 * 1024 * 1024, 5
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Forward(logging.Handler):
    def __init__(self, send: Callable[[int, str, str], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._send(record.levelno, record.name, text)


class _OneLine(logging.Formatter):
    """One record, one line, whatever a file name or a server's answer holds; no secrets.

    The text of tracebacks keeps its line breaks: they are ours.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(_FORMAT)
        self._redactor = Redactor(secrets)

    def format(self, record: logging.LogRecord) -> str:
        text = self._redactor.text(super().format(record))
        return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class _File(logging.handlers.RotatingFileHandler):
    """A file that nobody else may change. A disk that refuses costs lines of the file, no more:
    they are on stderr, and `refused` says why for as long as it lasts.
    """

    def __init__(self, path: Path) -> None:
        self.refused = ""
        self._failed = False
        super().__init__(
            path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8", delay=True
        )

    def _open(self) -> io.TextIOWrapper:
        fd = os.open(self.baseFilename, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # what the disk took of a line last time stays a line of its own
        return os.fdopen(fd, "a", encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if not self._failed:
            self.refused = ""

    def handleError(self, record: logging.LogRecord) -> None:
        self._failed = True
        error = sys.exc_info()[1]
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        folder = Path(self.baseFilename).parent
        self.refused = refusal("logs in output_dir", folder, why)
        stream, self.stream = self.stream, None
        if stream is not None:  # with all that it still holds: half a line is no use
            with contextlib.suppress(OSError):
                stream.close()


def refused() -> str:
    """Why the log file cannot be written; "" when it can."""
    found = [h.refused for h in logging.getLogger().handlers if isinstance(h, _File)]
    return found[0] if found else ""


def forward(send: Callable[[int, str, str], None], level: str) -> None:
    """In a child: `send(level, logger, text)` gets every record."""
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
        with contextlib.suppress(OSError):  # the handler says it with every line
            folder.mkdir(parents=True, exist_ok=True)
        handlers.append(_File(folder / "rsd.log"))
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(level)
    logging.raiseExceptions = False  # a stderr that nobody reads must not disturb the line
    for noisy in ("watchdog", "urllib3", "PIL", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def replay(level: int, logger: str, text: str) -> None:
    """In the hub: write a child's record."""
    logging.getLogger(logger).log(level, "%s", text)


# --------------------------------------------------------------- replies: from a worker to the hub
