"""Two arms of the reproduction, like with like, and what the interval of their difference allows to say.

A *contrast* is the paired difference arm minus other, a mean over the tasks (and suites) that both ran, from the seeds
that both were trained from. The verdicts are rules on its 95 % interval and on nothing else:

    better, worse   the interval excludes zero
    the same        it does not, and it excludes every difference as large as the margin
    open            it excludes neither

An interval of episodes on which two arms always agree has hardly a width, however few they are. What n episodes cannot
have shown, by the rule of three, is that fewer than 3 / n differ: below that a margin is not excluded by any interval.
Nor is it by one training of each: the luck of a training is in the interval only if there are several, on every task.
And random heads that were drawn once leave everything open: that they are lucky ones is in no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from steering import compare_report
from steering.cells import mean_of
from steering.compare import TRIALS, measured
from steering.reproduce.published import MARGIN
from steering.results import IN_DOMAIN, Entry
from steering.stats import Interval
from steering.suites import FACTORS, GROUPS, SUITES

Finding = Literal["better", "worse", "the same", "open"]


@dataclass(frozen=True)
class Contrast:
    """`n` paired episodes, over all tasks, suites and runs; `runs` are the fewest and the most trainings of a cell."""

    arm: str
    other: str
    where: str
    tasks: tuple[str, ...]
    runs: tuple[int, int]
    n: int
    difference: Interval
    one_draw: bool = False
    """Whether one of them has random heads, and these were drawn once, be it on one task alone."""

    @property
    def size(self) -> str:
        return f"{self.n} ({self.over} x {self.seeds})"

    @property
    def over(self) -> str:
        return f"{len(self.tasks)} task{'s' * (len(self.tasks) > 1)}"

    @property
    def seeds(self) -> str:
        return f"{compare_report.ends(self.runs)} seed{'s' * (self.runs[1] > 1)}"

    @property
    def several(self) -> bool:
        """Whether every cell has several trainings."""
        return self.runs[0] > 1

    def finding(self, margin: float) -> Finding:
        if self.one_draw:
            return "open"
        found = finding(self.difference, margin)
        return "open" if found == "the same" and not self.excludes(margin) else found

    def excludes(self, margin: float) -> bool:
        """Whether an interval of so many episodes and trainings can exclude a difference as large as the margin."""
        return self.several and resolves(self.n, margin)


def finding(difference: Interval, margin: float) -> Finding:
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    return "the same" if -margin < difference.low and difference.high < margin else "open"


def points(difference: Interval | None) -> str:
    """In words that do not hide what the rules saw: on which side of zero and of the margin a bound is."""
    return compare_report.points(difference, lines=(-MARGIN, 0, MARGIN))


def resolves(n: int, margin: float) -> bool:
    """Whether n paired episodes are enough to exclude a difference as large as the margin."""
    return 3 / n < margin


def contrast(
    entries: Iterable[Entry],
    arm: str,
    other: str,
    where: str | tuple[str, ...] = IN_DOMAIN,
    tasks: Sequence[str] | None = None,
) -> Contrast | None:
    """`where` is a suite, several, or one of `steering.compare.TRIALS`; None if the arms share nothing there."""
    suites = _suites(where)
    ours = [
        e
        for e in entries
        if e.arm in (arm, other) and e.result.suite in suites and (tasks is None or e.result.task in tasks)
    ]
    if other == "base":  # which is rolled out once on what is the same for all
        known = [e.result.condition for e in ours if e.arm == other]
        ours = [e for e in ours if e.result.condition in known]
    else:
        shared = {_place(e) for e in ours if e.arm == arm} & {_place(e) for e in ours if e.arm == other}
        ours = [e for e in ours if _place(e) in shared]
    if {e.arm for e in ours} != {arm, other}:
        return None
    cells = [cell for key, cell in measured(ours, other).items() if key[0] == arm]
    mean = mean_of(cells)
    if mean is None or mean.difference is None:
        return None
    runs = [len(cell.entries) for cell in cells]
    return Contrast(
        arm=arm,
        other=other,
        where=where if isinstance(where, str) else " + ".join(where),
        tasks=tuple(dict.fromkeys(cell.task for cell in cells)),
        runs=(min(runs), max(runs)),
        n=sum(cell.pair.treated.size for cell in cells if cell.pair),
        difference=mean.difference,
        one_draw=min(runs) == 1 and any(e.result.arm == "random-k" for e in ours),
    )


def _suites(where: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(where, tuple):
        return where
    if where in FACTORS:
        return tuple(s.name for s in SUITES.values() if s.factor == where)
    if where in TRIALS:
        return GROUPS["forgetting" if where == "pretraining" else where]
    return (where,)


def _place(entry: Entry) -> tuple[str, str, int | None]:
    result = entry.result
    return result.task, result.suite, result.settings.get("seed")
