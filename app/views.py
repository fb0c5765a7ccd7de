"""What of a run's scores is on the screen: a view is one method, with one layer x head map a panel.

A method whose scores were computed by factor (visual, linguistic, physical) has a panel a factor, for one tower at a
time; a method without factors has a panel a tower. Everything here is derived from `HeadScores` and pure: the table,
the maps, the colour bar and the reading are all made from the same view, so they cannot disagree.

Axis names: layer, head, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.heads import Head
from interp.scores import HeadScores, Null, TowerScores

ALL_TOWERS = "all"
FACTORS = ("visual", "linguistic", "physical")  # likewise
METHODS = (
    "knn",
    "ablation",
    "patching",
    "attribution",
)  # the order in which methods are offered; others follow


@dataclass(frozen=True)
class Panel:
    """One map: the scores of one tower, by one method, for one factor or none."""

    tower: str
    scores: HeadScores
    file: str  # name of the score file

    @property
    def key(self) -> str:
        return self.scores.factor or self.tower

    @property
    def title(self) -> str:
        return self.scores.factor or self.tower

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
    def rank(self) -> Int[np.ndarray, "layer head"]:
        """1 is best, whatever the sign of the score; 0 where there is no score."""
        rank = np.zeros(self.value.shape, dtype=int)
        for place, head in enumerate(self.scores.ranked(self.tower), start=1):
            rank[head.layer, head.index] = place
        return rank

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
        """The best head and every head whose interval overlaps with the best one's, best first."""
        ranked = self.scores.ranked(self.tower)
        low, high = self.grid.low, self.grid.high
        if not ranked or low is None or high is None:
            return ranked[:1]
        best = ranked[0].layer, ranked[0].index
        if self.scores.higher_is_better:
            return [h for h in ranked if high[h.layer, h.index] >= low[best]]
        return [h for h in ranked if low[h.layer, h.index] <= high[best]]


@dataclass(frozen=True)
class View:
    """A method's maps that share one screen and one scale; `towers` are the choices, `tower` the one made."""

    panels: tuple[Panel, ...]
    towers: tuple[str, ...]
    tower: str

    def __post_init__(self) -> None:
        if not self.panels:
            raise ValueError("a view needs at least one panel")

    @property
    def scores(self) -> HeadScores:
        """Of the first panel: all panels share method, label, units, direction."""
        return self.panels[0].scores

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(p.scores.factor for p in self.panels if p.scores.factor is not None)

    @property
    def direction(self) -> str:
        return "higher is better" if self.scores.higher_is_better else "lower is better"

    @cached_property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score on the screen: the one scale of all maps."""
        finite = np.concatenate([p.value[np.isfinite(p.value)] for p in self.panels])
        if not finite.size:
            return 0.0, 1.0
        low, high = float(finite.min()), float(finite.max())
        if low < high:
            return low, high
        room = abs(low) * 0.05 or 1.0  # all equal: a scale still needs two ends
        return low - room, high + room

    def lead(self, factor: str | None) -> Panel:
        """The panel whose score, interval and rank the table leads with."""
        return next((p for p in self.panels if p.scores.factor == factor), self.panels[0])


def methods(scores: Mapping[str, HeadScores]) -> dict[str, dict[str, HeadScores]]:
    """Score files by the method under which they are offered: files of one method's factors belong together."""
    groups: dict[str, dict[str, HeadScores]] = {}
    place = {method: i for i, method in enumerate(METHODS)}
    for file, one in sorted(
        scores.items(), key=lambda item: (place.get(item[1].method, len(place)), item[0])
    ):
        key = file
        if one.factor is not None:
            key = one.method if one.method not in scores else f"{one.method}-factors"
        groups.setdefault(key, {})[file] = one
    return groups


def view(group: Mapping[str, HeadScores], tower: str | None = None) -> View:
    """The maps to show. A tower that was not scored is not a wish: all towers then, or the last one for factors."""
    known = tuple(dict.fromkeys(name for one in group.values() for name in one.towers))
    by_factor = any(one.factor is not None for one in group.values())
    choices = known if by_factor or len(known) == 1 else (ALL_TOWERS, *known)
    chosen = tower if tower in choices else (known[-1] if by_factor else choices[0])
    shown = known if chosen == ALL_TOWERS else (chosen,)
    ordered = sorted(group.items(), key=lambda item: _factor_place(item[1].factor))
    panels = [Panel(name, one, file) for file, one in ordered for name in shown if name in one.towers]
    return View(tuple(panels), choices, chosen)


def rows(view: View, factor: str | None = None) -> list[dict[str, Any]]:
    """One row a head that has a score, best first: the table, and what is exported."""
    lead = view.lead(factor)
    panels = [lead] if view.factors else list(view.panels)
    out = []
    for panel in panels:
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
                "rank": int(panel.rank[layer, head]),
            }
            for other in view.panels if view.factors else ():
                row[f"score_{other.key}"] = number(other.value[layer, head])
            out.append(row)
    sign = -1 if view.scores.higher_is_better else 1
    return sorted(out, key=lambda row: (sign * row["score"], row["tower"], row["layer"], row["head"]))


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
