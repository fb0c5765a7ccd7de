"""The paper's claims, one by one, and what our numbers say of each: verdicts are rules on intervals.

A claim that something is *better* holds if the interval of the paired difference lies above zero, and its opposite if
it lies below. A claim that something is *as good* holds if the interval excludes a loss as large as `MARGIN`, and both
were trained from several seeds, for the luck of one training is in no interval. A claim about counts (trainable
parameters) holds if the count says so. That two tasks share no more heads than chance is not shown by a number of
shared heads that chance often gives, only by fewer. What was not run has no verdict.

A claim of the paper can mean several comparisons (which LoRA, under which suite): these share what `says` has before
its colon, and are counted as one claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from interp.errors import UsageError
from interp.factors.profile import Profile
from steering.reproduce import published
from steering.reproduce.contrast import Contrast, contrast
from steering.reproduce.maps import read_map, read_profile
from steering.reproduce.overlap import chance_of_mean, expert_heads, head_sets, shared_pairs
from steering.reproduce.plan import (
    BOTH,
    BOTH_RANDOM,
    FEW,
    HEADS,
    LORA_EVERYWHERE,
    MAIN,
    REACHING_VLM,
    VLM,
    Arm,
)
from steering.reproduce.timing import mean_over_seeds, time_ratios
from steering.results import Entry
from steering.stats import Interval

REPRODUCES = "reproduces"
NOT_SHOWN = "not shown: the interval includes zero"
NOT_EXCLUDED = "not shown: an effect that matters is not excluded"
OPPOSITE = "the opposite"
ONE_DRAW = "not shown: one draw of random heads"
ONE_TRAINING = "not shown: one training of each"
FEW_LED = "not shown: less than half of the heads"
NO_DATA = "not run yet"
Kind = Literal["better", "as good"]
MAIN_NAMES = tuple(arm.name for arm in (*MAIN, *REACHING_VLM))
BESIDES_LORA = (
    ("aligned", "lora"),
    (BOTH.name, "lora"),
    ("paper", "lora"),
    (BOTH.name, LORA_EVERYWHERE.name),
    (VLM.name, LORA_EVERYWHERE.name),
    ("paper", LORA_EVERYWHERE.name),
)
"""Chosen heads and the LoRA that they are compared with: LeRobot's, and one of every part, as the paper's is."""
SAME_REACH = (("aligned", "lora"), (BOTH.name, LORA_EVERYWHERE.name), ("paper", LORA_EVERYWHERE.name))
"""Each with the LoRA that reaches the towers that it trains."""
FARTHER = {
    (BOTH.name, "lora"): "chosen heads of both towers",
    (BOTH_RANDOM.name, "lora"): "random heads of both towers",
    ("paper", "lora"): "what the published code trains",
}
"""What reaches the vlm, beside a LoRA that does not. Reach alone may win there: so random heads are there, too."""
NOT_CLAIMED = "not claimed"
CAUSAL = ("ablation", "patching", "atp")
TIMED = 3
"""Seeds that a verdict on the time of training needs."""
FEW_TIMED = f"not shown: fewer than {TIMED} seeds were timed"


@dataclass(frozen=True)
class Claim:
    """One row: what is claimed, what was compared, the effect, and the verdict. `paper` is the paper's own effect."""

    about: str
    says: str
    compared: str
    verdict: str
    effect: Interval | None = None
    unit: Literal["points", "times", "saved", "heads", "halves", "share"] = "points"
    n: str = ""
    paper: str = ""
    lucky: bool = False
    """Whether it rests on one training of each, be it on one task: their luck is in no interval."""

    @property
    def claim(self) -> str:
        """What of the paper this is one comparison for."""
        return self.says.split(":")[0]

    @property
    def theirs(self) -> bool:
        """Whether the paper claims it."""
        return self.paper != NOT_CLAIMED


def verdict(difference: Interval, kind: Kind = "better", margin: float = published.MARGIN) -> str:
    if kind == "as good":
        if difference.high < 0 and difference.low <= -margin:
            return OPPOSITE
        return REPRODUCES if difference.low > -margin else NOT_EXCLUDED
    if difference.low > 0:
        return REPRODUCES
    return OPPOSITE if difference.high < 0 else NOT_SHOWN


def claims(entries: Sequence[Entry], results: Path) -> list[Claim]:
    """All claims, in the paper's order; those without data say so."""
    return [
        *_success(entries),
        *_robustness(entries),
        *_cost(entries),
        *_choice(entries, results),
        _roles(entries, results),
    ]


def _success(entries: Sequence[Entry]) -> list[Claim]:
    """The paper's arms have one reach; what another reach does is no claim of theirs."""
    paper = " and ".join(f"{100 * published.advantage(p):+.3g} ({p})" for p in published.SUCCESS)
    alike = [
        replace(
            _claim(
                "success",
                "finetuning the chosen heads beats LoRA",
                contrast(entries, arm, lora),
                arm,
                lora,
            ),
            paper=paper,
        )
        for arm, lora in BESIDES_LORA
        if (arm, lora) not in FARTHER
    ]
    farther = [claim for pair, what in FARTHER.items() for claim in _farther(entries, *pair, what)]
    return [*alike, *farther]


def _farther(entries: Sequence[Entry], arm: str, lora: str, what: str) -> list[Claim]:
    """On all tasks, and without the one that decides most."""
    says = f"reaching the vlm beats LoRA of the expert: {what}"
    made = contrast(entries, arm, lora)
    found = [_claim("success", says, made, arm, lora)]
    each = [c for t in (made.tasks if made else ()) if (c := contrast(entries, arm, lora, tasks=[t]))]
    if len(each) > 1:
        (most,) = max(each, key=lambda c: c.difference.value).tasks
        rest = contrast(entries, arm, lora, tasks=[c.tasks[0] for c in each if c.tasks != (most,)])
        without = _claim("success", f"{says}, without {most}", rest, arm, lora)
        found.append(replace(without, compared=f"{arm} - {lora}, without {most}"))
    return [replace(claim, paper=NOT_CLAIMED) for claim in found]


def _robustness(entries: Sequence[Entry]) -> list[Claim]:
    """Under all that the paper varies, together, and under each."""
    claim, words = "it is more robust than LoRA", {"unseen:pick-mug": "on a task that was not trained"}
    effects = {suite: theirs - lora for suite, (lora, theirs) in published.VARIED.items()}
    places: list[tuple[str | tuple[str, ...], str, str, float]] = [
        (
            tuple(effects),
            f"under all {len(effects)}",
            f"all {len(effects)}",
            float(np.mean([*effects.values()])),
        ),
        *((suite, words.get(suite, f"under {suite}"), suite, effect) for suite, effect in effects.items()),
    ]
    found = []
    for where, said, short, effect in places:
        for arm, other in SAME_REACH:
            made = contrast(entries, arm, other, where) if ran_all(entries, arm, other, where) else None
            found.append(
                replace(
                    _claim("robustness", f"{claim}: {said}", made, arm, other),
                    compared=f"{arm} - {other}, {short}",
                    paper=f"{effect:+.3g}",
                )
            )
    return found


def ran_all(entries: Sequence[Entry], arm: str, other: str, where: str | tuple[str, ...]) -> bool:
    """Whether both arms were tried under each of several suites: a mean over some of them is not that over all."""
    tried = {(e.arm, e.result.suite) for e in entries}
    return isinstance(where, str) or all((a, suite) in tried for a in (arm, other) for suite in where)


def _cost(entries: Sequence[Entry]) -> list[Claim]:
    return [
        *(_fewer_parameters(entries, arm, lora) for arm, lora in BESIDES_LORA),
        *(_faster(entries, arm, lora) for arm, lora in SAME_REACH),
    ]


def _fewer_parameters(entries: Sequence[Entry], arm: str, lora: str) -> Claim:
    more, fewer = published.TRAINABLE_MILLIONS
    claim = Claim(
        "cost",
        "it trains fewer parameters than LoRA",
        f"{lora} / {arm}",
        NO_DATA,
        unit="times",
        paper=f"{more / fewer:.3g} times",
    )
    of_lora, ours = (
        [sum(e.result.trainable_parameters.values()) for e in entries if e.arm == name]
        for name in (lora, arm)
    )
    if not of_lora or not ours:
        return claim
    ratio = float(np.mean(of_lora) / np.mean(ours))
    said = REPRODUCES if ratio > 1 else OPPOSITE
    return replace(claim, verdict=said, effect=Interval(ratio, ratio, ratio), n="counted")


def _faster(entries: Sequence[Entry], arm: str, lora: str) -> Claim:
    fast, faster = published.time_ratio()
    claim = Claim(
        "cost",
        "it trains faster than LoRA",
        f"processor seconds saved by {arm}, of {lora}'s",
        NO_DATA,
        unit="saved",
        paper=f"{1 - 1 / fast:.0%} to {1 - 1 / faster:.0%} saved",
    )
    ratios = time_ratios(entries, lora, arm)
    if not ratios:
        return claim
    n = f"{sum(map(len, ratios.values()))} trainings of each, {len(ratios)} seed{'s' * (len(ratios) > 1)}"
    if len(ratios) < TIMED:
        return replace(claim, verdict=FEW_TIMED, n=n)
    mean = mean_over_seeds(ratios)
    saved = Interval(*(1 - 1 / x for x in (mean.value, mean.low, mean.high)))
    return replace(claim, verdict=verdict(saved), effect=saved, n=n)


def _choice(entries: Sequence[Entry], results: Path) -> list[Claim]:
    found = [
        _claim(
            "which heads",
            "the heads are the task's: heads chosen on the other tasks do worse",
            contrast(entries, "aligned", "generic-k"),
            "aligned",
            "generic-k",
        ),
        *_specific(entries, results),
    ]
    few = Arm("aligned", heads=FEW)
    for control, what in (("random-k", "random ones"), ("bottom-k", "the worst ranked")):
        says = f"which heads are trained matters: chosen ones beat {what}"
        for heads in (HEADS, FEW):
            ours, theirs = (Arm(recipe, heads=heads).name for recipe in ("aligned", control))
            found.append(_claim("which heads", says, contrast(entries, ours, theirs), ours, theirs))
    for by in CAUSAL:
        other = replace(few, by=by)
        says = f"choosing by k-NN is as good: as by {'causal mediation' if by == 'ablation' else by}"
        found.append(
            _claim(
                "which heads",
                says,
                contrast(entries, few.name, other.name),
                few.name,
                other.name,
                "as good",
            )
        )
    return found


def _claim(
    about: str, says: str, made: Contrast | None, arm: str, other: str, kind: Kind = "better"
) -> Claim:
    compared = f"{arm} - {other}"
    if made is None:
        return Claim(about, says, compared, NO_DATA)
    said = verdict(made.difference, kind)
    if kind == "as good" and said == REPRODUCES and not made.excludes(published.MARGIN):
        said = NOT_EXCLUDED if made.several else ONE_TRAINING
    if made.one_draw:
        said = ONE_DRAW
    return Claim(about, says, compared, said, made.difference, "points", made.size, lucky=not made.several)


# ---- heads


def _specific(entries: Sequence[Entry], results: Path) -> list[Claim]:
    """Overlap of the tasks' sets against chance, and against that of two halves of one task's demonstrations."""
    claim = Claim(
        "which heads",
        "the heads are the task's: two tasks share no more of them than chance",
        "shared heads of two tasks, against chance",
        NO_DATA,
        unit="heads",
    )
    halves = replace(
        claim,
        says="the heads are the task's: two tasks share fewer of them than two halves of one task's demonstrations",
        compared="shared heads of two tasks, against two halves",
        unit="halves",
    )
    sets, heads = head_sets(entries), expert_heads(entries)
    if len(sets) < 2 or heads is None:
        return [claim, halves]
    mean = float(np.mean(shared_pairs(list(sets.values()))))
    n = f"{len(sets)} sets of {max(map(len, sets.values()))} of {heads} heads"
    by_chance = chance_of_mean([len(s) for s in sets.values()], heads)
    claim = replace(
        claim,
        verdict=OPPOSITE if mean > by_chance.high else REPRODUCES if mean < by_chance.low else NOT_EXCLUDED,
        effect=Interval(mean, by_chance.low, by_chance.high),
        n=n,
        paper="published sets: notebooks/1_heads_and_tasks.ipynb",
    )
    own = [shared for task in sets if (shared := _shared_by_halves(results, task)) is not None]
    if len(own) == len(sets):
        said = REPRODUCES if mean < min(own) else OPPOSITE if mean > max(own) else NOT_EXCLUDED
        halves = replace(halves, verdict=said, effect=Interval(mean, min(own), max(own)), n=n)
    return [claim, halves]


def _shared_by_halves(results: Path, task: str) -> float | None:
    """Heads that k-NN chooses from both halves of a task's demonstrations, a mean over splits."""
    try:
        often = read_map(results, task, "stability-expert")
    except UsageError:
        return None
    return float(often.settings["agreement"]["expert"]["shared"]["mean"])


def _roles(entries: Iterable[Entry], results: Path) -> Claim:
    """Whether most heads have a role, on every task.

    How many would by chance, the records cannot say: heads are measured on the same pairs, and what is kept is every
    head's interval, not what heads share.
    """
    claim = Claim(
        "factors",
        "heads have visual, linguistic and physical roles: one factor leads, beyond its interval",
        "heads with a role, of all live heads",
        NO_DATA,
        unit="share",
    )
    shares, heads = [], 0
    for task in dict.fromkeys(e.result.task for e in entries):
        try:
            found = read_profile(results, task)
        except UsageError:
            continue
        shares.append(float(np.mean(roles(found) >= 0)))
        heads = len(found.heads)
    if not shares:
        return claim
    return replace(
        claim,
        verdict=REPRODUCES if min(shares) >= 0.5 else FEW_LED,
        effect=Interval(float(np.mean(shares)), min(shares), max(shares)),
        n=f"{heads} heads, {len(shares)} tasks",
    )


def roles(found: Profile) -> np.ndarray:
    """The factor that leads each head: its place, or -1 where no factor's interval lies above all others'."""
    assert found.low is not None
    assert found.high is not None
    places = np.full(len(found.heads), -1)
    for f in range(len(found.factors)):
        others = np.delete(found.high, f, axis=1).max(axis=1)
        places[found.low[:, f] > others] = f
    return places
