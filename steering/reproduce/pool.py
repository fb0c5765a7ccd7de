"""Where the experiment's jobs run: in processes of this machine, or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from interp.errors import UsageError
from testbed.processes import leave_with_parent

T = TypeVar("T")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""A resumed training gives the weights of one that was never stopped on one thread, and only there."""


@contextmanager
def local(processes: int) -> Iterator[Executor]:
    """Spawned processes of one thread each. They end with this one, and at once when it is interrupted."""
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # inherited; torch reads it when it is imported
    try:
        with ProcessPoolExecutor(processes, context, leave_with_parent) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Cluster(Executor):
    """Jobs on a Ray cluster, a CPU each. Its machines have this environment, and see the work directory at the same
    path: a job reads and writes there, under the locks of steering/reproduce/work.py.

    Errors that a job raises are raised here too, as they are.
    """

    def __init__(self, address: str) -> None:
        """`address` is `host:port` of the cluster's head, or `auto` on one of its machines."""
        try:
            import ray
        except ImportError as error:
            raise UsageError(f"--ray {address} needs Ray ({error}): pip install ray") from error
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": ONE_THREAD},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise UsageError(
                f"--ray {address}: no cluster answers ({why}); `ray start --head` starts one"
            ) from error
        self._ray = ray
        self.processes = int(ray.cluster_resources()["CPU"])

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def done(job: Future[T]) -> None:
            error = job.exception()
            if error is None:
                future.set_result(job.result())
            else:  # Ray's own error has a traceback of several machines for its message
                future.set_exception(getattr(error, "cause", None) or error)

        self._ray.remote(num_cpus=1, max_retries=0)(fn).remote(*args, **kwargs).future().add_done_callback(
            done
        )
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which ends the jobs that were handed in and are not done."""
        self._ray.shutdown()
