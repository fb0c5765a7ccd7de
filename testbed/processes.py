"""Worker processes that do not outlive their parent, and threads that keep their place. Only the standard library, so
that a worker can begin with it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
