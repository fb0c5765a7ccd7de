"""What an honest practitioner should do: sentences that rules choose, each with the numbers that chose it.

"A minus B" is the paired difference of two arms in points. Only arms that were tried under the same conditions stand
in one sentence, and what was not measured is named or left unsaid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from steering.compare import compare_entries
from steering.reproduce.choice import CONTROLS, SLICED
from steering.reproduce.claims import FARTHER, MAIN_NAMES, SAME_REACH, ran_all
from steering.reproduce.contrast import Contrast, Finding, contrast, points
from steering.reproduce.coverage import partly_tried
from steering.reproduce.depends import how_long, how_many
from steering.reproduce.plan import (
    ADAPTING,
    BOTH,
    BOTH_RANDOM,
    FEW,
    LORA_EVERYWHERE,
    REACHING_VLM,
    VLM,
    VLM_RANDOM,
    Arm,
)
from steering.reproduce.published import CHOICE_MINUTES, MARGIN, VARIED
from steering.reproduce.timing import mean_over_seeds, time_ratios
from steering.reproduce.words import arms_of, by_task, named, of, on_tasks, trained, where_apart
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
        how_many,
        _how_to_choose,
        _against_lora,
        _robust,
        how_long,
        _what_it_costs_elsewhere,
        _beware,
    )
    return [sentence for part in parts if part not in but for sentence in part(entries)]


def _whether(entries: Sequence[Entry]) -> list[str]:
    """Does finetuning the chosen heads help, and where?"""
    made = contrast(entries, "aligned", "base")
    if made is None:
        return []
    each = by_task(entries, made)
    words = {
        "better": "Finetune few heads: `aligned` gains",
        "worse": "Do not finetune heads of the expert: `aligned` loses",
        "the same": "Do not expect a gain: `aligned` moves",
        "open": "A gain has not been shown: `aligned` moves",
    }
    said = f"{words[made.finding(MARGIN)]} {of(made)} over the base policy"
    places = (
        ("helps on", lambda c: c.difference.low > 0),
        ("harms", lambda c: c.difference.high < 0),
        ("was shown neither to help nor to harm on", lambda c: 0 in c.difference),
    )
    for verb, holds in places:
        if there := [c for c in each if holds(c)]:
            said += f"; it {verb} {on_tasks(there)}"
    return [f"{said}."]


def _which_tower(entries: Sequence[Entry]) -> list[str]:
    """Heads of the vlm, or of both towers, against heads of the expert: where that decides, what it costs, and whether
    the choice does there."""
    towers = ((BOTH, BOTH_RANDOM, "both towers"), (VLM, VLM_RANDOM, "the vlm"))
    said = [_instead(entries, *each) for each in towers]
    return [sentence for sentence in said if sentence]


def _instead(entries: Sequence[Entry], arm: Arm, control: Arm, towers: str) -> str:
    made = contrast(entries, arm.name, "aligned")
    if made is None:
        return ""
    words: dict[Finding, str] = {
        "better": f"Choose heads of {towers}, not of the expert alone",
        "worse": f"Choose heads of the expert rather than of {towers}",
        "the same": f"Heads of {towers} do as well as the expert's",
        "open": f"Heads of {towers} have not been shown to be better than the expert's, nor worse",
    }
    which = f"heads of {towers} or the expert's are"
    start, apart = _opening(entries, made, words, which)
    said = f"{start}: `{arm.name}` minus `aligned` is {of(made)}{apart}"
    if ratios := time_ratios(entries, arm.name, "aligned"):
        said += f"; training takes {mean_over_seeds(ratios).value:.1f} times as long"
    if against := contrast(entries, arm.name, control.name):
        said += f". Chosen minus random heads there: {of(against)}"
    return f"{said}."


def _opening(
    entries: Sequence[Entry], made: Contrast, words: Mapping[Finding, str], which: str
) -> tuple[str, str]:
    """How a sentence on two arms begins, and on which tasks they differ."""
    apart, both_ways = where_apart(entries, made)
    found = made.finding(MARGIN)
    if both_ways and found in ("the same", "open"):
        return f"Whether {which} better depends on the task", apart
    return words[found] + (" on the whole" if apart and found == "the same" else ""), apart


def _more_than_heads(entries: Sequence[Entry]) -> list[str]:
    """Arms that train more than heads and win more than the best of those, on all tasks that these were tried on."""
    both = contrast(entries, BOTH.name, "aligned")
    best = BOTH.name if both is not None and both.finding(MARGIN) == "better" else "aligned"
    whole = contrast(entries, best, "base")
    more = [
        c
        for arm in arms_of(entries)
        if arm not in _HEADS_ALONE
        and trained(entries, arm) > trained(entries, best)
        and (c := contrast(entries, arm, best))
        and whole is not None
        and c.tasks == whole.tasks
    ]
    more.sort(key=lambda c: -c.difference.value)
    if better := [c for c in more if c.finding(MARGIN) == "better"]:
        said = f"If memory and time do not matter, train more: {named(better)}, each minus `{best}`"
        return [f"{said}; {_elsewhere(entries, [c.arm for c in better], best)}."]
    if more:
        times = trained(entries, more[0].arm) / trained(entries, best)
        unsure = any(c.finding(MARGIN) == "open" for c in more)
        said = (
            "Training more than heads has not been shown to win more"
            if unsure
            else "Train no more than heads"
        )
        return [
            f"{said}: the best arm that does, `{more[0].arm}`, trains {times:.3g} times as many parameters as "
            f"`{best}`; `{more[0].arm}` minus `{best}` is {of(more[0])}."
        ]
    return []


def _elsewhere(entries: Sequence[Entry], arms: Sequence[str], best: str) -> str:
    """What arms lose against chosen heads under other conditions than those that they were trained for."""
    made = [c for arm in arms for where in ELSEWHERE if (c := contrast(entries, arm, best, where))]
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
            "better": f"With {arm.heads} heads, choose them: chosen heads beat random ones by {of(made)}.",
            "worse": f"With {arm.heads} heads, do not choose them by k-NN: random ones do better, {of(made)}.",
            "the same": f"With {arm.heads} heads it does not matter which: chosen minus random heads is {of(made)}.",
            "open": f"With {arm.heads} heads, do not count on the choice: chosen minus random heads is {of(made)}.",
        }
        said.append(words[made.finding(MARGIN)])
    return said


def _of_other_tasks(entries: Sequence[Entry]) -> list[str]:
    made = contrast(entries, "aligned", "generic-k")
    if made is None or made.finding(MARGIN) != "better":
        return []
    return [f"Do not take over heads that other tasks chose: the task's own do better by {of(made)}."]


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
    return [f"{words[made.finding(MARGIN)]} {of(made)}."]


def _where_heads_do_not_help(entries: Sequence[Entry]) -> list[str]:
    """Tasks on which the chosen heads were not shown to help and another arm does better, from the same seeds."""
    said = []
    for task in TARGETS:
        made = contrast(entries, "aligned", "base", tasks=[task])
        if made is None or made.difference.low > 0:
            continue
        gains = [
            c
            for arm in arms_of(entries)
            if arm not in _OF_EXPERT
            and (c := contrast(entries, arm, "aligned", tasks=[task]))
            and c.difference.low > 0
        ]
        gains.sort(key=lambda c: -c.difference.value)
        drawn = [c for c in gains if c.one_draw]
        if known := [c for c in gains if not c.one_draw]:
            lucky = f"; and, of one draw of random heads, {named(drawn)}" if drawn else ""
            said.append(
                f"Where heads of the expert are not enough, train others or more: on {task} `aligned` minus the base "
                f"is {points(made.difference)} points; these do better than `aligned`: {named(known)}{lucky}."
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
        return [f"Choose by {named(better)}: it does better than k-NN."]
    if made:
        ratio = CHOICE_MINUTES["causal mediation"] / CHOICE_MINUTES["k-NN"]
        pays = contrast(
            entries, Arm("aligned", heads=FEW).name, Arm("random-k", heads=FEW).name, tasks=ADAPTING
        )
        doubt = "" if pays is not None and pays.finding(MARGIN) == "better" else "If you choose at all, "
        return [
            f"{doubt}{'c' if doubt else 'C'}hoose by k-NN: no other way was shown to be better ({named(made)}, each "
            f"minus k-NN), and it is the cheapest (in the paper {ratio:.0f} times cheaper than causal mediation)."
        ]
    return []


def _against_lora(entries: Sequence[Entry]) -> list[str]:
    """Heads of the expert and of both towers, beside a LoRA of the same reach, and one of less."""
    expert, both = "LoRA of the expert", f"`{LORA_EVERYWHERE.name}`"
    trios = (
        ("aligned", "lora", expert),
        (BOTH.name, LORA_EVERYWHERE.name, both),
        (BOTH.name, "lora", expert),
    )
    return [said for trio in trios for said in _against(entries, *trio)]


def _against(entries: Sequence[Entry], arm: str, lora: str, name: str) -> list[str]:
    made = contrast(entries, arm, lora)
    if made is None:
        return []
    times = trained(entries, lora) / trained(entries, arm)
    cheaper = f"`{arm}` trains {times:.2f} times fewer parameters"
    if times < 1:
        cheaper = f"`{arm}` trains {1 / times:.2f} times as many parameters"
    words: dict[Finding, str] = {
        "better": f"Prefer `{arm}` to {name}",
        "worse": f"Prefer {name} to `{arm}`",
        "the same": f"{name} does as well as `{arm}`",
        "open": f"{name} has not been shown to be worse than `{arm}`, nor better",
    }
    start, apart = _opening(entries, made, words, f"`{arm}` or {name} is")
    said = f"{start}: `{arm}` minus `{lora}` is {of(made)}{apart}; {cheaper}"
    if (arm, lora) in FARTHER:
        said += f". `{arm}` reaches the vlm, `{lora}` does not"
        if drawn := contrast(entries, BOTH_RANDOM.name, lora):
            said += f"; random heads of both towers minus `{lora}`: {of(drawn)}"
    return [f"{said}."]


def _robust(entries: Sequence[Entry]) -> list[str]:
    """Heads beside a LoRA of the same reach, under all that the paper varies, together."""
    varied, said = tuple(VARIED), []
    for arm, lora in SAME_REACH:
        made = contrast(entries, arm, lora, varied) if ran_all(entries, arm, lora, varied) else None
        found = made.finding(MARGIN) if made else "open"
        if made and found in ("better", "worse"):
            under = f"{', '.join(varied[:-1])} and {varied[-1]}"
            said.append(
                f"Where light, objects or the task change, `{arm}` does {found} than `{lora}`: over {under} together "
                f"the difference is {of(made)}."
            )
    return said


def _what_it_costs_elsewhere(entries: Sequence[Entry]) -> list[str]:
    """Forgetting, of arms that were tried alike, and which of them forgets least."""
    unlike = partly_tried(entries)
    lost = [
        c
        for arm in arms_of(entries)
        if arm not in unlike and (c := contrast(entries, arm, "base", "pretraining"))
    ]
    if not lost:
        return []
    worst = [c for c in lost if c.difference.high < 0]
    rest = [c for c in lost if c not in worst]
    said = [f"No arm was shown to lose pretraining tasks ({named(rest)} against the base)."]
    if worst:
        others = f"; not shown to: {named(rest)}" if rest else ""
        said = [f"Expect to lose pretraining tasks: {named(worst)} against the base{others}."]
    for arm, other in (("retain", "aligned"), ("aligned", "lora"), (BOTH.name, LORA_EVERYWHERE.name)):
        made = contrast(entries, arm, other, "pretraining")
        if made is not None and made.finding(MARGIN) in ("better", "worse"):
            less = "less" if made.finding(MARGIN) == "better" else "more"
            said.append(
                f"`{arm}` forgets {less} than `{other}`: on the pretraining tasks the difference is {of(made)}."
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
        f"Roll out every task before deployment: finetuning may have harmed {'; '.join(hurt)} (if finetuning changed "
        f"nothing, {len(cells) / 40:.1f} of {len(cells)} arms and tasks would be expected to fall that low)."
    ]
