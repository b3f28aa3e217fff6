"""A booted systemd for the tests: a guest in a container, driven through a script.

The script, named by RSD_SYSTEMD_GUEST, knows `boot DIR [options of systemd-nspawn]`, `run DIR
COMMAND...` and `stop DIR`; the guest is a Debian root file system at RSD_SYSTEMD_ROOT with systemd,
python3 and python3-venv in it. It shares the host's network, so a simulator on the host's loopback
is the guest's too.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import HOME, wait_for

#: Seconds for one command in the guest; `make install` unpacks wheels.
COMMAND_SECONDS = 300
PYTHON, DAEMON = "/opt/rsd/.venv/bin/python", "/opt/rsd/daemon.py"
UNIT = "/etc/systemd/system/rsd.service"
#: Debian's ids of nobody and nogroup.
NOBODY = "65534"
#: Nothing of the host's environment reaches the guest.
CLEAN = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C.UTF-8"]


def missing() -> str:
    """Why these tests cannot run here, or "" when they can."""
    if not os.environ.get("RSD_SYSTEMD_GUEST") or not os.environ.get("RSD_SYSTEMD_ROOT"):
        return "RSD_SYSTEMD_GUEST and RSD_SYSTEMD_ROOT name no guest"
    return "" if os.geteuid() == 0 else "booting a guest needs root"


class Guest:
    """Commands in the guest; `share` is its /srv and a folder of the host."""

    def __init__(self, script: str, root: str, share: Path) -> None:
        self._script, self._root, self.share = script, root, share

    def run(self, *words: str, check: bool = True, stdin: str = "") -> str:
        """Run a command; its stdout and stderr. Fails the test when the command fails."""
        done = self.call(*words, stdin=stdin)
        text = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{shlex.join(words)}: {text}"
        return text

    def call(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            [self._script, "run", self._root, *CLEAN, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file in the guest."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, stdin=text)

    def install(self, images: str, output: str, **variables: str) -> str:
        """`make install` without a network; what it says."""
        given = [f"{k}={v}" for k, v in variables.items()]
        pip = ["PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels"]
        make = ["make", "-C", "/src", "install", f"IMAGES={images}", f"OUTPUT={output}"]
        return self.run("env", *pip, *make, *given)

    def configure(self, **values: str) -> None:
        """Set keys of /etc/rsd/rsd.toml as a person does: find the line, take the # away.

        `section__key` is a key of a table; values are TOML.
        """
        lines = self.run("cat", "/etc/rsd/rsd.toml").splitlines()
        for name, value in values.items():
            section, _, key = name.rpartition("__")
            start = lines.index(f"[{section}]") if section else 0
            at = next(
                n
                for n, line in enumerate(lines)
                if n >= start and line.removeprefix("# ").startswith(f"{key} =")
            )
            lines[at] = f"{key} = {value}"
        self.run("tee", "/etc/rsd/rsd.toml", stdin="\n".join(lines) + "\n")

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.run("systemctl", "show", "rsd", "--value", "-p", name).strip()

    def turn(self) -> str:
        """What the service said."""
        return self.run("journalctl", "-u", "rsd", "--no-pager", "-o", "cat")

    def status(self) -> dict[str, Any]:
        """`status --json` of the installed daemon, as root; {} while nothing can be read."""
        done = self.call(PYTHON, DAEMON, "status", "--json")
        try:
            data: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            return {}
        return data

    def as_nobody(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`daemon.py WORDS` by a user who owns nothing."""
        become = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
        return self.call(*become, PYTHON, DAEMON, *words)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait; the turn is shown when it is in vain."""
        try:
            return wait_for(condition, what, seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.turn()[-4000:]}") from None

    def remove(self) -> None:
        """Take away what an earlier run may have left in the guest."""
        self.call("make", "-C", "/src", "uninstall")
        self.run("rm", "-rf", "/etc/rsd", "/opt/rsd", "/run/rsd", f"{UNIT}.d", UNIT)
        self.run("systemctl", "daemon-reload")
        self.call("systemctl", "reset-failed", "rsd")


def download_wheels(folder: Path) -> None:
    """Everything that requirements.txt asks for, for the guest's pip."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    words = [*pip, "-d", str(folder), "-r", str(HOME / "requirements.txt")]
    subprocess.run(words, check=True, timeout=COMMAND_SECONDS)


@contextmanager
def booted(folder: Path) -> Iterator[Guest]:
    """A guest that has booted; it is shut down afterwards."""
    script, root = os.environ["RSD_SYSTEMD_GUEST"], os.environ["RSD_SYSTEMD_ROOT"]
    wheels, share = folder / "wheels", folder / "srv"
    for made in (wheels, share):
        made.mkdir(mode=0o755)
    download_wheels(wheels)
    make = shutil.which("make")
    assert make is not None
    binds = (f"--bind-ro={HOME}:/src", f"--bind-ro={wheels}:/wheels", f"--bind={share}:/srv")
    # the guest has no make of its own; the host's needs nothing but the C library
    extra = f"--bind-ro={make}:/usr/bin/make"
    log = folder / "boot.txt"
    with log.open("wb") as out:
        # a file, not a pipe: the guest outlives this command and would keep a pipe open
        code = subprocess.call(
            [script, "boot", root, *binds, extra],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )
    assert code == 0, log.read_text()
    guest = Guest(script, root, share)
    try:
        guest.remove()
        yield guest
    finally:
        guest.remove()
        subprocess.call([script, "stop", root], stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS)
