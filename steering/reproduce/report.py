"""REPORT.md: what was run, what of the paper reproduces, whether it matters which heads, and what to do about it.

Everything is computed from the records: a sentence is chosen by a rule and its numbers are filled in, so the same
records give the same bytes, and partial ones a report that says what is missing. Rates are percent, differences are
points, with 95 % intervals (steering/stats.py); what a verdict means is said in claims.py and contrast.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from steering.cells import Cell
from steering.compare import Comparison, compare_entries
from steering.compare_report import (
    Table,
    ends,
    markdown_table,
    parameters_table,
    rate_and_points,
    signed,
)
from steering.reproduce.ablation import ablation_table, like_with_like
from steering.reproduce.advice import advice, headlines
from steering.reproduce.choice import choice_table
from steering.reproduce.claims import (
    MAIN_NAMES,
    NO_DATA,
    NOT_EXCLUDED,
    NOT_SHOWN,
    OPPOSITE,
    REPRODUCES,
    Claim,
    claims,
)
from steering.reproduce.contrast import points
from steering.reproduce.coverage import Covered, coverage, partly_tried
from steering.reproduce.plan import (
    BOTH,
    HEADS,
    LORA_EVERYWHERE,
    VLM,
    Plan,
    Study,
)
from steering.reproduce.published import MARGIN, TRIALS
from steering.results import IN_DOMAIN, Entry
from testbed.tasks import TARGETS

_UNLIKE = (
    "Rows of unlike seeds are not to be compared: contrasts, below, take the seeds that both arms have. "
)
NOT_RUN = "Not run yet."
ABLATIONS = ("heads", "methods", "knn", "tower", "demos", "steps")


def report(plan: Plan, entries: Sequence[Entry], results: Path) -> str:
    """The whole page."""
    found = claims(entries, results)
    main = [e for e in entries if e.arm in MAIN_NAMES]
    compared = compare_entries(main)
    parts = [
        "# Robotic Steering in simulation: what reproduces",
        _opening(plan),
        "## In short\n\n" + _list([*in_short(found), *_one_training(entries), *advice(entries)[:1]]),
        "## What was run\n\n" + markdown_table(coverage_table(coverage(plan, entries), plan)),
        "## The paper's claims\n\n" + markdown_table(claims_table(found)),
        "## Success\n\n" + _shown(success_table(entries)),
        "## Does it matter which heads?\n\n" + markdown_table(choice_table(entries)),
        "## Under perturbation, on an unseen task, on the pretraining tasks\n\n"
        + _trials(compared, partly_tried(main)),
        "## What it costs\n\n"
        + "\n\n".join(_shown(made(compared)) for made in (cost_table, parameters_table)),
        *(
            _ablation(plan.study(name), entries)
            for name in ABLATIONS
            if name in {s.name for s in plan.studies}
        ),
        "## What an honest practitioner should do\n\n" + _list(advice(entries)),
        "## What this cannot say\n\n" + _list(limits(entries)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme_table(entries: Sequence[Entry], results: Path) -> str:
    """What the README shows: success by arm and task, and what to take from it."""
    lines = [*headlines(entries), f"{_counted(claims(entries, results))} [REPORT.md](REPORT.md)."]
    return f"{_shown(success_table(entries))}\n\n{_list(lines)}"


# ---- words


def in_short(found: Sequence[Claim]) -> list[str]:
    """A line a claim: in how many comparisons it holds, with the effects; of many comparisons, those that are known."""
    words = {REPRODUCES: "holds", OPPOSITE: "the opposite holds", NO_DATA: "not run yet"}
    said = []
    for claim, ours in _by_claim(found).items():
        parts = []
        for verdict in (REPRODUCES, OPPOSITE, None, NO_DATA):
            there = [c for c in ours if c.verdict == verdict or (verdict is None and c.verdict not in words)]
            if not there:
                continue
            named = (
                ""
                if len(there) > 6
                else f" ({'; '.join(f'{c.compared}{_effect_in_words(c)}' for c in there)})"
            )
            parts.append(f"{words.get(verdict or '', 'not shown')} in {len(there)} of {len(ours)}{named}")
        whose = "" if ours[0].theirs else " (no claim of the paper)"
        said.append(f"**{claim[0].upper()}{claim[1:]}**{whose}: {'; '.join(parts)}.")
    return said


def _by_claim(found: Sequence[Claim]) -> dict[str, list[Claim]]:
    groups: dict[str, list[Claim]] = {}
    for c in found:
        groups.setdefault(c.claim, []).append(c)
    return groups


def _counted(found: Sequence[Claim]) -> str:
    """Of the paper's claims, which hold in every comparison, in some, in none."""
    found = [c for c in found if c.theirs]
    groups = _by_claim(found)
    holds = {claim: sum(c.verdict == REPRODUCES for c in ours) for claim, ours in groups.items()}
    kinds = {
        "in every comparison": [claim for claim, n in holds.items() if n == len(groups[claim])],
        "in some": [claim for claim, n in holds.items() if 0 < n < len(groups[claim])],
        "in none": [claim for claim, n in holds.items() if n == 0],
    }
    named = "; ".join(
        f"{len(claims)} {where} ({'; '.join(claims)})" for where, claims in kinds.items() if claims
    )
    return f"Of {len(groups)} claims of the paper, in {len(found)} comparisons, hold: {named}. See"


def _effect_in_words(claim: Claim) -> str:
    """The effect, and the reason of a verdict that the interval does not give away."""
    said = f": {effect(claim)}" if claim.effect else ""
    if claim.verdict in (REPRODUCES, OPPOSITE):
        return f"{said}, one training of each" if claim.lucky else said
    clear = claim.verdict in (NOT_SHOWN, NOT_EXCLUDED, NO_DATA)
    return said if clear else f"{said}, {claim.verdict.partition(': ')[2]}"


def effect(claim: Claim) -> str:
    e = claim.effect
    if e is None:
        return ""
    if claim.unit == "points":
        return points(e)
    if claim.unit == "times":
        return f"{e.value:.2f} times" + ("" if e.low == e.high else f" [{e.low:.2f}, {e.high:.2f}]")
    if claim.unit == "saved":
        return f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"
    if claim.unit in ("heads", "halves"):
        than = "chance" if claim.unit == "heads" else "halves"
        return f"{e.value:.1f} shared, {than} {e.low:.1f} to {e.high:.1f}"
    return f"{e.value:.0%} (tasks: {e.low:.0%} to {e.high:.0%})"


def limits(entries: Sequence[Entry]) -> list[str]:
    return [
        *_one_training(entries),
        "A small policy, pretrained and tried in one simulator: what holds here need not hold for a large policy on a "
        "robot, and what does not hold here may hold there.",
        "The tasks are given, not drawn: every interval speaks of these tasks.",
        "The claims are tested one by one; nothing corrects for their number.",
    ]


def _one_training(entries: Sequence[Entry]) -> list[str]:
    """Where intervals contain the luck of training, which one training cannot show."""
    seeds: dict[tuple[bool, str], dict[tuple[str, str], set[int]]] = {}
    for e in entries:
        if e.result.trainable_parameters:
            cells = seeds.setdefault((e.result.suite == IN_DOMAIN, e.arm), {})
            cells.setdefault((e.result.task, e.result.suite), set()).add(e.result.settings["seed"])
    several = {arm: min(map(len, cells.values())) > 1 for arm, cells in seeds.items()}
    if all(several.values()):
        return []
    said = []
    for in_domain, where in ((True, "in-domain"), (False, "under perturbation and on other tasks")):
        arms = [has for (inside, _), has in several.items() if inside == in_domain]
        if arms:
            said.append(f"{where} {sum(arms)} of {len(arms)}")
    return [
        "An interval contains the luck of training only where arms have several seeds, as the tables say; arms that "
        f"do on every task: {', '.join(said)}."
    ]


def _opening(plan: Plan) -> str:
    return (
        f"Written by `robosteer reproduce{' --quick' if plan.name == 'quick' else ''} --report` from its records: no "
        "sentence and no number is typed. The claims are those of *Robotic Steering* (Mitra et al., arXiv 2511.22697), "
        "made with a real arm; here a small policy (tiny-pi0) repeats them on a simulated tabletop. `aligned` trains "
        f"the query rows and output columns of the {HEADS} heads of the action expert that k-NN ranks best, "
        f"`{VLM.name}` of the vlm's, `{BOTH.name}` both; `paper` trains what the published code trains; "
        "docs/reproduce.md says what the other arms are. Rates are percent, differences are points with paired 95 % "
        "intervals in brackets; n counts paired rollouts. A difference matters "
        f"here if it is as large as the smaller mean advantage over LoRA that the paper claims: {100 * MARGIN:.3g} "
        "points. A bound has decimals where rounding would hide on which side of this, or of zero, it is."
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# ---- tables


def coverage_table(found: Sequence[Covered], plan: Plan) -> Table:
    rows = [(c.study, c.question, _done(c), ", ".join(map(str, c.seeds)) or "none") for c in found]
    note = (
        f"A cell is an arm, a task, a training seed and a suite, with n = {plan.n} rollouts; studies share cells. "
        "A study of several suites counts what it tries beyond in-domain. "
        f"Planned are seeds {', '.join(map(str, plan.seeds))}; {plan.demos} demonstrations and {plan.steps} steps "
        "unless an arm says otherwise."
    )
    return Table("Coverage", ("study", "question", "cells done", "seeds"), tuple(rows), note)


def _done(c: Covered) -> str:
    fewer = f", {c.begun} with {ends(c.begun_n)} rollouts" if c.begun else ""
    return f"{c.done} of {c.planned}{fewer}"


def claims_table(found: Sequence[Claim]) -> Table:
    rows = [(c.says, c.compared, c.paper, effect(c), c.n, f"**{_verdict(c)}**") for c in found]
    note = (
        f"The paper's effects are of a real arm, in points, from {TRIALS} rollouts a cell, without intervals. `lora` "
        f"has LeRobot's default targets; theirs trains every part of the policy, hence its count, and "
        f"`{LORA_EVERYWHERE.name}` every linear layer of vlm and expert. Time is the "
        "processor's, for other jobs shared the machine; these slow the processor, too, so a seed's trainings, which "
        "ran together, count as one. `benchmarks/results/training.json` has an idle machine's."
    )
    return Table("Claims", ("claim", "compared", "paper", "ours", "n", "verdict"), tuple(rows), note)


def _verdict(claim: Claim) -> str:
    """What the paper does not claim cannot reproduce."""
    return "shown" if claim.verdict == REPRODUCES and not claim.theirs else claim.verdict


def success_table(entries: Sequence[Entry]) -> Table:
    """In-domain success by arm and task in percent, and the difference to the base."""
    found = compare_entries([e for e in entries if e.arm in MAIN_NAMES and e.result.suite == IN_DOMAIN])
    tasks = [task for task in TARGETS if task in found.tasks]
    rows = []
    for arm in found.arms:
        cells = []
        for task in tasks:
            cell = found.cell(arm.arm, task)
            cells.append("" if cell is None else f"{100 * cell.success.value:.0f}")
            if cell and cell.difference:
                d = cell.difference
                sign = "" if d.low <= 0 <= d.high else " **+**" if d.low > 0 else " **−**"
                cells[-1] += f" ({signed(d.value)}){sign}"
        mean, seeds = arm.success, sorted({c.runs for c in found.cells if c.arm == arm.arm})
        shown = "" if mean is None or arm.tasks < len(tasks) else f"{100 * mean.success.value:.0f}"
        if shown and mean and mean.difference:
            shown += f" ({points(mean.difference)})"
        rows.append((arm.arm, *cells, shown, ends(seeds), f"{max(arm.trained):,}"))
    n = sorted({cell.n for cell in found.cells})
    runs = {cell.runs for cell in found.cells if cell.arm != "base"}
    note = (
        "Success in percent (difference to base in points; **+** or **−**: its 95 % interval excludes zero), "
        f"n = {ends(n)} rollouts of each training seed; in the mean, the interval. {_UNLIKE if len(runs) > 1 else ''}"
        "An empty cell was not run; a mean needs all tasks."
    )
    return Table("Success", ("arm", *tasks, "mean", "seeds", "trained parameters"), tuple(rows), note)


def _shown(table: Table) -> str:
    return markdown_table(table) if table.rows else NOT_RUN


def _trials(compared: Comparison, left: Sequence[str]) -> str:
    """Means of the arms that were tried under everything, and the names of those that are left out."""
    suites = compared.suites
    if not suites:
        return NOT_RUN
    rows = [
        (
            arm.arm,
            ends(sorted({c.runs for c in _beyond(compared, arm.arm)})),
            *(rate_and_points(arm.suites.get(suite)) for suite in suites),
            _drop(arm.trials.get("visual")),
        )
        for arm in compared.arms
        if arm.arm not in left
    ]
    note = (
        "Mean over the tasks adapted to; difference to the base under the same suite. On pretraining tasks "
        "(`forgetting`) a negative difference is what was forgotten. Drop: visual suites minus in-domain, of the same "
        f"trainings. n = {ends(sorted({c.n for c in _beyond(compared)}))} rollouts of each task, suite and seed."
    )
    if left:
        note += f" Not tried under all of it yet: {', '.join(left)}."
    return markdown_table(Table("Trials", ("arm", "seeds", *suites, "visual drop"), tuple(rows), note))


def _beyond(compared: Comparison, arm: str | None = None) -> list[Cell]:
    """Cells beyond the task and conditions that were trained."""
    return [c for c in compared.cells if c.suite != IN_DOMAIN and arm in (None, c.arm)]


def _drop(mean: object) -> str:
    drop = getattr(mean, "drop", None)
    return points(drop) if drop else ""


def cost_table(compared: Comparison) -> Table:
    lora = next((np.mean(a.trained) for a in compared.arms if a.arm == "lora"), None)
    rows = [
        (
            arm.arm,
            f"{max(arm.trained):,}",
            f"{lora / np.mean(arm.trained):.2f}" if lora else "",
            _range_of(arm.train_seconds),
            _range_of(arm.train_processor),
            f"{arm.peak_memory_mb:,.0f}" if arm.peak_memory_mb else "",
        )
        for arm in compared.arms
        if max(arm.trained)
    ]
    note = (
        "Seconds: fastest and slowest training, on one thread of a shared machine; those of the processor, where they "
        "were counted, do not contain the waiting for others, but others slow the processor, too. Memory: the largest "
        "process."
    )
    header = (
        "arm",
        "trained parameters",
        "lora's / its",
        "training seconds",
        "processor seconds",
        "peak memory, MB",
    )
    return Table("Cost", header, tuple(rows), note)


def _range_of(seconds: tuple[float, float] | None) -> str:
    return ends([round(s) for s in seconds]) if seconds else ""


def _ablation(study: Study, entries: Sequence[Entry]) -> str:
    found = like_with_like(study, entries)
    if not any(arm != "base" for arm in found.arms):
        return f"## {study.question}\n\nStudy `{study.name}`: not run yet."
    return f"## {study.question}\n\n{markdown_table(ablation_table(found, entries))}"
