"""Parts of the sentences of the advice: an arm's cost, a difference and what it rests on, lists of arms and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from steering.reproduce.claims import MAIN_NAMES
from steering.reproduce.contrast import Contrast, contrast, points
from steering.reproduce.published import MARGIN
from steering.results import Entry


def arms_of(entries: Iterable[Entry]) -> list[str]:
    there = {e.arm for e in entries}
    return [arm for arm in MAIN_NAMES if arm in there and arm != "base"]


def trained(entries: Iterable[Entry], arm: str) -> float:
    """Parameters, a mean over the trainings; 0 for one that trains nothing."""
    counts = [sum(e.result.trainable_parameters.values()) for e in entries if e.arm == arm]
    return float(np.mean(counts)) if counts else 0.0


def of(made: Contrast) -> str:
    """The difference, and what it rests on."""
    draw = ", one draw of random heads" if made.one_draw else ""
    return f"{points(made.difference)} points (n = {made.n}, {made.over}, {made.seeds}{draw})"


def on_tasks(made: Iterable[Contrast]) -> str:
    return ", ".join(f"{c.tasks[0]} ({points(c.difference)})" for c in made)


def named(made: Iterable[Contrast]) -> str:
    return ", ".join(f"`{c.arm}` {points(c.difference)}" for c in made)


def by_task(entries: Sequence[Entry], made: Contrast) -> list[Contrast]:
    """The same two arms on every task alone."""
    each = (contrast(entries, made.arm, made.other, made.where, [task]) for task in made.tasks)
    return [c for c in each if c is not None]


def where_apart(entries: Sequence[Entry], made: Contrast) -> tuple[str, bool]:
    """`, better on ..., worse on ...`, and whether it is both."""
    each = by_task(entries, made)
    apart = {kind: [c for c in each if c.finding(MARGIN) == kind] for kind in ("better", "worse")}
    said = "".join(f", {kind} on {on_tasks(there)}" for kind, there in apart.items() if there)
    return said, all(apart.values())
