"""The ablations: arms of one study side by side, like with like.

What was measured often was trained from more seeds and rolled out on more layouts than what was measured once, and
seeds and layouts are lucky or not. So the rates of a study are of the tasks, training seeds and layouts that all of
its arms have, and every arm is compared with one of them, the reference, on all that the two have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from steering.compare import Arm as Found
from steering.compare import compare_entries
from steering.compare_report import Table, ends, rate
from steering.reproduce.contrast import contrast, points
from steering.reproduce.plan import ADAPTING, FEW, FIRST, Arm, Study
from steering.results import IN_DOMAIN, Entry

REFERENCES = (Arm("aligned").name, Arm("aligned", heads=FEW).name)
"""What the arms of a study vary: the first that is among them."""


@dataclass(frozen=True)
class Ablation:
    """What the arms of a study have in common: their results on it, by name, and what it is. Empty if there is none."""

    study: Study
    arms: Mapping[str, Found]
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    layouts: tuple[int, ...] = ()
    """How many of each task, from the fewest to the most."""

    @property
    def reference(self) -> str:
        names = {arm.name for arm in self.study.arms}
        return next(name for name in REFERENCES if name in names)

    @property
    def basis(self) -> str:
        """What the rates rest on."""
        seeds = f"training seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        return f"mean over {', '.join(self.tasks)}; {ends(self.layouts)} layouts of each from {seeds}"


def like_with_like(study: Study, entries: Sequence[Entry]) -> Ablation:
    """The arms of a study on what they share in-domain; those that lack a task or a seed of the others are left out."""
    names = {arm.name for arm in study.arms}
    ours = [
        e for e in entries if e.arm in names and e.result.suite == IN_DOMAIN and e.result.task in study.tasks
    ]
    seeds: dict[str, dict[str, set[int]]] = {}  # by arm and task
    for e in ours:
        if e.result.trainable_parameters:
            seeds.setdefault(e.arm, {}).setdefault(e.result.task, set()).add(e.result.settings["seed"])
    if not seeds:
        return Ablation(study, {})
    tasks = _shared_tasks(study.tasks, [set(of) for of in seeds.values()])
    of_all = {arm: set.intersection(*(of.get(t, set()) for t in tasks)) for arm, of in seeds.items()}
    most = max(
        range(1 + max(set().union(*of_all.values()))), key=lambda s: sum(s in of for of in of_all.values())
    )
    kept = {arm: of for arm, of in of_all.items() if most in of}
    shared = set.intersection(*kept.values())
    ours = [
        e
        for e in ours
        if e.result.task in tasks
        and (not e.result.trainable_parameters or (e.arm in kept and e.result.settings["seed"] in shared))
    ]
    layouts = {
        task: set.intersection(*({x.seed for x in e.result.episodes} for e in ours if e.result.task == task))
        for task in tasks
    }
    if not all(layouts.values()):
        return Ablation(study, {})
    found = compare_entries([_only(e, layouts[e.result.task]) for e in ours])
    arms = {arm.arm: arm for arm in found.arms if arm.tasks == len(tasks)}
    counts = sorted(map(len, layouts.values()))
    return Ablation(study, arms, tasks, tuple(sorted(shared)), (counts[0], counts[-1]))


def _shared_tasks(tasks: Sequence[str], ran: Sequence[set[str]]) -> tuple[str, ...]:
    """The tasks that make the most of arms times tasks: one arm that lacks a task does not take it from all others,
    and a few arms that ran more do not turn out all others."""

    def complete(some: tuple[str, ...]) -> int:
        return sum(there >= set(some) for there in ran)

    parts = (some for k in range(1, len(tasks) + 1) for some in combinations(tasks, k))
    return max(parts, key=lambda some: (len(some) * complete(some), complete(some)))


def _only(entry: Entry, layouts: set[int]) -> Entry:
    episodes = tuple(e for e in entry.result.episodes if e.seed in layouts)
    return replace(entry, result=replace(entry.result, episodes=episodes))


def ablation_table(found: Ablation, entries: Sequence[Entry]) -> Table:
    study, reference = found.study, found.reference
    rows = []
    for arm in study.arms:
        one = found.arms.get(arm.name)
        if one is None or one.success is None:
            continue
        made = None
        if arm.trained and arm.name != reference:
            made = contrast(entries, arm.name, reference, tasks=found.tasks)
        rows.append(
            (
                arm.name,
                rate(one.success.success),
                points(one.success.difference),
                points(made.difference) if made else "",
                f"{made.size}{', one draw' * made.one_draw}" if made else "",
            )
        )
    note = (
        f"Success and against base: {found.basis}, which all rows have. Minus `{reference}`: of all seeds and layouts "
        "that the two arms have; n counts these."
    )
    if set(study.tasks) == set(ADAPTING):
        note += (
            f" The tasks were chosen because `{REFERENCES[0]}` helped there from seed {FIRST}: its gain over the base "
            "is overstated, and from that seed its advantage over other arms may be."
        )
    there = {e.arm for e in entries if e.result.suite == IN_DOMAIN and e.result.task in study.tasks}
    left = [arm.name for arm in study.arms if arm.name not in found.arms]
    if partly := [name for name in left if name in there]:
        note += f" Not run yet on all that the others have: {', '.join(partly)}."
    if missing := [name for name in left if name not in there]:
        note += f" Not run yet: {', '.join(missing)}."
    header = ("arm", "success", "against base", f"minus {reference}", "n")
    return Table(study.name, header, tuple(rows), note)
