"""Worker processes that do not outlive their parent. Only the standard library, so that a worker can begin with it."""

from __future__ import annotations

import multiprocessing
import os
import threading


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
