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
    """Seeds with any cell done."""


def coverage(plan: Plan, entries: Iterable[Entry]) -> list[Covered]:
    full = {
        (e.result.task, e.arm, e.result.settings.get("seed") or 0, e.result.suite)
        for e in entries
        if len(e.result.episodes) >= plan.n
    }
    found = []
    for study in plan.studies:
        cells = [
            (job.task, job.arm.name, job.seed, suite)
            for job in plan.only(studies=[study.name]).jobs()
            for suite in job.suites
        ]
        there = [cell for cell in cells if cell in full]
        seeds = tuple(sorted({seed for _, arm, seed, _ in there if arm != "base"}))
        found.append(Covered(study.name, study.question, len(cells), len(there), seeds))
    return found
