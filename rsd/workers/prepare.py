"""Pictures prepared: verified and written into the spool. Nobody else among the workers opens one:
this runs in one thread of a generator, and for `check` in a process of its own; neither holds a key
of the grader.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from rsd.errors import ErrorClass
from rsd.protocol.tasks import WHOLE, Configure, Decoding, LeaseId, Prepare, Prepared
from rsd.protocol.vocabulary import SPOOL_REFUSED, CallError, ImageInfo
from rsd.system.failpoints import failpoint
from rsd.workers import images
from rsd.workers.api.replies import CallFailed
from rsd.workers.cpu import bounded
from rsd.workers.worker import SHORT_OF_MEMORY, Worker

#: Computing time that one picture may take, in seconds: once, and per megapixel that is allowed.
#: What is encoded again takes most, about a quarter of that at 50 megapixels.
CPU_ONCE, CPU_PER_MEGAPIXEL = 20.0, 1.0


def prepare(worker: Worker, lease: LeaseId, task: Prepare) -> Prepared:
    """Verify a picture and write what is sent of it into the spool. Raises CallFailed for a picture
    that is no good, and when the disk refuses.
    """
    configuration = worker.configuration
    assert configuration is not None

    def announce() -> None:
        """Before Pillow touches the bytes: a death from here on is held against the picture."""
        worker.channel.reply(Decoding(lease=lease, image=task.image))
        failpoint("generator.decoding", signal.SIGSEGV)

    roomy = worker.roomy
    try:
        info = spooled(configuration, configuration.image_dir, task.path, task.variant, announce)
    except CallFailed as e:
        if e.error.reason == images.TOO_MUCH_MEMORY and not roomy:
            raise CallFailed(SHORT_OF_MEMORY) from None  # the calls had taken it
        raise
    return Prepared(lease=lease, image=task.image, info=info)


def spooled(
    configuration: Configure,
    folder: bytes,
    path: bytes,
    variant: str = WHOLE,
    before_decode: Callable[[], None] = lambda: None,
) -> ImageInfo:
    """The picture at `path` below `folder`, now in the spool. Raises CallFailed. A picture that
    takes more computing time than any good one ends the process.
    """
    limits = images.Limits(
        max_pixels=configuration.max_pixels,
        max_file_bytes=configuration.max_file_bytes,
        min_side=configuration.min_side,
        max_aspect=configuration.max_aspect,
        background=configuration.background,
    )
    try:
        with bounded(CPU_ONCE + CPU_PER_MEGAPIXEL * configuration.max_pixels / 1e6):
            return images.prepare(
                folder,
                path,
                Path(configuration.spool_dir),
                limits,
                before_decode,
                variant=variant,
                plain=configuration.pictures == "file",
            )
    except images.SpoolRefused as e:
        refused = CallError(error=ErrorClass.TRANSIENT, message=str(e), reason=SPOOL_REFUSED)
        raise CallFailed(refused) from None
    except images.BadImage as e:
        raise CallFailed(e.error) from None
