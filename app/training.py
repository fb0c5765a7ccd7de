"""Finetuning in words and figures: from the form to a request, what it would train, and how a job is doing. Pure.

Recipes and their settings are those of steering.recipe, read when the page is drawn: a recipe that is added there is
offered here, with the first line that its function says of itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import theme
from app.counting import head_set
from app.jobs import Point, Request, command, free_name, remaining, thinned
from app.maps import Figure
from interp.errors import UsageError
from interp.runs import Run
from interp.scores import HeadScores
from steering.headset import HeadSet
from steering.recipe import NAMES, Recipe

ABOUT = {
    "aligned": "query rows and output columns of the chosen heads, in the tower in which they were scored",
    "paper": "as published: the same heads of the vlm, LoRA of its FFNs, action projections",
    "random-k": "control: as many random heads. Does the choice matter?",
    "bottom-k": "control: as many of the worst-scored heads. Is the score upside down?",
    "generic-k": "control: as many heads that score well on other tasks. Does the choice need this task?",
    "all-heads": "control: every live head of these towers, no choice",
    "ffn-only": "control: the FFN LoRA of the published recipe, without heads",
    "lora": "baseline: LoRA as LeRobot sets it up",
    "full": "baseline: every weight",
}
SCORED = ("bottom-k", "generic-k")
"""Recipes that draw on scores; the latter on those of other runs."""
FORMS = {"full": "whole slices", "low-rank": "low rank"}


@dataclass(frozen=True)
class Form:
    """The form as it is filled in; None where a field was left empty. `scores` names a score file for bottom-k."""

    recipe: str
    name: str = ""
    steps: int | None = None
    lr: float | None = None
    form: str | None = None
    seed: int | None = None
    scores: str | None = None
    others: tuple[str, ...] = ()
    """Runs of other tasks, for generic-k."""


def recipes() -> list[dict[str, str]]:
    """Names of the recipes, with what they are for."""
    return [{"value": name, "label": name} for name in NAMES]


def about(recipe: str) -> str:
    return ABOUT.get(recipe, "")


def settings(form: Form) -> Recipe:
    """The recipe that the form asks for; a UsageError says which number is no good."""
    asked = {"steps": form.steps, "lr": form.lr, "form": form.form}
    return Recipe.named(form.recipe, **{name: value for name, value in asked.items() if value is not None})


def request(run: Run, form: Form, chosen: Sequence[str], others: Mapping[str, Run]) -> Request:
    """What `robosteer finetune` is to be asked; settings that are the recipe's own are left out. `others`: the runs
    that generic-k can draw on; a UsageError names one that it cannot."""
    recipe, own = settings(form), Recipe.named(form.recipe)
    options: dict[str, tuple[str, ...]] = {}
    for name in ("steps", "lr", "form"):
        if getattr(recipe, name) != getattr(own, name):
            value = getattr(recipe, name)
            options[name] = (f"{value:g}" if name == "lr" else str(value),)
    if form.seed:
        if form.seed < 0:
            raise UsageError(f"seed {form.seed}: seeds start at 0")
        options["seed"] = (str(form.seed),)
    if form.recipe in SCORED and form.scores:
        options["method"] = (form.scores,)
    if form.recipe == "generic-k" and form.others:
        if useless := [name for name in form.others if name not in others]:
            raise UsageError(
                f"other run {', '.join(useless)}: generic-k needs runs of this policy on other demonstrations "
                f"({', '.join(others) or 'there is none here'}): take it out of “Other runs”"
            )
        options["others"] = tuple(str(others[name].path) for name in form.others)
    return Request(
        form.name.strip() or free_name(run, form.recipe), form.recipe, head_set(run, chosen), options
    )


def typed(run: Run, asked: Request, selection: str = "NAME") -> str:
    """The same as a line for a terminal, where the selection has to be saved first."""
    options = {**(asked.options or {}), **({"heads": (selection,)} if asked.heads else {})}
    return "robosteer " + shlex.join(command(run, asked, options))


def given_scores(
    run: Run, form: Form, others: Mapping[str, Run]
) -> tuple[HeadScores | None, list[HeadScores]]:
    """The scores that a recipe draws on: the run's own for bottom-k, those of other runs for generic-k."""
    own = run.read_scores(form.scores) if form.recipe == "bottom-k" and form.scores else None
    named = [others[name] for name in form.others] if form.recipe == "generic-k" else []
    return own, [other.read_scores(form.scores or "knn") for other in named]


def heads_in_words(heads: HeadSet | None) -> str:
    if heads is None:
        return "no heads selected"
    counts = [(sum(h.tower == tower for h in heads.heads), tower) for tower in heads.towers]
    return ", ".join(f"{n} {tower} head{'s' * (n != 1)}" for n, tower in counts)


def spell(seconds: float) -> str:
    """A span of time as one would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def so_far(points: Sequence[Point], step: int, total: int | None, active: bool) -> str:
    """`step 120 of 250 · loss 0.143 · 12 s, about 13 s left`."""
    if active and total is None:
        return "loading the policy; the first step comes when all frames have been computed once"
    parts = [f"step {step}" + (f" of {total}" if total else "")]
    if points:
        parts.append(f"loss {points[-1].loss:.3g}")
        left = remaining(points, total) if active else None
        parts.append(spell(points[-1].seconds) + (f", about {spell(left)} left" if left is not None else ""))
    return " · ".join(parts)


def curve(points: Sequence[Point], total: int | None, scheme: str) -> Figure:
    """Loss by step: what was measured, and its running mean, which a decision should follow."""
    shown, colours = thinned(points), theme.SCHEMES[scheme]
    steps, losses = [p.step for p in shown], [float(f"{p.loss:.5g}") for p in shown]
    mean = _running_mean(losses, max(1, len(losses) // 20))
    title = {"text": "flow-matching loss, normalised units", "standoff": 6}
    last = max(total or 0, steps[-1] if steps else 0, 1)
    line: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": steps}
    return {
        "data": [
            {
                **line,
                "name": "loss",
                "y": losses,
                "line": {"width": 1, "color": colours.arms[0] + "90"},
                "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
            },
            {
                **line,
                "name": "running mean",
                "y": mean,
                "line": {"width": 2.2, "color": colours.arms[1]},
                "hoverinfo": "skip",
            },
        ],
        "layout": {
            "template": theme.plotly_layout(scheme),
            "margin": {"l": 58, "r": 16, "t": 10, "b": 40},
            "showlegend": False,
            "dragmode": False,
            "uirevision": "curve",
            "xaxis": {
                "title": {"text": "step", "standoff": 4},
                "range": [0, last],
                "fixedrange": True,
                "zeroline": False,
            },
            "yaxis": {"title": title, "rangemode": "tozero", "fixedrange": True, "zeroline": False},
            "meta": {
                "title": "Loss of the finetuning",
                "name": "loss",
                "rows": [{"step": p.step, "seconds": p.seconds, "loss": p.loss} for p in shown],
                "paint": [
                    [["data", 0, "line", "color"], "arms.0/90"],
                    [["data", 1, "line", "color"], "arms.1"],
                ],
            },
        },
    }


def _running_mean(values: Sequence[float], over: int) -> list[float]:
    return [
        sum(run) / len(run) for at in range(len(values)) for run in [values[max(0, at - over + 1) : at + 1]]
    ]
