"""Closed-loop evaluation: does the policy do the task?

`evaluate` runs n episodes in spawned worker processes (never forked: a child forked after a GL context was
made hangs) and keeps every episode's seed, outcome, length and reason of failure.

Pairing. Episode i starts from environment seed `seed0 + i`, and the flow-matching noise of its step t is a
function of (seed, t) alone. Two policies evaluated with the same `seed0` therefore meet the same layouts and
draw the same noise, whatever the number of workers, and can be compared episode by episode.

Axis names: horizon (actions of one chunk), action.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from interp.errors import UsageError
from interp.policies import Observation, Policy, load_policy
from steering.progress import Progress
from steering.stats import Interval, wilson

TABLETOP = "testbed.tabletop:robosteer/Tabletop-v0"  # module:id, gymnasium imports the module, we do not


class RolloutError(RuntimeError):
    """A worker failed in a way that is not the user's input: its traceback, or the signal that ended it."""


@dataclass(frozen=True)
class Episode:
    """One rollout. `failure` says why it failed, in the environment's words, and is None on success."""

    seed: int
    success: bool
    steps: int
    failure: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """All episodes of one policy on one task, in the order of their seeds."""

    task: str
    policy: str  # fingerprint
    episodes: tuple[Episode, ...]
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.episodes)

    @property
    def successes(self) -> int:
        return sum(e.success for e in self.episodes)

    @property
    def success_rate(self) -> Interval:
        return wilson(self.successes, self.n)


@dataclass(frozen=True)
class Job:
    """What every worker of an evaluation needs; sent to it when it starts."""

    policy: str
    task: str
    env: str
    env_options: Mapping[str, Any]
    variation: Mapping[str, Any] | None
    execute: int | None


def evaluate(
    policy: str | Path,
    task: str,
    n: int = 100,
    seed0: int = 0,
    *,
    workers: int = 2,
    variation: Mapping[str, Any] | None = None,
    execute: int | None = None,
    env: str = TABLETOP,
    env_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    directory: Path | None = None,
) -> Evaluation:
    """Roll out a policy (directory or name, as for `load_policy`) on n seeded episodes of a task.

    `execute` is how many actions of a chunk run before the next sample; the policy's own setting by default.
    `variation` goes to the environment's reset. Raises UsageError for a bad task, policy or variation, and
    RolloutError when a worker dies; Ctrl-C ends all workers.
    """
    if n < 1:
        raise UsageError(f"n = {n} episodes: evaluate at least one")
    if seed0 < 0:
        raise UsageError(f"seed0 = {seed0}: episode seeds start at 0")
    if workers < 1:
        raise UsageError(f"workers = {workers}: evaluation needs at least one")
    job = Job(str(policy), task, env, dict(env_options or {}), variation, execute)
    started = time.perf_counter()
    episodes: dict[int, Episode] = {}
    with _Workers(job, min(workers, n)) as pool:
        pool.wait_until_loaded()  # bad input is told before a bar is drawn
        with Progress(n, task, show=progress, directory=directory) as bar:
            for episode in pool.run(range(seed0, seed0 + n)):
                episodes[episode.seed] = episode
                successes = sum(e.success for e in episodes.values())
                bar.update(len(episodes), success=successes / len(episodes))
    return Evaluation(
        task=task,
        policy=pool.fingerprint,
        episodes=tuple(episodes[seed] for seed in sorted(episodes)),
        seconds=time.perf_counter() - started,
        settings={
            "policy": str(policy),
            "seed0": seed0,
            "execute": pool.execute,
            "variation": dict(variation) if variation else None,
            "env": env,
        },
    )


def rollout(
    policy: Policy,
    env: gymnasium.Env[Any, Any],
    seed: int,
    *,
    execute: int,
    variation: Mapping[str, Any] | None = None,
) -> Episode:
    """One episode in this process: sample a chunk, run its first `execute` actions, look again."""
    observation, info = env.reset(seed=seed, options={"variation": dict(variation)} if variation else None)
    steps, over, truncated = 0, False, False
    while not over:
        noise = policy.noise(1, seed=noise_seed(seed, steps))
        chunk = policy.sample(policy.batch([Observation(**observation)]), noise)[0, :execute].cpu().numpy()
        for action in chunk:
            observation, _, terminated, truncated, info = env.step(action)
            steps, over = steps + 1, terminated or truncated
            if over:
                break
    success = bool(info["success"])
    reason = info.get("failure") or ("time ran out" if truncated else "unknown")
    return Episode(seed, success, steps, None if success else reason)


def noise_seed(seed: int, step: int) -> int:
    """A seed for the noise of one step of one episode, unrelated between neighbours."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


# workers


class _Workers:
    """Processes that each hold one policy and one environment, fed one seed at a time over a pipe.

    A pipe each, not a shared queue: a dead worker is an end-of-file on its own pipe, at once, and a worker
    whose parent dies reads end-of-file too and leaves.
    """

    def __init__(self, job: Job, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._job, self._count = job, count
        self._processes: dict[Connection, BaseProcess] = {}
        self.fingerprint, self.execute = "", 0

    def __enter__(self) -> _Workers:
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

    def run(self, seeds: range) -> Iterator[Episode]:
        """Yield episodes as they finish."""
        waiting, working = deque(seeds), dict[Connection, int]()

        def feed(idle: Connection) -> None:
            if waiting:
                working[idle] = waiting.popleft()
                with suppress(BrokenPipeError):  # dead: the next wait says so
                    idle.send(working[idle])

        for connection in self._processes:
            feed(connection)
        for _ in seeds:
            (ready, *_) = wait(list(working))
            assert isinstance(ready, Connection)
            episode = self._receive(ready, working.pop(ready))
            assert isinstance(episode, Episode)
            yield episode
            feed(ready)

    def _receive(self, connection: Connection, seed: int | None) -> object:
        process = self._processes[connection]
        try:
            kind, payload = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            where = "while loading" if seed is None else f"in the episode with seed {seed}"
            raise RolloutError(
                f"rollout worker {process.pid} died {where} ({_exit_reason(process.exitcode)}); "
                "with little memory, try fewer workers"
            ) from None
        if kind == "usage":
            raise UsageError(payload)
        if kind == "error":
            raise RolloutError(f"rollout worker {process.pid} failed:\n{payload}")
        if kind == "ready":
            self.fingerprint, self.execute = payload
        return payload


def _work(connection: Connection, job: Job) -> None:
    """The life of a worker: load once, then one episode for every seed received, until the pipe closes."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        policy = load_policy(job.policy)
        options = {"task": job.task, "image_size": policy.spec.image_size, **job.env_options}
        env = gymnasium.make(job.env, disable_env_checker=True, **options)
        execute = policy.spec.execute if job.execute is None else job.execute
        if not 1 <= execute <= policy.spec.horizon:
            raise UsageError(f"execute = {execute}: the policy's chunks hold {policy.spec.horizon} actions")
        if job.variation:
            env.reset(
                seed=0, options={"variation": dict(job.variation)}
            )  # a bad one is told before any episode
        connection.send(("ready", (policy.fingerprint, execute)))
        while True:
            seed = connection.recv()
            connection.send(("episode", rollout(policy, env, seed, execute=execute, variation=job.variation)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone or is done
    except Exception as error:
        # a ValueError that somebody gave a name (UsageError, testbed.TestbedError) is bad input in one line
        named = isinstance(error, ValueError) and type(error) is not ValueError
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(("usage", str(error)) if named else ("error", traceback.format_exc()))


def _leave_with_parent() -> None:
    """A parent that is killed cannot stop its workers, and an episode may be long."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
