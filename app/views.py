"""What of a run's scores is on the screen: a view is a few layer x head maps that are looked at together.

What the maps of a view differ in is `by`:

- "factor": one method whose scores were computed by factor (visual, linguistic, physical), for one tower at a time;
- "tower": one method without factors, a map a tower;
- "method": every method without factors, for one tower at a time, compared by rank as their units differ.

Everything here is derived from `HeadScores` and pure: the table, the maps, the colour bar and the reading are all made
from the same view, so they cannot disagree. Axis names: layer, head, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from interp.heads import Head
from interp.scores import HeadScores, Null, TowerScores

ALL_TOWERS = "all"
ALL_METHODS = "methods"
FACTORS = ("visual", "linguistic", "physical")
# the order in which methods are offered; others follow
METHODS = ("patching", "ablation", "knn", "atp", "attribution", "ig", "direct")
STABILITY = "-stability"  # a method's frequency in the top k over resampled demonstrations: value in 0..1

RANK = "rank within the tower, 1 is best; heads with the same score share the mean of their ranks"

Scale = Literal["shared", "panel", "rank"]
By = Literal["factor", "tower", "method"]
SCALES: dict[Scale, str] = {"shared": "one scale", "panel": "own scales", "rank": "ranks"}


@dataclass(frozen=True)
class Panel:
    """One map: the scores of one tower, by one method, for one factor or none. `key` names it within its view."""

    tower: str
    scores: HeadScores
    file: str  # name of the score file
    key: str

    @property
    def grid(self) -> TowerScores:
        return self.scores.tower(self.tower)

    @property
    def value(self) -> Float[np.ndarray, "layer head"]:
        return self.grid.value

    @property
    def null(self) -> Null | None:
        return self.grid.null

    @cached_property
    def rank(self) -> Float[np.ndarray, "layer head"]:
        return ranks(self.scores, self.tower)

    @property
    def scored(self) -> int:
        return int(np.isfinite(self.value).sum())

    @cached_property
    def beats_chance(self) -> Bool[np.ndarray, "layer head"] | None:
        """Heads whose whole interval lies beyond the central 95 % of what chance gives; None if that is unknown."""
        if self.null is None or self.grid.low is None or self.grid.high is None:
            return None
        with np.errstate(invalid="ignore"):
            if self.scores.higher_is_better:
                return self.grid.low > self.null.high
            return self.grid.high < self.null.low

    @cached_property
    def leaders(self) -> list[Head]:
        """The best head and every head whose interval overlaps with the best one's, or without intervals every head
        with the same score; best first."""
        ranked = self.scores.ranked(self.tower)
        low, high = self.grid.low, self.grid.high
        if not ranked or low is None or high is None:
            return [h for h in ranked if self.scores.score(h) == self.scores.score(ranked[0])]
        best = ranked[0].layer, ranked[0].index
        if self.scores.higher_is_better:
            return [h for h in ranked if high[h.layer, h.index] >= low[best]]
        return [h for h in ranked if low[h.layer, h.index] <= high[best]]


@dataclass(frozen=True)
class View:
    """Maps that share one screen; `towers` are the choices, `tower` the one made."""

    panels: tuple[Panel, ...]
    by: By
    towers: tuple[str, ...]
    tower: str
    scale: Scale

    def __post_init__(self) -> None:
        if not self.panels:
            raise ValueError("a view needs at least one panel")

    @property
    def scores(self) -> HeadScores:
        """Of the first panel. Unless the panels are methods they share method, label, units and direction."""
        return self.panels[0].scores

    @property
    def keys(self) -> tuple[str, ...]:
        """What the table can be led by: factors or methods."""
        return () if self.by == "tower" else tuple(panel.key for panel in self.panels)

    @property
    def scored(self) -> list[Panel]:
        """The panels that say something: a prompt-blind policy has no score for the linguistic factor."""
        return [panel for panel in self.panels if panel.scored]

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Scales that make sense: values of different methods have none in common."""
        return ("panel", "rank") if self.by == "method" else ("shared", "panel", "rank")

    @property
    def direction(self) -> str:
        return direction(self.scores)

    def colours(self, panel: Panel) -> Float[np.ndarray, "layer head"]:
        """What is coloured: the values, or the ranks."""
        if self.scale == "rank":
            return np.where(panel.rank > 0, panel.rank, np.nan).astype(float)
        return panel.value

    def better_up(self, panel: Panel) -> bool:
        """Whether the greater of two coloured numbers is the better one."""
        return self.scale != "rank" and panel.scores.higher_is_better

    def range(self, panel: Panel) -> tuple[float, float]:
        """Both ends of the colour scale of a map: the same for all unless each has its own."""
        shown = [panel] if self.scale == "panel" else list(self.panels)
        finite = np.concatenate([grid[np.isfinite(grid)] for grid in map(self.colours, shown)])
        if not finite.size:
            return 0.0, 1.0
        low, high = float(finite.min()), float(finite.max())
        if low < high:
            return low, high
        room = abs(low) * 0.05 or 1.0  # all equal: a scale still needs two ends
        return low - room, high + room

    def lead(self, key: str | None) -> Panel:
        """The panel whose score, interval and rank the table leads with: the one asked for, else the first that has
        a score."""
        asked = (panel for panel in self.panels if panel.key == key)
        return next(asked, next(iter(self.scored), self.panels[0]))

    def led(self, key: str | None) -> list[Panel]:
        """The panels whose heads the table and the ranked scores show."""
        return list(self.panels) if self.by == "tower" else [self.lead(key)]


def ranks(scores: HeadScores, tower: str) -> Float[np.ndarray, "layer head"]:
    """Those of `HeadScores.ranks`, 0 where there is no score."""
    return np.nan_to_num(scores.ranks(tower))


def direction(scores: HeadScores) -> str:
    return "higher is better" if scores.higher_is_better else "lower is better"


def methods(scores: Mapping[str, HeadScores]) -> dict[str, dict[str, HeadScores]]:
    """Score files by what is offered under "Method". Files of one method's factors belong together and come first:
    they answer which heads matter for what. Several methods without factors can be seen side by side (ALL_METHODS)."""
    groups: dict[str, dict[str, HeadScores]] = {}
    for file, one in ordered(scores).items():
        key = file
        if one.factor is not None:
            key = one.method if one.method not in scores else f"{one.method}-factors"
        groups.setdefault(key, {})[file] = one
    plain = {file: one for file, one in scores.items() if one.factor is None and not is_stability(one)}
    if len(plain) < 2:
        return groups
    by_factor = {key: group for key, group in groups.items() if any(one.factor for one in group.values())}
    side_by_side = {file: group[file] for group in groups.values() for file in group if file in plain}
    return {**by_factor, ALL_METHODS: side_by_side, **groups}


def ordered(scores: Mapping[str, HeadScores]) -> dict[str, HeadScores]:
    """Score files in the usual order of methods: factors first, stability last."""
    return dict(sorted(scores.items(), key=lambda item: _method_place(item[0], item[1])))


def is_stability(scores: HeadScores) -> bool:
    return scores.method.endswith(STABILITY)


def label_of(key: str, group: Mapping[str, HeadScores]) -> str:
    """How a group of score files is called on the screen."""
    if key == ALL_METHODS:
        return f"All {len(group)} methods, side by side"
    first = next(iter(group.values()))
    factors = [one.factor for one in group.values() if one.factor]
    return f"{first.label}, by factor" if factors else first.label


def named(one: HeadScores) -> str:
    """What a score file says, in a few words."""
    return one.label + (f": {one.factor}" if one.factor and one.factor not in one.label else "")


def file_options(scores: Mapping[str, HeadScores]) -> list[dict[str, str]]:
    """Every score file as an option of a select, named by what it says."""
    labels = {file: named(one) for file, one in ordered(scores).items()}
    said = list(labels.values())
    return [
        {"value": file, "label": f"{label} ({file})" if said.count(label) > 1 else label}
        for file, label in labels.items()
    ]


def file_shown(scores: Mapping[str, HeadScores], wishes: Mapping[str, str]) -> str | None:
    """The score file that leads the overview under these wishes; None if there are no scores."""
    groups = methods(scores)
    if not groups:
        return None
    key = wishes.get("method", "")
    group = groups[key if key in groups else next(iter(groups))]
    return view(group, wishes.get("tower")).lead(wishes.get("factor")).file


def view(group: Mapping[str, HeadScores], tower: str | None = None, scale: str | None = None) -> View:
    """The maps to show. A tower that was not scored is not a wish: all towers then, or the last one of several maps.
    The same holds for a scale."""
    known = tuple(dict.fromkeys(name for one in group.values() for name in one.towers))
    if any(one.factor is not None for one in group.values()):
        by: By = "factor"
    else:
        by = "method" if len(group) > 1 else "tower"
    choices = known if by != "tower" or len(known) == 1 else (ALL_TOWERS, *known)
    chosen = tower if tower in choices else (choices[0] if by == "tower" else known[-1])
    shown = known if chosen == ALL_TOWERS else (chosen,)
    files = list(group.items())
    if by == "factor":
        files.sort(key=lambda item: _factor_place(item[1].factor))
    panels = []
    for file, one in files:
        for name in shown:
            if name in one.towers:
                key = name if by == "tower" else file if by == "method" else one.factor or file
                panels.append(Panel(name, one, file, key))
    if len({panel.key for panel in panels}) < len(panels):  # two kinds of one factor: named by their files
        panels = [replace(panel, key=panel.file) for panel in panels]
    made = View(tuple(panels), by, choices, chosen, "shared")
    fitting = next((known for known in made.scales if known == scale), None)
    return replace(made, scale=fitting or ("rank" if by == "method" else made.scales[0]))


def rows(view: View, key: str | None = None) -> list[dict[str, Any]]:
    """One row a head that has a score, best first: the table, and what is exported."""
    out = []
    for panel in view.led(key):
        low, high = panel.grid.low, panel.grid.high
        for layer, head in zip(*np.nonzero(panel.rank), strict=True):
            row: dict[str, Any] = {
                "id": str(Head(panel.tower, int(layer), int(head))),
                "tower": panel.tower,
                "layer": int(layer),
                "head": int(head),
                "score": number(panel.value[layer, head]),
                "low": number(low[layer, head]) if low is not None else None,
                "high": number(high[layer, head]) if high is not None else None,
                "rank": float(panel.rank[layer, head]),
            }
            for other in view.panels if view.keys else ():
                row[f"score_{other.key}"] = cell(other.value, layer, head)
            out.append(row)
    sign = -1 if view.lead(key).scores.higher_is_better else 1
    return sorted(out, key=lambda row: (sign * row["score"], row["tower"], row["layer"], row["head"]))


def span(towers: Iterable[TowerScores], intervals: bool = True) -> tuple[float, float]:
    """Least and greatest of all their scores and, if wanted, ends of intervals; (0, 1) without scores."""
    grids = [grid for t in towers for grid in ((t.value, t.low, t.high) if intervals else (t.value,))]
    finite = np.concatenate([np.zeros(0), *(grid[np.isfinite(grid)] for grid in grids if grid is not None)])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def cell(grid: Float[np.ndarray, "layer head"] | None, layer: int, head: int) -> float | None:
    """A number of a grid that may be missing, or smaller than another method's."""
    if grid is None or layer >= grid.shape[0] or head >= grid.shape[1]:
        return None
    return number(float(grid[layer, head]))


def number(value: float) -> float | None:
    """Six significant digits: more than any score is known to, and short in the browser."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def short(value: float) -> str:
    """A measured number as a person would write it: three significant digits."""
    if 1e3 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, about: int = 7) -> list[float]:
    """Round numbers inside [low, high], for the colour bar."""
    step = 10.0 ** np.floor(np.log10((high - low) / about))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= about:
            step *= factor
            break
    first = np.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def _factor_place(factor: str | None) -> tuple[int, str]:
    """Factors in their usual order, each followed by its own kinds (visual, visual/light, ...)."""
    name = factor or ""
    return next((i for i, known in enumerate(FACTORS) if name.startswith(known)), len(FACTORS)), name


def _method_place(file: str, scores: HeadScores) -> tuple[bool, bool, int, int, str]:
    """Factors first, stability last; then the usual order of methods."""
    order = METHODS if scores.factor else ("knn", *METHODS)
    parts = scores.method.split("-")  # patching-denoising, mean-ablation
    place = next((i for i, method in enumerate(order) if method in parts), len(order))
    return is_stability(scores), scores.factor is None, place, _factor_place(scores.factor)[0], file
