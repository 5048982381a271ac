"""Locks of files: one process at a time works on a run, on an entry of a plan or on an output.

Where the file system has no locks (Lustre mounted without flock) nothing is locked, and every lock counts as free.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from risbench import files
from risbench.errors import InputError

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class BusyError(InputError):
    """Another process works in the folder of a run or on an output."""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file while the block runs, and remove it then; yield False if it is locked already."""
    lock = FileLock(path)
    if not _acquire(lock):
        yield False
        return
    try:
        yield True
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()
            lock.release()


def hold(path: Path) -> FileLock | None:
    """Lock a file until the returned lock is dropped; None if another process holds it."""
    lock = FileLock(path, is_singleton=True)  # this process may reopen a run that it has opened
    return lock if _acquire(lock) else None


def _acquire(lock: FileLock) -> bool:
    """Take a lock; return whether nobody else holds it."""
    path = Path(lock.lock_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise files.unwritable(path, error) from None
    return True
