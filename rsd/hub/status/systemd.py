"""systemd's notify protocol: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Notifier:
    """systemd's notify protocol (sd_notify(3)): datagrams to NOTIFY_SOCKET; silent without one."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._last = ""
        usec = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        #: Seconds within which the watchdog must be fed; None without one.
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdigit() and mine else None

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.connect(self._address)
            s.sendall(text.encode())

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is over."""
        self._last = status.replace("\n", " ")
        self._send(f"READY=1\nSTATUS={self._last}")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        line = text.replace("\n", " ")
        if line != self._last:
            self._last = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """The service goes down."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")
