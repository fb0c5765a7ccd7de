"""Closed-loop evaluation: does the policy do the task?

`evaluate` runs n episodes in spawned workers and keeps every episode's seed, outcome, length and reason of failure;
`evaluate_all` does so under several conditions with one set of workers, because starting them is what costs; `film`
shows single episodes.

Pairing. Episode i starts from environment seed `seed0 + i`, and the flow-matching noise of its step t is a
function of (seed, t) alone. Two policies evaluated with the same `seed0` therefore meet the same layouts and
draw the same noise, whatever the number of workers, and can be compared episode by episode.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from steering.episode import Condition, Episode, noise_seed, rollout
from steering.progress import Progress
from steering.stats import Interval, wilson
from steering.video import check_format
from steering.workers import Job, Order, RolloutError, Workers

__all__ = [
    "TABLETOP",
    "Condition",
    "Episode",
    "Evaluation",
    "RolloutError",
    "evaluate",
    "evaluate_all",
    "film",
    "noise_seed",
    "rollout",
]

TABLETOP = "testbed.tabletop:robosteer/Tabletop-v0"  # module:id, gymnasium imports the module, we do not


@dataclass(frozen=True)
class Evaluation:
    """All episodes of one policy under one condition, in the order of their seeds."""

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
    cameras: Mapping[str, str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Roll out a policy (directory or name, as for `load_policy`) on n seeded episodes of a task.

    `execute` is how many actions of a chunk run before the next sample; the policy's own setting by default.
    `variation` goes to the environment's reset; `cameras` says which of its images a camera of the policy sees, where
    names do not tell (steering/fit.py); `device` is where every worker's copy of the policy computes. Raises
    UsageError for a bad task, policy or variation, and RolloutError when a worker dies; Ctrl-C ends all workers.
    """
    condition = Condition(task, {"variation": dict(variation)} if variation else {})
    done = evaluate_all(
        policy,
        [condition],
        n,
        seed0,
        workers=workers,
        execute=execute,
        env=env,
        env_options=env_options,
        cameras=cameras,
        device=device,
        progress=progress,
    )
    with closing(done):
        return next(done)


def evaluate_all(
    policy: str | Path,
    conditions: Sequence[Condition],
    n: int = 100,
    seed0: int = 0,
    *,
    kept: Sequence[Mapping[int, Episode]] | None = None,
    fingerprint: str | None = None,
    unfinished: Callable[[int, Evaluation], object] = lambda condition, evaluation: None,
    workers: int = 2,
    execute: int | None = None,
    env: str = TABLETOP,
    env_options: Mapping[str, Any] | None = None,
    cameras: Mapping[str, str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Generator[Evaluation]:
    """Yield one evaluation a condition, in their order, each as soon as it is complete.

    `kept` holds the episodes of every condition that were run before, by seed: they are not run again. `fingerprint` is
    of the policy that ran them; another one is refused. An evaluation's `seconds` count from the one before; those of
    the first include the start of the workers. Whatever ends this early (Ctrl-C, a worker that dies), `unfinished` is
    given what conditions (by their place) have so far that are not complete.
    """
    check_numbers(n, seed0, workers)
    if not conditions:
        raise UsageError("no condition: evaluate under at least one")
    kept = kept or [{} for _ in conditions]
    done = [dict(episodes) for episodes in kept]
    seeds = range(seed0, seed0 + n)
    orders = [Order(i, s) for i in range(len(conditions)) for s in seeds if s not in done[i]]
    missing = [len(set(seeds) - episodes.keys()) for episodes in done]
    job = Job(str(policy), tuple(conditions), env, dict(env_options or {}), execute, cameras or {}, device)
    started, ended = time.perf_counter(), 0
    with Workers(job, min(workers, max(1, len(orders)))) as pool:
        pool.wait_until_loaded()  # bad input is told before a bar is drawn
        if fingerprint not in (None, pool.fingerprint):
            raise UsageError(
                f"policy {policy} is {pool.fingerprint}, not {fingerprint}: "
                "its directory has changed; finetune or capture again"
            )

        def evaluation(i: int, seconds: float) -> Evaluation:
            return Evaluation(
                task=conditions[i].task,
                policy=pool.fingerprint,
                episodes=tuple(done[i][seed] for seed in sorted(done[i])),
                seconds=seconds,
                settings=settings_of(conditions[i], policy, seed0, pool.execute, env, cameras),
            )

        label = conditions[0].task if len(conditions) == 1 else f"{len(conditions)} conditions"
        with Progress(len(orders), label, show=progress) as bar:
            results = pool.run(orders)
            try:
                for i in range(len(conditions)):
                    while missing[i]:
                        order, episode = next(results)
                        done[order.condition][episode.seed] = episode
                        missing[order.condition] -= 1
                        outcomes = [e.success for e in done[order.condition].values()]
                        bar.update(len(orders) - sum(missing), success=sum(outcomes) / len(outcomes))
                    now = time.perf_counter()
                    spent, started, ended = now - started, now, i + 1
                    yield evaluation(i, spent)
            except BaseException:
                for i in range(ended, len(conditions)):
                    if len(done[i]) > len(kept[i]):
                        unfinished(i, evaluation(i, time.perf_counter() - started if i == ended else 0.0))
                raise


def check_numbers(n: int, seed0: int, workers: int) -> None:
    """Refuse what cannot be evaluated, also where nothing is left to run."""
    if n < 1:
        raise UsageError(f"n = {n} episodes: evaluate at least one")
    if seed0 < 0:
        raise UsageError(f"seed0 = {seed0}: episode seeds start at 0")
    if workers < 1:
        raise UsageError(f"workers = {workers}: evaluation needs at least one")


def settings_of(
    condition: Condition,
    policy: str | Path,
    seed0: int,
    execute: int | None,
    env: str,
    cameras: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What an evaluation was asked for, as JSON keeps it."""
    asked = {
        "policy": _shown(policy),
        "seed0": seed0,
        "execute": execute,
        "variation": None,
        **condition.options,
        "rolled_out": condition.task,
        "env": env,
        **({"cameras": cameras} if cameras else {}),
    }
    return dict(json.loads(json.dumps(asked)))


def film(
    policy: str | Path,
    condition: Condition,
    films: Mapping[int, Path],
    *,
    title: str = "",
    scored: Mapping[int, Episode] | None = None,
    execute: int | None = None,
    env: str = TABLETOP,
    env_options: Mapping[str, Any] | None = None,
    cameras: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Iterator[tuple[Path, Episode]]:
    """Film episodes by seed to gif or mp4 files, in a worker as they are scored in: bit for bit the same episodes.

    `scored` are episodes of the same policy and condition that were run before; one that comes out otherwise now is an
    error, because its film would show something else than its result.
    """
    for seed, path in films.items():
        check_format(Path(path).suffix.lstrip("."))
        if seed < 0:
            raise UsageError(f"video of seed {seed}: episode seeds start at 0")
    orders = [Order(0, seed, Path(path), title or condition.task) for seed, path in films.items()]
    options = {"render_mode": "rgb_array", **(env_options or {})}
    job = Job(str(policy), (condition,), env, options, execute, cameras or {}, device)
    with Workers(job, 1) as pool:
        pool.wait_until_loaded()
        for order, episode in pool.run(orders):
            before = (scored or {}).get(order.seed, episode)
            if (before.success, before.steps) != (episode.success, episode.steps):
                raise RolloutError(
                    f"the episode with seed {order.seed} was scored {before} and is filmed {episode}: "
                    "policy, environment or library versions have changed since"
                )
            assert order.film is not None
            yield order.film, episode


def _shown(policy: str | Path) -> str:
    """A policy's name for results, which hold no paths of one machine."""
    path = Path(policy)
    if not path.is_absolute():
        return str(policy)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
