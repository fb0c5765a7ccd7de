"""Play episodes of the expert and keep what a learner needs; many at once in spawned workers.

Frame f of an episode holds the observation before action f. The recorded action is the expert's clean one, the
executed one carries Gaussian noise on its translation.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from testbed.expert import Expert
from testbed.processes import leave_with_parent
from testbed.tabletop import CAMERAS, Tabletop
from testbed.variation import Variation

J = TypeVar("J")
R = TypeVar("R")

LABEL_PATCH = 8
"""Side in pixels of the patches that `Episode.labels` speaks of."""


@dataclass(frozen=True)
class Episode:
    """One successful episode of the expert. Units as in `Tabletop`."""

    seed: int
    instruction: str
    images: Mapping[str, UInt8[np.ndarray, "frame height width 3"]]
    state: Float[np.ndarray, "frame 8"]
    action: Float[np.ndarray, "frame 7"]
    labels: UInt8[np.ndarray, "frame camera patches 3"] | None
    """Share of every image patch that shows target, goal and hand; only if asked for."""
    where: Float[np.ndarray, "frame 5"]
    """Target's xyz and goal's xy [m] (zeros without a goal)."""


def play(
    env: Tabletop,
    task: str,
    seed: int,
    noise: float = 0.0,
    labels: bool = False,
    variation: Variation | Mapping[str, Any] | None = None,
) -> Episode | None:
    """Let the expert play one episode; None if it failed (with noise it sometimes does)."""
    observation, _ = env.reset(seed=seed, options={"task": task, "variation": variation})
    expert, rng = Expert(env), np.random.default_rng([seed, 99])
    frames: list[tuple[Any, ...]] = []
    while not env.success and env.failure is None and env.steps < env.max_steps:
        action = expert()
        goal = env.position_of(env.task.goal)[:2] if env.task.goal else np.zeros(2)
        where = np.r_[env.position_of(env.layout.target), goal]
        frames.append((observation, action, env.segment(LABEL_PATCH) if labels else None, where))
        executed = action.copy()
        executed[:3] += noise * rng.normal(size=3)
        env.advance(executed)
        if not env.success:
            observation = env.observe()
    if not env.success:
        return None
    observations, actions, shares, places = zip(*frames, strict=True)
    return Episode(
        seed=seed,
        instruction=env.instruction,
        images={c: np.stack([o["images"][c] for o in observations]) for c in CAMERAS},
        state=np.stack([o["state"] for o in observations]),
        action=np.stack(actions).astype(np.float32),
        labels=np.stack(shares) if labels else None,
        where=np.stack(places).astype(np.float32),
    )


class Mapper(Protocol):
    """`map` over jobs, in the jobs' order."""

    def __call__(self, work: Callable[[J], R], jobs: Sequence[J], /) -> Iterator[R]: ...


@contextmanager
def workers_of(workers: int) -> Iterator[Mapper]:
    """Maps in spawned processes (a fork after a GL context hangs the child), or here for a single worker.

    Processes take seconds to start: keep the mapper for all that there is to do.
    """
    if workers <= 1:
        yield map
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), leave_with_parent) as pool:
        try:
            yield lambda work, jobs: pool.map(work, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_workers(work: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[R]:
    """Results of `work` in order, computed in spawned processes."""
    with workers_of(workers if len(jobs) > 1 else 1) as run:
        yield from run(work, jobs)
