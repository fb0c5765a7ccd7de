"""Record demonstrations of the scripted expert as a LeRobotDataset v3 directory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from testbed.dataset import Take, write_dataset
from testbed.episodes import play, workers_of
from testbed.processes import claimed
from testbed.tabletop import Tabletop
from testbed.tasks import get_task
from testbed.variation import TestbedError, Variation

DEMO_NOISE = 0.004
"""Standard deviation [m] of the noise on executed actions; the recorded action is clean."""
FIRST_SEED = 500_000
"""Demonstrations' first seed by default: evaluation uses seeds from 0, pretraining from 1 000 000."""
ALONE = 8
"""Episodes that are recorded sooner than a worker has started."""


@dataclass(frozen=True)
class _Job:
    task: str
    seed: int
    noise: float
    image_size: int
    variation: Variation | Mapping[str, Any] | None


_env: Tabletop | None = None


def _play(job: _Job) -> Take | None:
    """One episode in this process' own environment, which is kept for the next one."""
    global _env
    if _env is None or _env.image_size != job.image_size:
        _env = Tabletop(image_size=job.image_size)
    episode = play(_env, job.task, job.seed, job.noise, variation=job.variation)
    return None if episode is None else Take.of(episode)


def record(
    task: str | Sequence[str],
    episodes: int,
    directory: Path | str,
    seed: int = FIRST_SEED,
    workers: int = 2,
    noise: float = DEMO_NOISE,
    image_size: int = 64,
    variation: Variation | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Write `episodes` successful episodes (of each task) from consecutive seeds; returns the directory.

    The directory appears by rename when everything is written; an existing one is an error, and one that another
    process is recording.
    """
    names = [task] if isinstance(task, str) else list(task)
    for name in names:
        get_task(name)
    if episodes < 1:
        raise TestbedError(f"episodes {episodes}: record at least 1")
    if seed < 0:
        raise TestbedError(f"seed {seed}: seeds start at 0")
    if seed >= 2**63:
        raise TestbedError(f"seed {seed}: seeds have at most 63 bits")
    directory = Path(directory)
    if directory.exists():
        raise TestbedError(f"{directory}: already exists; remove it or name another directory")
    look = Variation.of(variation)
    kept: dict[str, list[Take]] = {name: [] for name in names}
    tried = dict.fromkeys(names, 0)
    total = episodes * len(kept)
    taken = TestbedError(f"{directory}: another process records there; wait for it or name another directory")
    with (
        claimed(directory.with_name(f".{directory.name}.lock"), taken),
        tqdm(total=total, desc="recording", unit="episode", disable=not progress) as bar,
        workers_of(workers if total > ALONE else 1) as in_workers,
    ):
        while missing := {
            name: episodes - len(takes) for name, takes in kept.items() if len(takes) < episodes
        }:
            jobs = [
                _Job(name, seed + tried[name] + i, noise, image_size, variation)
                for name, wanted in missing.items()
                for i in range(wanted)
            ]
            for job, take in zip(jobs, in_workers(_play, jobs), strict=True):
                tried[job.task] += 1
                if (
                    take is not None
                ):  # failures are rare and come from the noise: the next seed takes their place
                    kept[job.task].append(take)
                    bar.update()
            for name, takes in kept.items():
                if len(takes) < episodes and tried[name] > 20 * episodes + 100:
                    failed = tried[name] - len(takes)
                    raise TestbedError(
                        f"task {name}: the expert failed {failed} of {tried[name]} times under {look}"
                    )
        temporary = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        write_dataset([take for name in names for take in kept[name]], temporary, image_size)
        temporary.rename(directory)
    return directory
