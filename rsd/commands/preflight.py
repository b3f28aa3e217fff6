"""What a run needs of this machine before it starts: folders that take files, and open files."""

from __future__ import annotations

import errno
from pathlib import Path

from rsd.errors import StateError, UserError
from rsd.hub.policy import slots
from rsd.settings.fields import Settings, state_dir
from rsd.state.store import refuse_network
from rsd.system.files import refusal
from rsd.system.processes import allow_files

#: What may pass without anybody changing the configuration.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: What a folder must take for a start; an empty file finds room on a full disk.
PROBE_BYTES = 64 * 1024
#: Open files of a process beside those of its calls, and of the hub per child.
FILES, FILES_PER_CHILD = 64, 8
#: Open files per call: the connection, and a picture or a certificate for a moment.
FILES_PER_CALL = 2


def prepare(settings: Settings) -> None:
    """Make the folders, so that what is wrong is found now. Raises UserError for a mistake,
    StateError for what may pass, or for a state on a network file system.
    """
    state = state_dir(settings).resolve()
    refuse_network(state)
    prepare_output(settings)
    _make("state_dir", state)
    children = 1 + settings.processes.generators + settings.processes.graders
    calls = FILES_PER_CALL * max(slots(settings).values())
    allow_files(FILES + max(calls, FILES_PER_CHILD * children))


def prepare_output(settings: Settings) -> None:
    """Make the output folder. Raises UserError or StateError."""
    _make("output_dir", Path(settings.output_dir))


def _make(setting: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".rsd-write-test"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as e:
        line = refusal(setting, folder, e.strerror or str(e))
        raise (StateError if e.errno in PASSING else UserError)(line) from None
