"""How much of a plan there are results for: a report says so before it says anything else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from steering.reproduce.plan import Plan
from steering.results import Entry


@dataclass(frozen=True)
class Covered:
    """A study's cells (arm, task, seed, suite): planned, and those with all their rollouts."""

    study: str
    question: str
    planned: int
    done: int
    seeds: tuple[int, ...]
    """Seeds with any cell done or begun."""
    begun: int = 0
    """Cells with fewer rollouts than planned, and how many these have, from the fewest to the most."""
    begun_n: tuple[int, ...] = ()


def coverage(plan: Plan, entries: Iterable[Entry]) -> list[Covered]:
    rollouts = {
        (e.result.task, e.arm, e.result.settings.get("seed") or 0, e.result.suite): len(e.result.episodes)
        for e in entries
    }
    found = []
    for study in plan.studies:
        cells = [
            (job.task, job.arm.name, job.seed, suite)
            for job in plan.only(studies=[study.name]).jobs()
            for suite in job.suites
        ]
        there = [cell for cell in cells if cell in rollouts]
        seeds = tuple(sorted({seed for _, arm, seed, _ in there if arm != "base"}))
        fewer = sorted(rollouts[cell] for cell in there if rollouts[cell] < plan.n)
        done = len(there) - len(fewer)
        found.append(Covered(study.name, study.question, len(cells), done, seeds, len(fewer), tuple(fewer)))
    return found
