"""Results of rollouts, laid out to be compared: grouped by task, the baseline first. Pure.

Axis names: row, one result (an arm on a task).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import UsageError
from interp.runs import Run
from steering.results import Result, load_result

# the order in which arms are listed; others follow by name
ARMS = (
    "base",
    "aligned",
    "paper",
    "all-heads",
    "lora",
    "full",
    "ffn-only",
    "random-k",
    "bottom-k",
    "generic-k",
    "retain",
)


@dataclass(frozen=True)
class Row:
    """One result at its place: `y` counts rows downwards, headings included."""

    result: Result
    label: str
    y: float
    baseline: bool

    @property
    def n(self) -> int:
        return len(self.result.episodes)

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.result.episodes)


@dataclass(frozen=True)
class Group:
    """All results on one task; `y` is the place of its heading."""

    task: str
    y: float
    rows: tuple[Row, ...]


def results_of(run: Run) -> tuple[list[Result], list[str]]:
    """The run's results, and a line for each file that cannot be read."""
    results, problems = [], []
    for path in run.results.values():
        try:
            results.append(load_result(path))
        except (UsageError, ValueError, TypeError, KeyError, OSError) as error:
            problems.append(str(error))
    return results, problems


def grouped(results: Sequence[Result]) -> list[Group]:
    """Results by task, each at its row."""
    baselines = {"base", *(r.paired.against for r in results if r.paired is not None)}
    place = {arm: i for i, arm in enumerate(ARMS)}
    groups: list[Group] = []
    y = 0.0
    for task in sorted({r.task for r in results}):
        ours = sorted(
            (r for r in results if r.task == task), key=lambda r: (place.get(r.arm, len(ARMS)), r.arm, r.name)
        )
        arms = [r.arm for r in ours]
        rows = tuple(
            Row(r, r.arm if arms.count(r.arm) == 1 else r.name, y + 1 + i, bool({r.arm, r.name} & baselines))
            for i, r in enumerate(ours)
        )
        groups.append(Group(task, y, rows))
        y += len(rows) + 1.4
    return groups


def table(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One flat record a result: the table, and what is exported. Rates are fractions of one."""
    out = []
    for group in groups:
        for row in group.rows:
            r, rate = row.result, row.result.success_rate
            out.append(
                {
                    "name": r.name,
                    "task": r.task,
                    "arm": r.arm,
                    "label": row.label,
                    "n": row.n,
                    "successes": row.successes,
                    "success": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "against": r.paired.against if r.paired else None,
                    "difference": r.paired.difference if r.paired else None,
                    "difference_low": r.paired.low if r.paired else None,
                    "difference_high": r.paired.high if r.paired else None,
                    "heads": len(r.heads) if r.heads is not None else None,
                    "trainable": sum(r.trainable_parameters.values()),
                    "groups": " · ".join(
                        f"{name} {count:,}" for name, count in r.trainable_parameters.items()
                    ),
                    "train_seconds": r.seconds.get("train"),
                    "evaluate_seconds": r.seconds.get("evaluate"),
                    "peak_memory_mb": r.peak_memory_mb,
                    "created": r.created,
                }
            )
    return out


def reading(groups: Sequence[Group]) -> list[str]:
    """The comparison in plain words: one line a task. A difference counts if its interval excludes zero."""
    out = []
    for group in groups:
        said = []
        for row in group.rows:
            paired = row.result.paired
            if paired is None:
                continue
            sure = "" if paired.low > 0 or paired.high < 0 else ", not distinguishable from none"
            interval = f"95 % {_points(paired.low)} to {_points(paired.high)}"
            said.append(f"{row.label} {_points(paired.difference)} points ({interval}{sure})")
        base = [row for row in group.rows if row.baseline]
        start = f"**{group.task}**"
        if base:
            start += f", baseline {100 * base[0].result.success_rate.value:.0f} % of {base[0].n}"
        out.append(f"{start}: {'; '.join(said)}." if said else f"{start}: nothing to compare it with yet.")
    return out


def _points(fraction: float) -> str:
    """Percentage points with a sign and a true minus."""
    return f"{round(100 * fraction):+d}".replace("-", "−") if round(100 * fraction) else "0"
