"""Results of rollouts, laid out to be compared: grouped by task, the baseline first. Pure.

The numbers are `steering.compare`'s, whose words these are: an arm is a policy under its name, a cell an arm on a task
under a suite, every difference is paired with the pinned baseline on the same episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app import raw
from interp.errors import UsageError
from interp.runs import Run
from steering.cells import Cell, Mean
from steering.compare import TRIALS, Arm, Comparison, compare_entries
from steering.gather import as_arms
from steering.results import IN_DOMAIN, Entry, Result, load_result
from steering.stats import Interval

NONE = "–"
"""Stands for a setting that an arm does not have."""
SPOKEN = {
    "visual": "visual changes",
    "linguistic": "linguistic changes",
    "physical": "physical changes",
    "unseen": "tasks that nobody trained",
    "pretraining": "pretraining tasks",
}


@dataclass(frozen=True)
class Row:
    """One arm's cell at its place: `y` counts rows downwards, headings included."""

    cell: Cell
    y: float
    baseline: bool

    @property
    def label(self) -> str:
        return self.cell.arm


@dataclass(frozen=True)
class Group:
    """All arms on one task, as in the demonstrations; `y` is the place of its heading."""

    task: str
    y: float
    rows: tuple[Row, ...]


def read(run: Run) -> tuple[dict[Path, Result], list[str]]:
    """The run's results by file, and a line for each file that cannot be read."""
    found, problems = {}, []
    for path in run.results.values():
        try:
            found[path] = load_result(path)
        except (UsageError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            problems.append(str(error))
    return found, problems


def compared(
    results: Mapping[Path, Result], against: str | None = None, suites: bool = True
) -> Comparison | None:
    """The comparison of results; None if there are none. Without `suites` only in-domain results count, if there are
    any: that takes no time. A cell that cannot be shown is left out, and `notes` say why.

    `against` names an arm, or a result that counts to it. A baseline that is not there is not a wish: the usual one
    then.
    """
    if not results:
        return None
    return _compared(tuple((path, raw.version(path)) for path in results), against, suites)


Files = tuple[tuple[Path, str], ...]
"""Results with what changes when they do."""


@lru_cache(maxsize=32)
def _compared(files: Files, against: str | None, suites: bool) -> Comparison:
    entries, notes = _entries(files)
    usual = [entry for entry in entries if entry.result.suite == IN_DOMAIN]
    counted = entries if suites or not usual else usual
    return compare_entries(counted, _baseline(against, counted), notes)


@lru_cache(maxsize=4)
def _entries(files: Files) -> tuple[list[Entry], list[str]]:
    """Results with the arms that they count to, without the cells whose runs share no episode: nothing pairs those."""
    entries = as_arms([(load_result(path), path.parent.name) for path, _ in files])
    cells: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        cells.setdefault((entry.arm, entry.result.task, entry.result.suite), []).append(entry)
    kept, notes = [], []
    for (arm, task, suite), runs in cells.items():
        if set.intersection(*({episode.seed for episode in run.result.episodes} for run in runs)):
            kept += runs
        else:
            notes.append(
                f"{arm} on {task} ({suite}): left out, as its {len(runs)} runs share no episode: "
                "evaluate all on the same seeds"
            )
    return kept, notes


def _baseline(wish: str | None, entries: Sequence[Entry]) -> str | None:
    """The arm that is wished for by its name or that of a result of it, else base, else the only one of that kind."""
    arms = {entry.arm for entry in entries}
    of_result = {entry.result.name: entry.arm for entry in entries}
    of_kind = {entry.arm for entry in entries if entry.result.arm == "base"}
    for name in (wish, "base"):
        if name is not None and (found := name if name in arms else of_result.get(name)):
            return found
    return of_kind.pop() if len(of_kind) == 1 else None


def grouped(comparison: Comparison) -> list[Group]:
    """In-domain cells by task, each at its row, the arms in the comparison's order."""
    place = {arm.arm: i for i, arm in enumerate(comparison.arms)}
    groups: list[Group] = []
    y = 0.0
    for task in comparison.tasks:
        ours = [cell for cell in comparison.cells if (cell.task, cell.suite) == (task, IN_DOMAIN)]
        ours.sort(key=lambda cell: place[cell.arm])
        if not ours:
            continue
        rows = [Row(cell, y + 1 + i, cell.arm == comparison.against) for i, cell in enumerate(ours)]
        groups.append(Group(task, y, tuple(rows)))
        y += len(rows) + 1.4
    return groups


def trials(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Suites other than in-domain by what they try, in order; each `TRIALS` name, or "other"."""
    kind = {cell.suite: cell.trial or "other" for cell in comparison.cells if cell.suite != IN_DOMAIN}
    return [
        (trial, [s for s in comparison.suites if kind[s] == trial])
        for trial in (*TRIALS, "other")
        if trial in kind.values()
    ]


def table(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat record a cell: the table, and what is exported. Rates are fractions of one."""
    arms = {arm.arm: arm for arm in comparison.arms}
    return [
        {**_cell_record(cell, arms[cell.arm]), **_cost_record(arms[cell.arm])} for cell in comparison.cells
    ]


def _cell_record(cell: Cell, arm: Arm) -> dict[str, Any]:
    gap = cell.difference
    return {
        "task": cell.task,
        "suite": cell.suite,
        "arm": cell.arm,
        "n": cell.n,
        "seeds": seeds(cell, arm),
        "success": cell.success.value,
        "low": cell.success.low,
        "high": cell.success.high,
        "difference": gap.value if gap else None,
        "difference_low": gap.low if gap else None,
        "difference_high": gap.high if gap else None,
        "paired": cell.paired if gap else None,
        "failures": " · ".join(f"{n} {why}" for why, n in list(cell.failures.items())[:3]),
    }


def _cost_record(arm: Arm) -> dict[str, Any]:
    """Of one training, from the least to the most over tasks and trainings."""
    processor, wall = (ends or (None, None) for ends in (arm.train_processor, arm.train_seconds))
    return {
        "trainable": arm.trained[1],
        "groups": " · ".join(f"{name} {most:,}" for name, (_, most) in arm.parameters.items()),
        "train_processor_seconds_least": processor[0],
        "train_processor_seconds_most": processor[1],
        "train_wall_seconds_least": wall[0],
        "train_wall_seconds_most": wall[1],
        "peak_memory_mb": arm.peak_memory_mb,
    }


def clock(comparison: Comparison) -> str:
    """Which of a training's seconds are compared: "processor", which other jobs on the machine do not lengthen by
    waiting, if they were counted for all arms that were trained, else "wall"."""
    trained = [arm for arm in comparison.arms if arm.train_seconds or arm.train_processor]
    return "processor" if trained and all(arm.train_processor for arm in trained) else "wall"


def differing(results: Iterable[Result]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Arms, and every setting in which they differ with its value for each; a dash where one has none.

    That the untrained policy has no batch size tells nobody anything: a setting counts if those that have it differ, or
    if one arm alone has it.
    """
    shown = [result for result in results if result.suite == IN_DOMAIN]
    columns = list(dict.fromkeys(result.name for result in shown))
    flat: dict[str, dict[str, str]] = {}
    for result in shown:
        settings = {
            "heads": f"{len(result.heads)}: {', '.join(result.heads)}" if result.heads else None,
            **result.settings,
        }
        for name, value in _flattened(settings):
            flat.setdefault(name, {})[result.name] = value
    rows = [(name, [values.get(column, NONE) for column in columns]) for name, values in flat.items()]
    return columns, [(name, values) for name, values in rows if _tells_apart(values)]


def _tells_apart(values: Sequence[str]) -> bool:
    had = [value for value in values if value != NONE]
    return len(set(had)) > 1 or (len(had) == 1 < len(values))


def _flattened(settings: Mapping[str, Any], start: str = "") -> list[tuple[str, str]]:
    out = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out += _flattened(value, f"{start}{name} ")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            out.append((f"{start}{name}".replace("_", " "), text))
    return out


# ---- on how much it rests


def seeds(cell: Cell, arm: Arm) -> int | None:
    """How many trainings a cell rests on; None for a policy that was not trained and ran once."""
    return cell.runs if arm.trained[1] or cell.runs > 1 else None


def rests_on(cells: Sequence[Cell], arm: Arm) -> str:
    """n = 100 × 3 seeds, mean of 2 tasks: of an arm's cells under one suite, in HTML."""
    n, trainings = span(cell.n for cell in cells), span(seeds(cell, arm) for cell in cells)
    several = trainings not in (None, 1)
    said = [f"n = {n} × {trainings} seeds" if several else f"n = {n}"]
    said += [f"mean of {len(cells)} tasks"] if len(cells) > 1 else []
    said += [f"one training run<br>({LUCK.format('its')})"] if trainings == 1 else []
    return ", ".join(said)


def rests(comparison: Comparison, cells: Iterable[Cell]) -> str:
    """The same of cells of several arms: for a caption."""
    arms = {arm.arm: arm for arm in comparison.arms}
    cells = list(cells)
    trainings = span(seeds(cell, arms[cell.arm]) for cell in cells)
    said = f"n = {span(cell.n for cell in cells) or 0} episodes"
    if trainings == 1:
        return f"{said}, one training run an arm ({LUCK.format('its')})"
    return said if trainings is None else f"{said} × {trainings} seeds"


def span(values: Iterable[int | None]) -> int | str | None:
    """A number, or from the least to the most: "25 to 100"; None if there is none."""
    known = sorted({value for value in values if value is not None})
    if len(known) > 1:
        return f"{known[0]} to {known[-1]}"
    return known[0] if known else None


def plural(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


LUCK = "{} luck is in no interval"


# ---- in words


def notes(comparison: Comparison) -> list[str]:
    """The comparison's notes; what is so of several arms is said once: "aligned, lora on mug (lighting): ..."."""
    arms: dict[str, list[str]] = {}
    for note in comparison.notes:
        arm, of, rest = note.partition(" on ")
        about_arm = of and any(arm == one.arm for one in comparison.arms)
        arms.setdefault(of + rest if about_arm else note, []).extend([arm] if about_arm else [])
    return [f"{', '.join(dict.fromkeys(names))}{rest}" for rest, names in arms.items()]


def reading(comparison: Comparison) -> list[str]:
    """The comparison in plain words. A difference counts if its interval excludes zero."""
    lines = [_of_task(group) for group in grouped(comparison)]
    for trial, suites in trials(comparison):
        means = [(arm.arm, arm.trials.get(trial)) for arm in comparison.arms]
        known = [(name, mean) for name, mean in means if mean is not None]
        if known:
            lines.append(_of_trial(trial, suites, known, comparison.against))
    return [*lines, *_trainings(comparison)]


def _trainings(comparison: Comparison) -> list[str]:
    """How many each arm was trained: where it is one, the intervals say less than they seem to."""
    arms = {arm.arm: arm for arm in comparison.arms}
    runs: dict[str, list[int]] = {}
    for cell in comparison.cells:
        if arms[cell.arm].trained[1]:
            runs.setdefault(cell.arm, []).append(cell.runs)
    said = [f"{arm} {span(of)} seeds" for arm in arms if (of := runs.get(arm)) and max(of) > 1]
    once = [arm for arm in arms if (of := runs.get(arm)) and max(of) == 1]
    if once:
        each = " each" if len(once) > 1 else ""
        luck = LUCK.format("their" if each else "its")
        said.append(f"{', '.join(once)} one training run{each} ({luck})")
    return [f"**Trainings**: {'; '.join(said)}."] if said else []


def _of_task(group: Group) -> str:
    said = [f"{row.label} {_gap(row.cell.difference)}" for row in group.rows if row.cell.difference]
    base = [row for row in group.rows if row.baseline]
    start = f"**{group.task}**"
    if base:
        cell = base[0].cell
        start += f", baseline {100 * cell.success.value:.0f} % of {cell.n * cell.runs}"
    return f"{start}: {'; '.join(said)}." if said else f"{start}: nothing to compare it with yet."


def _of_trial(
    trial: str, suites: Sequence[str], known: Sequence[tuple[str, Mean]], against: str | None
) -> str:
    said = []
    for name, mean in known:
        text = f"{name} {100 * mean.success.value:.0f} %"
        if mean.difference is not None:
            text += f", {_gap(mean.difference)}"
        elif against not in (None, name):
            text += ", not paired"
        said.append(text)
    count = plural(len(suites), "suite")
    return f"**{SPOKEN.get(trial, trial).capitalize()}** ({count}): {'; '.join(said)}."


def _gap(difference: Interval) -> str:
    sure = "" if difference.low > 0 or difference.high < 0 else ", not distinguishable from none"
    interval = f"95 % {_points(difference.low)} to {_points(difference.high)}"
    return f"{_points(difference.value)} points ({interval}{sure})"


def _points(fraction: float) -> str:
    """Percentage points with a sign and a true minus."""
    return f"{round(100 * fraction):+d}".replace("-", "−") if round(100 * fraction) else "0"
