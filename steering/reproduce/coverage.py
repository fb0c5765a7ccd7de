"""How much of a plan there are results for: a report says so before it says anything else; and which arms compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from steering.reproduce.plan import Plan
from steering.results import IN_DOMAIN, Entry


@dataclass(frozen=True)
class Covered:
    """A study's cells (arm, task, seed, suite): planned, and those with all their rollouts.

    Of a study that tries arms elsewhere than in-domain, what is there alone: its cells in-domain, which it needs to
    compare with, are those of other studies, and would pass for robustness that was not tried.
    """

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
            if suite != IN_DOMAIN or study.suites == (IN_DOMAIN,)
        ]
        there = [cell for cell in cells if cell in rollouts]
        seeds = tuple(sorted({seed for _, arm, seed, _ in there if arm != "base"}))
        fewer = sorted(rollouts[cell] for cell in there if rollouts[cell] < plan.n)
        done = len(there) - len(fewer)
        found.append(Covered(study.name, study.question, len(cells), done, seeds, len(fewer), tuple(fewer)))
    return found


def partly_tried(entries: Iterable[Entry]) -> list[str]:
    """Arms not tried on every task and suite that the most tried arm was: means over these do not compare.

    Arms that were tried in-domain alone are among them; the base, which is not trained, is not.
    """
    places: dict[str, set[tuple[str, str]]] = {}
    for e in entries:
        beyond = {(e.result.task, e.result.suite)} if e.result.suite != IN_DOMAIN else set()
        places.setdefault(e.arm, set()).update(beyond)
    everything = max(places.values(), key=len, default=set())
    return sorted(arm for arm, tried in places.items() if arm != "base" and not tried >= everything)
