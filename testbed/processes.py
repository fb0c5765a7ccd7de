"""Worker processes that do not outlive their parent, threads that keep their place, and work that one process does at a
time. Only the standard library, so that a worker can begin with it."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems say that have no locks, as those of some clusters: there nobody is kept out."""


def leave_with_parent() -> None:
    """Call first in a worker: a thread watches the parent and ends this process with it.

    A parent that is killed cannot stop its workers, which would compute on, or wait for jobs for ever.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """The calling thread leaves as it was scheduled. SVT-AV1 makes whoever calls it a real-time thread of the highest
    priority, if the user may (root may): on a robot's computer that starves everything else, for good.
    """
    if not hasattr(os, "sched_getscheduler"):  # Linux alone knows it
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)


@contextmanager
def claimed(lock: Path, taken: Exception) -> Iterator[None]:
    """Hold a lock file, which is made, or raise `taken` while another process holds it.

    The lock goes with the process, however it ends. The file stays: without it, two processes could hold two of a name.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
