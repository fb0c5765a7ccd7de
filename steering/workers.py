"""Spawned processes that roll out: each holds the policy and its environments, and is fed one episode at a time.

Spawned, never forked: a child forked after a GL context was made hangs. A pipe each, not a shared queue: a dead worker
is an end-of-file on its own pipe, at once, and a worker whose parent dies leaves by itself.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium

from interp.errors import Failure, UsageError
from interp.policies import load_policy
from steering.episode import Condition, Episode, rollout
from steering.fit import fit
from steering.video import Film
from testbed.processes import leave_with_parent


class RolloutError(Failure):
    """A worker failed in a way that is not the user's input: its traceback, or the signal that ended it."""


@dataclass(frozen=True)
class Job:
    """What every worker needs; sent to it when it starts."""

    policy: str
    conditions: tuple[Condition, ...]
    env: str
    env_options: Mapping[str, Any]
    execute: int | None
    cameras: Mapping[str, str] = field(default_factory=dict)
    """The environment's image for cameras of the policy whose names do not tell."""
    device: str = "cpu"


@dataclass(frozen=True)
class Order:
    """One episode: under which of the job's conditions, from which seed, and where its film goes, if anywhere."""

    condition: int
    seed: int
    film: Path | None = None
    title: str = ""


class Workers:
    """A context manager: `wait_until_loaded`, then `run` any number of times."""

    def __init__(self, job: Job, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._job, self._count = job, count
        self._processes: dict[Connection, BaseProcess] = {}
        self.fingerprint, self.execute = "", 0

    def __enter__(self) -> Workers:
        with _interrupts_ignored():  # inherited: Ctrl-C reaches the whole group, but the parent decides
            for _ in range(self._count):
                ours, theirs = self._context.Pipe()
                process = self._context.Process(target=_work, args=(theirs, self._job), daemon=True)
                process.start()
                theirs.close()  # else its end-of-file would never reach us
                self._processes[ours] = process
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
        for process in self._processes.values():
            process.join()

    def wait_until_loaded(self) -> None:
        """Until every worker holds policy and environment; raises what one of them found wrong."""
        for connection in self._processes:
            self._receive(connection, None)

    def run(self, orders: Sequence[Order]) -> Iterator[tuple[Order, Episode]]:
        """Yield episodes as they finish."""
        waiting, working = deque(orders), dict[Connection, Order]()

        def feed(idle: Connection) -> None:
            if waiting:
                working[idle] = waiting.popleft()
                with suppress(BrokenPipeError):  # dead: the next wait says so
                    idle.send(working[idle])

        for connection in self._processes:
            feed(connection)
        for _ in orders:
            (ready, *_) = wait(list(working))
            assert isinstance(ready, Connection)
            order = working.pop(ready)
            episode = self._receive(ready, order)
            assert isinstance(episode, Episode)
            feed(ready)
            yield order, episode

    def _receive(self, connection: Connection, order: Order | None) -> object:
        process = self._processes[connection]
        try:
            kind, payload = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            where = "while loading" if order is None else f"in the episode with seed {order.seed}"
            raise RolloutError(
                f"rollout worker {process.pid} died {where} ({_exit_reason(process.exitcode)}); "
                "if memory is short, try fewer workers"
            ) from None
        if kind == "usage":
            raise UsageError(payload)
        if kind == "error":
            raise RolloutError(f"rollout worker {process.pid} failed: {payload}")
        if kind == "ready":
            self.fingerprint, self.execute = payload
        return payload


def _work(connection: Connection, job: Job) -> None:
    """The life of a worker: load once, then one episode for every order, until the pipe closes."""
    import torch  # takes seconds: what asks for results, and rolls out nothing, does without

    leave_with_parent()
    torch.set_num_threads(1)
    try:
        policy = load_policy(job.policy, job.device)
        execute = policy.spec.execute if job.execute is None else job.execute
        if not 1 <= execute <= policy.spec.horizon:
            raise UsageError(f"execute = {execute}: the policy's chunks hold {policy.spec.horizon} actions")
        envs: dict[str, gymnasium.Env[Any, Any]] = {}
        for condition in job.conditions:
            if condition.task not in envs:
                options = {"task": condition.task, "image_size": policy.spec.image_size, **job.env_options}
                envs[condition.task] = _made(job.env, options)
                cameras = fit(envs[condition.task], policy.spec, job.cameras)
            if condition.options:  # a bad one is told before any episode
                envs[condition.task].reset(seed=0, options=dict(condition.options))
        connection.send(("ready", (policy.fingerprint, execute)))
        while True:
            order: Order = connection.recv()
            condition = job.conditions[order.condition]
            env = envs[condition.task]
            film = Film(env, policy.spec.action_names) if order.film else None
            with torch.inference_mode():  # a fifth faster than frozen parameters alone, and the same numbers
                episode = rollout(
                    policy,
                    env,
                    order.seed,
                    execute=execute,
                    options=condition.options,
                    watch=film,
                    cameras=cameras,
                )
            if film and order.film:
                film.save(order.film, order.title, episode)
            connection.send(("episode", episode))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone or is done
    except Exception as error:
        # a ValueError that somebody gave a name (UsageError, testbed.TestbedError) is bad input in one line
        named = isinstance(error, ValueError) and type(error) is not ValueError
        with suppress(BrokenPipeError, ConnectionResetError):
            why = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            connection.send(("usage", str(error)) if named else ("error", why))


def _made(env: str, options: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment of that name; one that is not there, or takes other options, is bad input."""
    try:
        return gymnasium.make(env, disable_env_checker=True, **options)
    except (ImportError, gymnasium.error.Error) as error:
        raise UsageError(f"environment {env}: {_line(error)}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        told = ", ".join(options)
        raise UsageError(f"environment {env} must take {told} (docs/libero.md): {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _exit_reason(code: int | None) -> str:
    if code is None:
        return "exit status unknown"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
