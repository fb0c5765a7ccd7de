"""Does it matter which heads? Chosen ones against every other choice, and what the intervals exclude."""

from __future__ import annotations

from collections.abc import Sequence

from steering.compare_report import Table, signed
from steering.reproduce.contrast import Contrast, contrast, points
from steering.reproduce.plan import ADAPTING, BOTH, BOTH_RANDOM, FEW, HEADS, VLM, VLM_RANDOM, Arm
from steering.reproduce.published import MARGIN
from steering.results import Entry
from testbed.tasks import TARGETS

CONTROLS = ("random-k", "bottom-k", "generic-k", "all-heads")
SLICED = ("aligned", "retain")
"""With the controls: arms that train heads of the expert and nothing else."""


def choice_contrasts(entries: Sequence[Entry]) -> list[Contrast]:
    """Chosen heads against every other choice, for every number of heads and of demonstrations that was tried."""
    few = Arm("aligned", heads=FEW)
    pairs = [(Arm("aligned").name, control, tasks) for control in CONTROLS for tasks in (None, ADAPTING)]
    pairs += [(few.name, Arm(c, heads=FEW).name, ADAPTING) for c in ("random-k", "bottom-k")]
    for by in ("best-add", "ablation", "patching", "atp"):
        causal = Arm("aligned", heads=FEW, by=by).name
        pairs += [(causal, Arm("random-k", heads=FEW).name, ADAPTING), (causal, few.name, ADAPTING)]
    pairs += [(Arm("aligned", heads=k).name, Arm("random-k", heads=k).name, ADAPTING) for k in (2, 8, 24)]
    pairs += [(Arm("aligned", demos=d).name, Arm("random-k", demos=d).name, ADAPTING) for d in (1, 5, 10, 40)]
    pairs += [(arm.name, control.name, None) for arm, control in ((BOTH, BOTH_RANDOM), (VLM, VLM_RANDOM))]
    made = (contrast(entries, arm, other, tasks=tasks) for arm, other, tasks in pairs)
    different = {(c.arm, c.other, c.tasks): c for c in made if c is not None}
    return list(different.values())


def choice_table(entries: Sequence[Entry]) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            f"{c.arm} - {c.other}",
            "all" if len(c.tasks) == len(TARGETS) else ", ".join(c.tasks),
            points(c.difference),
            c.size,
            "one draw" if c.one_draw else c.finding(MARGIN),
            _excluded(c),
        )
        for c in choice_contrasts(entries)
    ]
    note = (
        f"{_left_out(entries)} The same: every difference of {100 * MARGIN:.3g} points or more is excluded. Open: "
        "neither zero nor that is. One training of each excludes nothing: its luck is in no interval. One draw: random "
        f"heads that may be lucky ones, so no finding. `k{FEW}` trains {FEW} heads instead of {HEADS}.{_draws(entries)}"
    )
    if not rows:
        rows = [("no choice of heads was run against another yet", "", "", "", "", "")]
    return Table(
        "Choice", ("compared", "tasks", "difference", "n", "finding", "excluded with 95 %"), tuple(rows), note
    )


def _left_out(entries: Sequence[Entry]) -> str:
    """Why some rows leave tasks out, as far as the records bear it out."""
    tasks = [task for task in TARGETS if task not in ADAPTING]
    made = [
        c
        for task in tasks
        for arm in (*SLICED, *CONTROLS)
        if (c := contrast(entries, arm, "base", tasks=[task]))
    ]
    said = f"Some rows leave out {' and '.join(tasks)}: "
    if {task for c in made for task in c.tasks} != set(tasks):
        return f"{said}the studies of few heads do not run them."
    if helped := [c for c in made if c.difference.low > 0]:
        named = ", ".join(f"`{c.arm}` on {c.tasks[0]} {points(c.difference)}" for c in helped)
        return (
            f"{said}few arms that train nothing but heads of the expert were shown to help there ({named})."
        )
    return f"{said}no arm that trains nothing but heads of the expert was shown to help there, whichever these are."


def _draws(entries: Sequence[Entry]) -> str:
    """How often heads were drawn, which for all tasks of a seed is once."""
    drawn: dict[str, set[tuple[str, ...]]] = {}
    for e in entries:
        if e.result.arm == "random-k" and e.result.heads:
            drawn.setdefault(e.arm, set()).add(e.result.heads)
    if not drawn:
        return ""
    counts = ", ".join(f"{len(sets)} of `{arm}`" for arm, sets in sorted(drawn.items()))
    return f" Random heads are drawn once a seed, for all tasks; draws: {counts}."


def _excluded(c: Contrast) -> str:
    if not c.several:
        return ""
    gains, losses = (
        signed(max(bound, 0), lines=(0, MARGIN)).removeprefix("+")
        for bound in (c.difference.high, -c.difference.low)
    )
    return f"gains above {gains}, losses above {losses}"
