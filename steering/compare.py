"""Which arm is better, at what cost, and what did it lose? One comparison over any number of result files.

Words. An *arm* is a policy under its name (`base`, `aligned`, ...); results that differ in nothing but the training
seed (and, for `random-k`, in the heads it drew) are *runs* of one arm. A *cell* is an arm on a task under a suite. The
*baseline* is one pinned arm; every difference is paired with it on the same episodes (arm minus baseline).

Statistics (steering/stats.py). A cell of one run has a Wilson interval; a cell of several runs, every mean over cells
and every difference has a bootstrap over paired episodes within each cell, and over runs where there are several:
together for both arms where these were trained from the same seeds, which give both the same demonstrations. A mean
weighs its cells alike, and cells that met the same layouts are resampled together; a success rate is nowhere
surer than the Wilson intervals of its cells combined. With one run the luck of training is not in any interval.

- success: mean over the tasks, in-domain;
- visual, linguistic, physical: mean over the tasks and the suites of that factor;
- unseen, pretraining: mean over the tasks adapted to and the tasks rolled out; a negative difference on pretraining
  tasks is forgetting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import unknown
from steering.cells import Cell, Mean, Measured, mean_of, trial_of
from steering.gather import as_arms, gather
from steering.results import IN_DOMAIN, Entry, Result
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
    cells = _measure(entries, pinned, notes)
    arms = tuple(
        _arm(arm, {key: cell for key, cell in cells.items() if key[0] == arm})
        for arm in dict.fromkeys(
            key[0] for key in sorted(cells, key=lambda k: (k[0] not in pinned, _arm_place(k[0])))
        )
    )
    name = (against or "base") if pinned else None
    return Comparison(arms, tuple(cell.summary() for cell in cells.values()), name, tuple(notes))


def measured(entries: Sequence[Entry], against: str) -> dict[tuple[str, str, str], Measured]:
    """The cells by arm, task and suite, with their episodes: for means of one's own (`steering.cells.mean_of`)."""
    return _measure(entries, _pinned(entries, against), [])


def _measure(
    entries: Sequence[Entry], pinned: set[str], notes: list[str]
) -> dict[tuple[str, str, str], Measured]:
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.arm, entry.result.task, entry.result.suite), []).append(entry)
    cells = {
        key: Measured.of(group, _baseline(group, entries, pinned), notes) for key, group in groups.items()
    }
    return dict(sorted(cells.items(), key=lambda item: _place(item[1].entries[0])))


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


def _arm(arm: str, cells: Mapping[tuple[str, str, str], Measured]) -> Arm:
    usual = {task: cell for (_, task, suite), cell in cells.items() if suite == IN_DOMAIN}
    trials: dict[str, Mean] = {}
    for trial in TRIALS:
        ours = [cell for cell in cells.values() if trial_of(cell.entries[0].result) == trial]
        mean = mean_of(ours, usual if trial in ("visual", "linguistic", "physical") else None)
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
        success=mean_of(list(usual.values())),
        trials=trials,
        suites={suite: mean for suite in suites if (mean := mean_of(of_suite[suite])) is not None},
        parameters={g: _range([r.trainable_parameters.get(g, 0) for r in results]) for g in groups},
        trained=_range(trained),
        train_seconds=_range(seconds) if seconds else None,
        train_processor=_range(busy) if busy else None,
        peak_memory_mb=max((r.peak_memory_mb for r in results if r.peak_memory_mb), default=None),
    )


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
