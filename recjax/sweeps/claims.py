"""Claims: at most one process at a time runs a trial, on one machine or on several."""

import fcntl
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

from recjax.errors import CheckpointError


@contextmanager
def claim(folder: pathlib.Path, *, wait: bool = False) -> Iterator[int | None]:
    """Claims a folder, which is made if need be; None where another process holds it.

    What is yielded is a file descriptor that holds the claim. A child process that inherits it
    (`pass_fds`) holds the claim too, so that a trial whose sweep was killed is still claimed until
    its own process ends. The system lets go of a claim with the last process that holds it.

    Args:
      folder: what is claimed.
      wait: until nobody else holds it.

    Raises:
      CheckpointError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "claim", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)  # not LOCK_UN, which would end a child's claim too
