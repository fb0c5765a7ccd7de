"""Which arm is better, at what cost, and what did it lose? One comparison over any number of result files.

Words. An *arm* is a policy under its name (`base`, `aligned`, ...); results that differ in nothing but the training
seed (and, for `random-k`, in the heads it drew) are *runs* of one arm. A *cell* is an arm on a task under a suite. The
*baseline* is one pinned arm; every difference is paired with it on the same episodes (arm minus baseline).

Statistics (steering/stats.py). A cell of one run has a Wilson interval; a cell of several runs, every mean over cells
and every difference has a bootstrap over paired episodes within each cell, and over runs where there are several. A
mean weighs its cells alike, and cells that met the same layouts are resampled together; a success rate is nowhere
surer than the Wilson intervals of its cells combined. With one run the luck of training is not in any interval.

- success: mean over the tasks, in-domain;
- visual, linguistic, physical: mean over the tasks and the suites of that factor;
- unseen, pretraining: mean over the tasks adapted to and the tasks rolled out; a negative difference on pretraining
  tasks is forgetting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UsageError, unknown
from steering.gather import as_arms, gather
from steering.results import IN_DOMAIN, Entry, Result
from steering.stats import Interval, Outcomes, mean_bootstrap, paired_bootstrap, wilson
from steering.suites import SUITES
from testbed.tasks import TASKS

ARMS = (
    "base",
    *("aligned", "all-heads", "random-k", "bottom-k", "generic-k", "retain"),
    *("aligned-both", "random-k-both", "aligned-vlm", "random-k-vlm"),
    *("paper", "ffn-only", "lora", "lora-all-linear", "full"),
)
"""The order in which arms are listed: heads of the expert, of the vlm, more than heads; others follow by name."""
TRIALS = ("visual", "linguistic", "physical", "unseen", "pretraining")


@dataclass(frozen=True)
class Cell:
    """One arm on one task under one suite. `n` are episodes a run, `paired` those that the baseline ran too."""

    arm: str
    task: str
    suite: str
    trial: str | None  # one of TRIALS, None in-domain and for suites of one's own
    n: int
    runs: int
    success: Interval
    difference: Interval | None
    paired: int
    failures: Mapping[str, int]


@dataclass(frozen=True)
class Mean:
    """A mean over an arm's cells; `drop` is the paired difference to the same arm in-domain."""

    cells: int
    success: Interval
    difference: Interval | None
    drop: Interval | None = None


@dataclass(frozen=True)
class Arm:
    """All that is known of one arm. Costs are those of one training; ranges run over tasks and runs."""

    arm: str
    runs: int
    tasks: int
    success: Mean | None
    trials: Mapping[str, Mean]
    suites: Mapping[str, Mean]
    parameters: Mapping[str, tuple[int, int]]  # trainable, by group
    trained: tuple[int, int]  # all groups
    train_seconds: tuple[float, float] | None
    train_processor: tuple[float, float] | None
    """Processor seconds, which other jobs on the machine do not lengthen by waiting."""
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `notes` say what could not be read or paired."""

    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]
    against: str | None
    notes: tuple[str, ...] = field(default=())

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.suite for cell in self.cells if cell.suite != IN_DOMAIN))

    def cell(self, arm: str, task: str, suite: str = IN_DOMAIN) -> Cell | None:
        return next((c for c in self.cells if (c.arm, c.task, c.suite) == (arm, task, suite)), None)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self), "tasks": self.tasks, "suites": self.suites}


def compare(paths: Iterable[str | Path], against: str | None = None) -> Comparison:
    """Compare the results of runs, directories and files. `against` is the baseline's name, `base` if it is there."""
    found, recorded, notes = gather(paths)
    return compare_entries([*as_arms(found), *recorded], against, notes)


def compare_entries(
    entries: Sequence[Entry], against: str | None = None, notes: Iterable[str] = ()
) -> Comparison:
    """Compare results whose arms are known; `against` as for `compare`."""
    notes = [*notes, *_mixed(entries)]
    pinned = _pinned(entries, against or "base")
    if not pinned and against is not None:
        raise unknown("baseline", against, sorted({e.arm for e in entries}))
    if not pinned:
        notes.append("no result is called base: name a baseline with --against for differences")
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.arm, entry.result.task, entry.result.suite), []).append(entry)
    cells = {key: _Cell.of(group, _baseline(group, entries, pinned), notes) for key, group in groups.items()}
    cells = dict(sorted(cells.items(), key=lambda item: _place(item[1].entries[0])))
    arms = tuple(
        _arm(arm, {key: cell for key, cell in cells.items() if key[0] == arm})
        for arm in dict.fromkeys(
            key[0] for key in sorted(cells, key=lambda k: (k[0] not in pinned, _arm_place(k[0])))
        )
    )
    name = (against or "base") if pinned else None
    return Comparison(arms, tuple(cell.summary() for cell in cells.values()), name, tuple(notes))


def _pinned(entries: Sequence[Entry], against: str) -> set[str]:
    """The arms that count as the baseline: of that name, else of that kind if there is only one."""
    named = {e.arm for e in entries if against in (e.arm, e.result.name)}
    kind = {e.arm for e in entries if e.result.arm == against}
    return named or (kind if len(kind) == 1 else set())


def _baseline(group: Sequence[Entry], entries: Sequence[Entry], pinned: set[str]) -> list[Entry]:
    """Runs of the baseline under the group's very condition: of the same source if there are any, else of another.

    The base policy's pretraining tasks, for one, are the same whatever it is compared for. What was trained for another
    task is no baseline.
    """
    wanted = group[0].result
    if group[0].arm in pinned:
        return []
    there = [
        e
        for e in entries
        if e.arm in pinned and e.result.condition == wanted.condition and _serves(e.result, wanted.task)
    ]
    sources = {e.source for e in group}
    near = [e for e in there if e.source in sources] or there
    return list({e.result.policy: e for e in near}.values())


def _serves(baseline: Result, task: str) -> bool:
    """Whether this is what a policy adapted to `task` is compared with: adapted to the same, or to nothing."""
    return baseline.task == task or not baseline.trainable_parameters


def _mixed(entries: Sequence[Entry]) -> list[str]:
    """A note for every training whose results are of several policies: some are from before it was repeated."""
    trainings: dict[tuple[str, str, Any], dict[str, list[str]]] = {}
    for e in entries:
        training = trainings.setdefault((e.arm, e.result.task, e.result.settings.get("seed")), {})
        training.setdefault(e.result.policy, []).append(e.result.suite)
    notes = []
    for (arm, task, seed), policies in trainings.items():
        if len(policies) > 1:
            of = "" if seed is None else f" (training seed {seed})"
            which = "; ".join(f"{policy}: {', '.join(suites)}" for policy, suites in policies.items())
            notes.append(
                f"{arm} on {task}{of}: its results are of {len(policies)} policies ({which}): "
                "evaluate all suites of one"
            )
    return notes


# ---- numbers


@dataclass(frozen=True)
class _Cell:
    """A cell with its episodes: `Cell` is what remains for readers."""

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    outcomes: Outcomes
    pair: tuple[Outcomes, Outcomes] | None  # arm and baseline on the episodes that both ran

    @classmethod
    def of(cls, group: Sequence[Entry], baseline: Sequence[Entry], notes: list[str]) -> _Cell:
        seeds = _shared_seeds(group)
        if not seeds:
            raise UsageError(
                f"the runs of {group[0].arm} on {group[0].result.task} share no episode: evaluate all on the same seeds"
            )
        ran = max(len(e.result.episodes) for e in group)
        where = f"{group[0].arm} on {group[0].result.task} ({group[0].result.suite})"
        if len(seeds) < ran:
            notes.append(f"{where}: runs share {len(seeds)} of {ran} episodes, the others are left out")
        pair = None
        if baseline:
            both = sorted(set(seeds) & set(_shared_seeds(baseline)))
            if len(both) < len(seeds):
                notes.append(f"{where}: the baseline ran {len(both)} of its {len(seeds)} episodes")
            if both:
                pair = _outcomes(group, both), _outcomes(baseline, both)
        return cls(tuple(group), tuple(seeds), _outcomes(group, seeds), pair)

    @property
    def task(self) -> str:
        return self.entries[0].result.task

    def drop(self, usual: _Cell | None) -> tuple[Outcomes, Outcomes] | None:
        """This cell and the same arm's in-domain one on the episodes that both ran."""
        if usual is None:
            return None
        both = sorted(set(self.seeds) & set(usual.seeds))
        return (_outcomes(self.entries, both), _outcomes(usual.entries, both)) if both else None

    def summary(self) -> Cell:
        result, (runs, n) = self.entries[0].result, self.outcomes.shape
        failures: dict[str, int] = {}
        for entry in self.entries:
            for episode in entry.result.episodes:
                if episode.failure is not None:
                    failures[episode.failure] = failures.get(episode.failure, 0) + 1
        return Cell(
            arm=self.entries[0].arm,
            task=result.task,
            suite=result.suite,
            trial=_trial(result),
            n=n,
            runs=runs,
            success=_success([self]),
            difference=_difference(self.pair),
            paired=self.pair[0].shape[1] if self.pair else 0,
            failures=dict(sorted(failures.items(), key=lambda item: -item[1])),
        )


def _difference(pair: tuple[Outcomes, Outcomes] | None) -> Interval | None:
    if pair is None:
        return None
    if len(pair[0]) == len(pair[1]) == 1:
        return paired_bootstrap(list(pair[0][0]), list(pair[1][0]))
    return mean_bootstrap([pair[0]], [pair[1]])


def _mean(cells: Sequence[_Cell], usual: Mapping[str, _Cell] | None = None) -> Mean | None:
    """`usual` are the same arm's in-domain cells by task, for the drop."""
    if not cells:
        return None
    pairs = [cell.pair for cell in cells]
    drops = [cell.drop(usual.get(cell.task)) if usual else None for cell in cells]
    return Mean(
        len(cells),
        _success(cells),
        _over_cells(cells, [p for p in pairs if p is not None]) if None not in pairs else None,
        _over_cells(cells, [d for d in drops if d is not None]) if None not in drops else None,
    )


def _success(cells: Sequence[_Cell]) -> Interval:
    """The bootstrap's interval, but nowhere tighter than the cells' Wilson intervals combined.

    Where no episode succeeds (or all do) there is nothing to resample, and a bootstrap would be sure of 0 %.
    Independent margins add in squares (MOVER, Zou and Donner 2008); for one cell of one run that is its Wilson
    interval.
    """
    means = [float(cell.outcomes.mean()) for cell in cells]
    known = [
        wilson(round(m * len(cell.seeds)), len(cell.seeds)) for m, cell in zip(means, cells, strict=True)
    ]
    if len(cells) == len(cells[0].entries) == 1:
        return known[0]
    drawn = _over_cells(cells, [(cell.outcomes, None) for cell in cells])
    below = math.hypot(*(i.value - i.low for i in known)) / len(known)
    above = math.hypot(*(i.high - i.value for i in known)) / len(known)
    return Interval(drawn.value, min(drawn.low, drawn.value - below), max(drawn.high, drawn.value + above))


def _over_cells(cells: Sequence[_Cell], arms: Sequence[tuple[Outcomes, Outcomes | None]]) -> Interval:
    """Cells that rolled out the same task met the same layouts; cells of one adapted task tried the same trainings."""
    others = [b for _, b in arms if b is not None]
    return mean_bootstrap(
        [a for a, _ in arms],
        others or None,
        layouts=[cell.entries[0].result.condition["task"] for cell in cells],
        trainings=[cell.task for cell in cells],
    )


def _arm(arm: str, cells: Mapping[tuple[str, str, str], _Cell]) -> Arm:
    usual = {task: cell for (_, task, suite), cell in cells.items() if suite == IN_DOMAIN}
    trials: dict[str, Mean] = {}
    for trial in TRIALS:
        ours = [cell for cell in cells.values() if _trial(cell.entries[0].result) == trial]
        mean = _mean(ours, usual if trial in ("visual", "linguistic", "physical") else None)
        if mean is not None:
            trials[trial] = mean
    suites = dict.fromkeys(suite for _, _, suite in cells if suite != IN_DOMAIN)
    of_suite = {suite: [cell for key, cell in cells.items() if key[2] == suite] for suite in suites}
    results = [entry.result for cell in cells.values() for entry in cell.entries]
    trained = [sum(r.trainable_parameters.values()) for r in results]
    groups = dict.fromkeys(group for r in results for group in r.trainable_parameters)
    seconds, busy = (
        [r.seconds[clock] for r in results if r.seconds.get(clock)] for clock in ("train", "train_processor")
    )
    return Arm(
        arm=arm,
        runs=max(len(cell.entries) for cell in cells.values()),
        tasks=len(usual),
        success=_mean(list(usual.values())),
        trials=trials,
        suites={suite: mean for suite in suites if (mean := _mean(of_suite[suite])) is not None},
        parameters={g: _range([r.trainable_parameters.get(g, 0) for r in results]) for g in groups},
        trained=_range(trained),
        train_seconds=_range(seconds) if seconds else None,
        train_processor=_range(busy) if busy else None,
        peak_memory_mb=max((r.peak_memory_mb for r in results if r.peak_memory_mb), default=None),
    )


def _trial(result: Result) -> str | None:
    if result.factor is not None:
        return result.factor
    kind = result.suite.split(":")[0]
    return {"unseen": "unseen", "forgetting": "pretraining"}.get(kind)


def _shared_seeds(entries: Sequence[Entry]) -> list[int]:
    seeds = [{e.seed for e in entry.result.episodes} for entry in entries]
    return sorted(set.intersection(*seeds))


def _outcomes(entries: Sequence[Entry], seeds: Sequence[int]) -> Outcomes:
    rows = []
    for entry in entries:
        won = {e.seed: e.success for e in entry.result.episodes}
        rows.append([won[seed] for seed in seeds])
    return np.array(rows, bool)


def _range(values: Sequence[Any]) -> tuple[Any, Any]:
    return min(values), max(values)


def _arm_place(arm: str) -> tuple[int, str]:
    return _rank(arm.rpartition("/")[2], ARMS)[0], arm


def _place(entry: Entry) -> tuple[Any, ...]:
    """Tasks and suites in the order in which they are defined, others by name after them."""
    result = entry.result
    return *_rank(result.task, list(TASKS)), *_rank(result.suite, list(SUITES)), _arm_place(entry.arm)


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    return known.index(name) if name in known else len(known), name
