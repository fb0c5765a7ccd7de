"""What an honest practitioner should do: sentences that rules choose, each with the numbers that chose it.

"A minus B" is the paired difference of two arms in points. Only arms that were tried under the same conditions stand
in one sentence, and what was not measured is named or left unsaid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from steering.compare import compare_entries
from steering.compare_report import points
from steering.reproduce.choice import CONTROLS, SLICED
from steering.reproduce.claims import MAIN_NAMES, mean_of_logs, time_ratios
from steering.reproduce.contrast import Contrast, contrast
from steering.reproduce.coverage import partly_tried
from steering.reproduce.plan import (
    ADAPTING,
    BOTH,
    BOTH_RANDOM,
    FEW,
    FULL,
    LORA_EVERYWHERE,
    REACHING_VLM,
    VLM,
    VLM_RANDOM,
    Arm,
)
from steering.reproduce.published import CHOICE_MINUTES, MARGIN
from steering.results import IN_DOMAIN, Entry
from testbed.tasks import TARGETS

ELSEWHERE = ("lighting", "form", "distractors", "paraphrase", "pose-shift", "unseen", "pretraining")
"""Suites, and groups of them, on which whoever is trained for a task is tried besides."""

_OF_EXPERT = frozenset((*SLICED, *CONTROLS))
_HEADS_ALONE = _OF_EXPERT | {arm.name for arm in REACHING_VLM if arm != LORA_EVERYWHERE}
"""Arms that train no more than heads."""


def advice(entries: Sequence[Entry]) -> list[str]:
    """The most important first."""
    return _said(entries, but=())


def headlines(entries: Sequence[Entry]) -> list[str]:
    """What whoever reads little should know: whatever goes against few heads is part of it."""
    return _said(entries, but=(_where_heads_do_not_help, _of_other_tasks, _all_heads, _how_to_choose))


def _said(entries: Sequence[Entry], but: Sequence[Callable[[Sequence[Entry]], list[str]]]) -> list[str]:
    parts = (
        _whether,
        _which_tower,
        _where_heads_do_not_help,
        _more_than_heads,
        _chosen_or_random,
        _of_other_tasks,
        _all_heads,
        _how_many,
        _how_to_choose,
        _against_lora,
        _how_long,
        _what_it_costs_elsewhere,
        _beware,
    )
    return [sentence for part in parts if part not in but for sentence in part(entries)]


def _whether(entries: Sequence[Entry]) -> list[str]:
    """Does finetuning the chosen heads help, and where?"""
    made = contrast(entries, "aligned", "base")
    if made is None:
        return []
    by_task = [c for task in made.tasks if (c := contrast(entries, "aligned", "base", tasks=[task]))]
    words = {
        "better": "Finetune few heads: `aligned` gains",
        "worse": "Do not finetune heads of the expert: `aligned` loses",
        "the same": "Do not expect a gain: `aligned` moves",
        "open": "A gain has not been shown: `aligned` moves",
    }
    said = f"{words[made.finding(MARGIN)]} {_of(made)} over the base policy"
    places = (
        ("helps on", lambda c: c.difference.low > 0),
        ("harms", lambda c: c.difference.high < 0),
        ("was shown neither to help nor to harm on", lambda c: 0 in c.difference),
    )
    for verb, holds in places:
        if there := [c for c in by_task if holds(c)]:
            said += f"; it {verb} {_tasks(there)}"
    return [f"{said}."]


def _which_tower(entries: Sequence[Entry]) -> list[str]:
    """Heads of the vlm, or of both towers, against heads of the expert: where that decides, what it costs, and whether
    the choice does there."""
    of = {VLM: "the vlm", BOTH: "both towers"}
    said = [
        _instead(entries, arm, control, of[arm]) for arm, control in ((BOTH, BOTH_RANDOM), (VLM, VLM_RANDOM))
    ]
    return [sentence for sentence in said if sentence]


def _instead(entries: Sequence[Entry], arm: Arm, control: Arm, towers: str) -> str:
    made = contrast(entries, arm.name, "aligned")
    if made is None:
        return ""
    words = {
        "better": f"Choose heads of {towers}, not of the expert alone",
        "worse": f"Choose heads of the expert rather than of {towers}",
        "the same": f"Heads of {towers} do as well as the expert's",
        "open": f"Heads of {towers} have not been shown to be better than the expert's, nor worse",
    }
    said = f"{words[made.finding(MARGIN)]}: `{arm.name}` minus `aligned` is {_of(made)}"
    by_task = [c for task in made.tasks if (c := contrast(entries, arm.name, "aligned", tasks=[task]))]
    for finding in ("better", "worse"):
        if there := [c for c in by_task if c.finding(MARGIN) == finding]:
            said += f", {finding} on {_tasks(there)}"
    if ratios := time_ratios(entries, arm.name, "aligned"):
        said += f"; training takes {mean_of_logs(ratios).value:.1f} times as long"
    if against := contrast(entries, arm.name, control.name):
        said += f". Chosen minus random heads there: {_of(against)}"
    return f"{said}."


def _more_than_heads(entries: Sequence[Entry]) -> list[str]:
    """Arms that train more than heads and win more than the best of those, on all tasks that these were tried on."""
    both = contrast(entries, BOTH.name, "aligned")
    of = BOTH.name if both is not None and both.finding(MARGIN) == "better" else "aligned"
    whole = contrast(entries, of, "base")
    more = [
        c
        for arm in _arms_of(entries)
        if arm not in _HEADS_ALONE
        and _trained(entries, arm) > _trained(entries, of)
        and (c := contrast(entries, arm, of))
        and whole is not None
        and c.tasks == whole.tasks
    ]
    more.sort(key=lambda c: -c.difference.value)
    if better := [c for c in more if c.finding(MARGIN) == "better"]:
        said = f"If memory and time do not matter, train more: {_arms(better)}, each minus `{of}`"
        return [f"{said}; {_elsewhere(entries, [c.arm for c in better], of)}."]
    if more:
        times = _trained(entries, more[0].arm) / _trained(entries, of)
        unsure = any(c.finding(MARGIN) == "open" for c in more)
        said = (
            "Training more than heads has not been shown to win more"
            if unsure
            else "Train no more than heads"
        )
        return [
            f"{said}: the best that does, `{more[0].arm}`, trains {times:.3g} times as many parameters as `{of}`; "
            f"`{more[0].arm}` minus `{of}` is {_of(more[0])}."
        ]
    return []


def _elsewhere(entries: Sequence[Entry], arms: Sequence[str], of: str) -> str:
    """What arms lose against chosen heads under other conditions than those that they were trained for."""
    made = [c for arm in arms for where in ELSEWHERE if (c := contrast(entries, arm, of, where))]
    untried = [arm for arm in arms if arm not in {c.arm for c in made}]
    if not made:
        return "what that costs under other conditions was not measured"
    places = ", ".join(dict.fromkeys(c.where for c in made))
    pays = [f"`{c.arm}` {points(c.difference)} under {c.where}" for c in made if c.difference.high < 0]
    said = f"but {', '.join(pays)}" if pays else f"no loss against it was shown under {places}"
    return f"{said}; not tried there: {', '.join(f'`{arm}`' for arm in untried)}" if untried else said


def _chosen_or_random(entries: Sequence[Entry]) -> list[str]:
    said = []
    for arm, control, tasks in (
        (Arm("aligned"), Arm("random-k"), ADAPTING),
        (Arm("aligned", heads=FEW), Arm("random-k", heads=FEW), ADAPTING),
    ):
        made = contrast(entries, arm.name, control.name, tasks=tasks)
        if made is None:
            continue
        words = {
            "better": f"With {arm.heads} heads, choose them: chosen heads beat random ones by {_of(made)}.",
            "worse": f"With {arm.heads} heads, do not choose them by k-NN: random ones do better, {_of(made)}.",
            "the same": f"With {arm.heads} heads it does not matter which: chosen minus random heads is {_of(made)}.",
            "open": f"With {arm.heads} heads, do not count on the choice: chosen minus random heads is {_of(made)}.",
        }
        said.append(words[made.finding(MARGIN)])
    return said


def _of_other_tasks(entries: Sequence[Entry]) -> list[str]:
    made = contrast(entries, "aligned", "generic-k")
    if made is None or made.finding(MARGIN) != "better":
        return []
    return [f"Do not take over heads that other tasks chose: the task's own do better by {_of(made)}."]


def _all_heads(entries: Sequence[Entry]) -> list[str]:
    made = contrast(entries, "aligned", "all-heads")
    if made is None:
        return []
    words = {
        "better": "Do not train all heads: the chosen ones do better",
        "worse": "If parameters are free, train all heads: the chosen ones do worse",
        "the same": "A few heads are enough: against all heads",
        "open": "All heads have not been shown to be better than a few, nor worse: against all heads",
    }
    return [f"{words[made.finding(MARGIN)]} {_of(made)}."]


def _where_heads_do_not_help(entries: Sequence[Entry]) -> list[str]:
    """Tasks on which the chosen heads were not shown to help and another arm does better, from the same seeds."""
    said = []
    for task in TARGETS:
        made = contrast(entries, "aligned", "base", tasks=[task])
        if made is None or made.difference.low > 0:
            continue
        gains = [
            c
            for arm in _arms_of(entries)
            if arm not in _OF_EXPERT
            and (c := contrast(entries, arm, "aligned", tasks=[task]))
            and c.difference.low > 0
        ]
        if gains:
            gains.sort(key=lambda c: -c.difference.value)
            said.append(
                f"Where heads of the expert are not enough, train others or more: on {task} `aligned` moves "
                f"{points(made.difference)}; minus it, {_arms(gains)}."
            )
    return said


def _how_to_choose(entries: Sequence[Entry]) -> list[str]:
    made = [
        c
        for by in ("best-add", "ablation", "patching", "atp")
        if (
            c := contrast(
                entries, Arm("aligned", heads=FEW, by=by).name, Arm("aligned", heads=FEW).name, tasks=ADAPTING
            )
        )
    ]
    better = [c for c in made if c.finding(MARGIN) == "better"]
    if better:
        return [f"Choose by {_arms(better)}: it does better than k-NN."]
    if made:
        ratio = CHOICE_MINUTES["causal mediation"] / CHOICE_MINUTES["k-NN"]
        pays = contrast(
            entries, Arm("aligned", heads=FEW).name, Arm("random-k", heads=FEW).name, tasks=ADAPTING
        )
        doubt = "" if pays is not None and pays.finding(MARGIN) == "better" else "If you choose at all, "
        return [
            f"{doubt}{'c' if doubt else 'C'}hoose by k-NN: no other way was shown to be better ({_arms(made)}, each "
            f"minus k-NN), and it is the cheapest (in the paper {ratio:.0f} times cheaper than causal mediation)."
        ]
    return []


def _against_lora(entries: Sequence[Entry]) -> list[str]:
    """LeRobot's, and one that reaches as far as heads of both towers."""
    pairs = (("aligned", "lora"), (BOTH.name, "lora"), (BOTH.name, LORA_EVERYWHERE.name))
    return [said for arm, lora in pairs for said in _against(entries, arm, lora)]


def _against(entries: Sequence[Entry], arm: str, lora: str) -> list[str]:
    made = contrast(entries, arm, lora)
    if made is None:
        return []
    name = "LoRA" if lora == "lora" else f"`{lora}`"
    times = _trained(entries, lora) / _trained(entries, arm)
    cheaper = f"`{arm}` trains {times:.2f} times fewer parameters"
    if times < 1:
        cheaper = f"`{arm}` trains {1 / times:.2f} times as many parameters"
    words = {
        "better": f"Prefer `{arm}` to {name}: `{arm}` minus `{lora}` is {_of(made)}",
        "worse": f"Prefer {name}: `{arm}` minus `{lora}` is {_of(made)}",
        "the same": f"{name} does as well: `{arm}` minus `{lora}` is {_of(made)}",
        "open": f"{name} has not been shown to be worse: `{arm}` minus `{lora}` is {_of(made)}",
    }
    return [f"{words[made.finding(MARGIN)]}; {cheaper}."]


def _how_long(entries: Sequence[Entry]) -> list[str]:
    """Lengths of training at which the chosen heads and LoRA were shown to differ."""
    lengths = {arm.steps for arm in FULL.study("steps").arms}
    variants = {steps or FULL.steps: {"steps": steps} for steps in lengths}
    return _differs(entries, "lora", variants, "the steps of training")


def _how_many(entries: Sequence[Entry]) -> list[str]:
    """Numbers of demonstrations from which the chosen heads were shown to differ from random ones, and from LoRA."""
    sizes = {arm.demos for arm in FULL.study("demos").arms}
    variants = {demos or FULL.demos: {"demos": demos} for demos in sizes}
    return [
        said
        for other in ("random-k", "lora")
        for said in _differs(entries, other, variants, "the number of demonstrations")
    ]


def _differs(
    entries: Sequence[Entry], other: str, variants: Mapping[int, Mapping[str, Any]], unit: str
) -> list[str]:
    """For which variants of two arms `aligned` was shown to be better or worse than the other, and for which not."""
    apart, alike = [], []
    for size, changes in sorted(variants.items()):
        ours, theirs = (Arm(arm, **changes).name for arm in ("aligned", other))
        made = contrast(entries, ours, theirs, tasks=ADAPTING)
        if made is None:
            continue
        if made.finding(MARGIN) not in ("better", "worse"):
            alike.append(str(size))
            continue
        own = [
            f"`{name}` {points(c.difference)}"
            for name, arm in (("aligned", ours), (other, theirs))
            if (c := contrast(entries, arm, "base", tasks=ADAPTING))
        ]
        apart.append(f"at {size} {_of(made)}, against the base {' and '.join(own)}")
    if not apart or len(apart) + len(alike) < 2:
        return []
    rest = f"; not shown to differ at {', '.join(alike)}" if alike else ""
    return [f"How `aligned` minus `{other}` depends on {unit}: {'; '.join(apart)}{rest}."]


def _what_it_costs_elsewhere(entries: Sequence[Entry]) -> list[str]:
    """Forgetting, of arms that were tried alike, and which of them forgets least."""
    unlike = partly_tried(entries)
    lost = [
        c
        for arm in _arms_of(entries)
        if arm not in unlike and (c := contrast(entries, arm, "base", "pretraining"))
    ]
    if not lost:
        return []
    worst = [c for c in lost if c.difference.high < 0]
    rest = [c for c in lost if c not in worst]
    said = [f"No arm was shown to lose pretraining tasks ({_arms(rest)} against the base)."]
    if worst:
        others = f"; not shown to: {_arms(rest)}" if rest else ""
        said = [f"Expect to lose pretraining tasks: {_arms(worst)} against the base{others}."]
    for arm, other in (("retain", "aligned"), ("aligned", "lora"), (BOTH.name, LORA_EVERYWHERE.name)):
        made = contrast(entries, arm, other, "pretraining")
        if made is not None and made.finding(MARGIN) in ("better", "worse"):
            less = "less" if made.finding(MARGIN) == "better" else "more"
            said.append(
                f"`{arm}` forgets {less} than `{other}`: on the pretraining tasks the difference is {_of(made)}."
            )
    return said


def _beware(entries: Sequence[Entry]) -> list[str]:
    found = compare_entries([e for e in entries if e.result.suite == IN_DOMAIN])
    cells = [
        (c.task, c.arm, c.difference) for c in found.cells if c.arm in MAIN_NAMES and c.difference is not None
    ]
    hurt = [f"{task} (`{arm}` {points(moved)})" for task, arm, moved in cells if moved.high < 0]
    if not hurt:
        return []
    return [
        f"Roll out every task before deployment: finetuning may have harmed {'; '.join(hurt)} (of {len(cells)} arms "
        f"and tasks, {len(cells) / 40:.1f} would fall that low by chance)."
    ]


def _arms_of(entries: Iterable[Entry]) -> list[str]:
    there = {e.arm for e in entries}
    return [arm for arm in MAIN_NAMES if arm in there and arm != "base"]


def _trained(entries: Iterable[Entry], arm: str) -> float:
    """Parameters, a mean over the trainings; 0 for one that trains nothing."""
    counts = [sum(e.result.trainable_parameters.values()) for e in entries if e.arm == arm]
    return float(np.mean(counts)) if counts else 0.0


def _of(made: Contrast) -> str:
    """The difference, and what it rests on."""
    tasks, seeds = (
        f"{n} {what}{'s' * (n > 1)}" for n, what in ((len(made.tasks), "task"), (made.runs, "seed"))
    )
    draw = ", one draw of random heads" if made.one_draw else ""
    return f"{points(made.difference)} points (n = {made.n}, {tasks}, {seeds}{draw})"


def _tasks(made: Iterable[Contrast]) -> str:
    return ", ".join(f"{c.tasks[0]} ({points(c.difference)})" for c in made)


def _arms(made: Iterable[Contrast]) -> str:
    return ", ".join(f"`{c.arm}` {points(c.difference)}" for c in made)
