"""The cells of a comparison: an arm on a task under a suite, with the episodes that its numbers come from.

Numbers are those of `steering.compare`, whose words these are; intervals are of `steering.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interp.errors import UsageError
from steering.results import Entry, Result
from steering.stats import Interval, Outcomes, mean_bootstrap, paired_bootstrap, wilson

Seeds = tuple[Hashable, ...]


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
class Pair:
    """Two arms, or one under two suites, on the episodes that both ran."""

    treated: Outcomes
    baseline: Outcomes
    trained: tuple[Seeds, Seeds]
    """From which seeds the runs of both were trained."""

    @classmethod
    def of(cls, treated: Sequence[Entry], baseline: Sequence[Entry], seeds: Sequence[int]) -> Pair:
        return cls(
            _outcomes(treated, seeds),
            _outcomes(baseline, seeds),
            (_trainings(treated, "treated"), _trainings(baseline, "baseline")),
        )


@dataclass(frozen=True)
class Measured:
    """A cell with its episodes: `Cell` is what remains for readers."""

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    outcomes: Outcomes
    pair: Pair | None  # arm and baseline

    @classmethod
    def of(cls, group: Sequence[Entry], baseline: Sequence[Entry], notes: list[str]) -> Measured:
        where = f"{group[0].arm} on {group[0].result.task} ({group[0].result.suite})"
        ran = max(len(e.result.episodes) for e in group)
        done, begun = _done(group)
        if begun:
            notes.append(f"{where}: a run with {begun} of {ran} episodes is left out until it has more")
        group, baseline = (sorted(entries, key=_by_training) for entries in (done, _done(baseline)[0]))
        seeds = _shared_seeds(group)
        if not seeds:
            raise UsageError(
                f"the runs of {group[0].arm} on {group[0].result.task} share no episode: evaluate all on the same seeds"
            )
        if len(seeds) < ran:
            notes.append(f"{where}: runs share {len(seeds)} of {ran} episodes, the others are left out")
        pair = None
        if baseline:
            both = sorted(set(seeds) & set(_shared_seeds(baseline)))
            if len(both) < len(seeds):
                notes.append(f"{where}: the baseline ran {len(both)} of its {len(seeds)} episodes")
            if both:
                pair = Pair.of(group, baseline, both)
        return cls(tuple(group), tuple(seeds), _outcomes(group, seeds), pair)

    @property
    def task(self) -> str:
        return self.entries[0].result.task

    def drop(self, usual: Measured | None) -> Pair | None:
        """This cell and the same arm's in-domain one: the same trainings, on the episodes that both ran."""
        if usual is None:
            return None
        both = sorted(set(self.seeds) & set(usual.seeds))
        here, there = ([_training(e) for e in cell.entries] for cell in (self, usual))
        ours = [e for e in self.entries if _training(e) in there]
        theirs = [e for e in usual.entries if _training(e) in here]
        return Pair.of(ours, theirs, both) if both and ours else None

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
            trial=trial_of(result),
            n=n,
            runs=runs,
            success=_success([self]),
            difference=_difference(self.pair),
            paired=self.pair.treated.shape[1] if self.pair else 0,
            failures=dict(sorted(failures.items(), key=lambda item: -item[1])),
        )


def _difference(pair: Pair | None) -> Interval | None:
    if pair is None:
        return None
    if len(pair.treated) == len(pair.baseline) == 1:
        return paired_bootstrap(list(pair.treated[0]), list(pair.baseline[0]))
    return mean_bootstrap([pair.treated], [pair.baseline], seeds=[pair.trained])


def mean_of(cells: Sequence[Measured], usual: Mapping[str, Measured] | None = None) -> Mean | None:
    """`usual` are the same arm's in-domain cells by task, for the drop."""
    if not cells:
        return None
    pairs = [cell.pair for cell in cells]
    drops = [cell.drop(usual.get(cell.task)) if usual else None for cell in cells]
    return Mean(
        len(cells),
        _success(cells),
        _differences(cells, pairs),
        _differences(cells, drops),
    )


def _success(cells: Sequence[Measured]) -> Interval:
    """The bootstrap's interval, but nowhere tighter than the cells' Wilson intervals combined.

    Where no episode succeeds (or all do) there is nothing to resample, and a bootstrap would be sure of 0 %.
    Independent margins add in squares (MOVER, Zou and Donner 2008), those of cells that met the same layouts as they
    are; for one cell of one run that is its Wilson interval.
    """
    met = _layouts(cells)
    known: dict[str, list[Interval]] = {}
    for cell, layout in zip(cells, met, strict=True):
        n = len(cell.seeds)
        known.setdefault(layout, []).append(wilson(round(float(cell.outcomes.mean()) * n), n))
    if len(cells) == len(cells[0].entries) == 1:
        return known[met[0]][0]
    drawn = mean_bootstrap(
        [cell.outcomes for cell in cells],
        layouts=met,
        trainings=[cell.task for cell in cells],
        seeds=[(_trainings(cell.entries, "treated"), ()) for cell in cells],
    )
    below = math.hypot(*(sum(i.value - i.low for i in alike) for alike in known.values())) / len(cells)
    above = math.hypot(*(sum(i.high - i.value for i in alike) for alike in known.values())) / len(cells)
    return Interval(drawn.value, min(drawn.low, drawn.value - below), max(drawn.high, drawn.value + above))


def _differences(cells: Sequence[Measured], pairs: Sequence[Pair | None]) -> Interval | None:
    """The mean of the cells' differences; None if one of them has none."""
    there = [p for p in pairs if p is not None]
    if len(there) < len(cells):
        return None
    return mean_bootstrap(
        [p.treated for p in there],
        [p.baseline for p in there],
        layouts=_layouts(cells),
        trainings=[cell.task for cell in cells],
        seeds=[p.trained for p in there],
    )


def _layouts(cells: Sequence[Measured]) -> list[str]:
    """Cells that rolled out the same task met the same layouts."""
    return [cell.entries[0].result.condition["task"] for cell in cells]


def trial_of(result: Result) -> str | None:
    if result.factor is not None:
        return result.factor
    kind = result.suite.split(":")[0]
    return {"unseen": "unseen", "forgetting": "pretraining"}.get(kind)


def _training(entry: Entry) -> int | None:
    """The seed that it was trained from; None for what was not trained, or does not say."""
    seed: int | None = entry.result.settings.get("seed")
    return seed


def _trainings(entries: Sequence[Entry], arm: str) -> Seeds:
    """The seeds of an arm's runs; of runs that name none, or the same, names that no other arm has."""
    seeds = [_training(e) for e in entries]
    known = None not in seeds and len(set(seeds)) == len(seeds)
    return tuple(seeds) if known else tuple(f"{arm} {run}" for run in range(len(entries)))


def _done(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """All runs but those with less than a quarter of the longest one's episodes, and the most that one of them has:
    an evaluation that has just begun would take nearly all of the others' episodes away."""
    most = max((len(e.result.episodes) for e in entries), default=0)
    begun = [len(e.result.episodes) for e in entries if 4 * len(e.result.episodes) < most]
    return [e for e in entries if 4 * len(e.result.episodes) >= most], max(begun, default=0)


def _by_training(entry: Entry) -> tuple[bool, int]:
    seed = _training(entry)
    return seed is None, seed or 0


def _shared_seeds(entries: Sequence[Entry]) -> list[int]:
    seeds = [{e.seed for e in entry.result.episodes} for entry in entries]
    return sorted(set.intersection(*seeds))


def _outcomes(entries: Sequence[Entry], seeds: Sequence[int]) -> Outcomes:
    rows = []
    for entry in entries:
        won = {e.seed: e.success for e in entry.result.episodes}
        rows.append([won[seed] for seed in seeds])
    return np.array(rows, bool)
