"""Figures of heads: layer x head maps and ranked scores, made from views; pure, and without a server.

A figure is Plotly's own JSON as plain dicts (tests validate them; validating on every request would cost 30 ms a map).
It comes with the template of the scheme that it is first shown in; the browser swaps template, colour scale and
colours when the scheme changes, without asking for a new figure.

The selection is not in the figure: the browser draws it on a layer above, in the figure's own coordinates
(assets/maps.js). Plotly redraws all of a figure for one outline, 1024 heads in a second; the layer takes a millisecond.
The layer fits because the axes' ranges and the margins are fixed here (`map_frame`, `ranked_frame`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from app import theme
from app.views import Panel, View, number, span

Figure = dict[str, Any]

# a contract with assets/maps.js (`TRACE` there): the order of a map's traces
TRACES = ("cells", "handle", "hatch", "dead")

TALLEST = 500  # pixels of the tallest map's cells
CELL = (11, 38)  # least and greatest height of a cell, pixels
MARGIN = {"l": 38, "r": 6, "t": 6, "b": 34}
RANKED_MARGIN = {"l": 58, "r": 14, "t": 26, "b": 40}
MANY = 300  # heads of which single points are no longer seen


@dataclass(frozen=True)
class Frame:
    """Where a figure's plot is: data coordinates of its left, top, right, bottom, and the pixels around it."""

    box: tuple[float, float, float, float]
    margin: Mapping[str, int]

    @property
    def inset(self) -> str:
        """The margins as CSS."""
        return " ".join(f"{self.margin[side]}px" for side in "trbl")


def cell_height(view: View) -> int:
    """One height for the cells of all maps of a view, so that they can be compared; pixels."""
    layers = max(panel.value.shape[0] for panel in view.panels)
    return min(max(TALLEST // layers, CELL[0]), CELL[1])


def map_height(panel: Panel, view: View) -> int:
    """Pixels of a map with its axes."""
    return panel.value.shape[0] * cell_height(view) + MARGIN["t"] + MARGIN["b"]


def head_map(panel: Panel, view: View, scheme: str) -> Figure:
    """Layer x head map of one panel on the view's scale. Layer 0 is on top, as the network is read."""
    layers, heads = panel.value.shape
    colours = theme.SCHEMES[scheme]
    low, high = view.range(panel)
    dead = [(layer, head) for layer, head in panel.grid.dead if layer < layers and head < heads]
    hatched = [_hatch(layer, head) for layer, head in dead]
    still: dict[str, Any] = {"type": "scatter", "hoverinfo": "skip", "showlegend": False}
    unseen: dict[str, Any] = {
        "mode": "markers",
        "marker": {"opacity": 0},
        "unselected": {"marker": {"opacity": 0}},
    }
    traces = {
        "cells": {
            "type": "heatmap",
            "z": [[number(x) for x in row] for row in view.colours(panel)],
            "customdata": _hover_data(panel),
            "hovertemplate": _hover(panel, view.by),
            "hoverongaps": False,
            "coloraxis": "coloraxis",
            "xgap": 1 if heads > 20 else 2,
            "ygap": 1 if layers > 20 else 2,
        },
        # a heatmap alone has no box and no lasso: one unseen point gives it both, the browser counts the cells
        "handle": {**still, **unseen, "x": [0], "y": [0]},
        "hatch": {
            **still,
            "mode": "lines",
            "x": list(chain.from_iterable(x for x, _ in hatched)),
            "y": list(chain.from_iterable(y for _, y in hatched)),
            "line": {"width": 1, "color": colours.hatch},
        },
        "dead": {
            **still,
            **unseen,
            "x": [head for _, head in dead],
            "y": [layer for layer, _ in dead],
            "hoverinfo": "all",
            "hovertemplate": f"<b>{panel.tower}.L%{{y}}H%{{x}}</b><br>dead: reaches no action<extra></extra>",
        },
    }
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "fixedrange": True}
    layout = {
        "template": theme.plotly_layout(scheme),
        "meta": {
            "title": panel.key,
            "paint": [
                [["layout", "coloraxis", "colorscale"], "worst_to_best"],
                [["data", TRACES.index("hatch"), "line", "color"], "hatch"],
            ],
        },
        "margin": MARGIN,
        "dragmode": "select",
        "clickmode": "event",
        "hovermode": "closest",
        "uirevision": "map",
        "coloraxis": {
            "cmin": low,
            "cmax": high,
            "colorscale": theme.ramp(scheme),
            "reversescale": not view.better_up(panel),
            "showscale": False,
        },
        "xaxis": {
            **axis,
            **_ticks(heads),
            "range": [-0.5, heads - 0.5],
            "title": {"text": "head", "standoff": 4},
        },
        "yaxis": {
            **axis,
            **_ticks(layers),
            "range": [layers - 0.5, -0.5],
            "title": {"text": "layer", "standoff": 4},
        },
    }
    return {"data": [traces[name] for name in TRACES], "layout": layout}


def map_frame(panel: Panel) -> Frame:
    layers, heads = panel.value.shape
    return Frame((-0.5, -0.5, heads - 0.5, layers - 0.5), MARGIN)


def ranked(panels: Sequence[Panel], scheme: str) -> Figure:
    """Score against rank with the interval as a band and chance as a line: where does the curve leave chance?

    Traces: band and points of each panel in turn; of many heads, a line in place of the points.
    """
    colours = theme.SCHEMES[scheme]
    data: list[dict[str, Any]] = []
    paint: list[list[Any]] = []
    for i, panel in enumerate(panels):
        heads = panel.scores.ranked(panel.tower)
        at = tuple(np.array([(h.layer, h.index) for h in heads], dtype=int).reshape(-1, 2).T)
        x, y = list(range(1, len(heads) + 1)), panel.value[at].tolist()
        arm = 1 + i % (len(colours.arms) - 1)
        colour = colours.arms[arm]
        paint += [
            [["data", 2 * i, "fillcolor"], f"arms.{arm}/29"],
            [["data", 2 * i + 1, "marker", "color"], f"arms.{arm}"],
            [["data", 2 * i + 1, "line", "color"], f"arms.{arm}"],
        ]
        band: list[float] = []
        if panel.grid.low is not None and panel.grid.high is not None:
            band = [*panel.grid.high[at].tolist(), *panel.grid.low[at].tolist()[::-1]]
        still = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        area = {"fill": "toself", "fillcolor": f"{colour}29", "line": {"width": 0}}  # 16 % opaque
        data.append({**still, **area, "x": [*x, *x[::-1]] if band else [], "y": band})
        data.append(
            {
                "type": "scatter",
                "name": panel.key,
                "x": x,
                "y": y,
                "customdata": [str(h) for h in heads],
                "text": [f"{rank:g}" for rank in panel.rank[at].tolist()],
                "mode": "markers" if len(x) <= MANY else "lines",
                "marker": {"size": 5, "color": colour},
                "line": {"width": 2.5, "color": colour},
                "unselected": {"marker": {"opacity": 1}},
                "hovertemplate": "<b>%{customdata}</b><br>%{y:.3g}, rank %{text}<extra></extra>",
            }
        )
    nulls = [panel.null.mean for panel in panels if panel.null is not None]
    chance = {"type": "line", "xref": "paper", "x0": 0, "x1": 1}
    chance |= {"line": {"width": 1, "dash": "4px,3px", "color": colours.arms[0]}}
    word = {"text": "chance", "xref": "paper", "x": 0.002, "xanchor": "left", "yanchor": "bottom"}
    paint += [[["layout", "shapes", i, "line", "color"], "arms.0"] for i in range(len(nulls))]
    x0, y1, x1, y0 = ranked_frame(panels).box
    layout = {
        "template": theme.plotly_layout(scheme),
        "margin": RANKED_MARGIN,
        "dragmode": "select",
        "clickmode": "event",
        "hovermode": "closest",
        "uirevision": "ranked",
        "meta": {"title": f"{panels[0].scores.label}: score by rank, 95 % interval", "paint": paint},
        "showlegend": len(panels) > 1,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "shapes": [{**chance, "y0": null, "y1": null} for null in nulls],
        "annotations": [{**word, "y": max(nulls), "showarrow": False, "font": {"size": 11}}] if nulls else [],
        "xaxis": {
            "title": {"text": "rank (1 is best)", "standoff": 6},
            "range": [x0, x1],
            "fixedrange": True,
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": _wrapped(panels[0].scores.units), "standoff": 6},
            "range": [y0, y1],
            "fixedrange": True,
            "zeroline": False,
        },
    }
    return {"data": data, "layout": layout}


def ranked_frame(panels: Sequence[Panel]) -> Frame:
    """All scores, their intervals and chance, with a little room around."""
    ends = [*span(panel.grid for panel in panels), *(p.null.mean for p in panels if p.null is not None)]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 1.0
    longest = max(panel.scored for panel in panels)
    return Frame((1 - 0.02 * longest, high + room, longest * 1.02, low - room), RANKED_MARGIN)


def _hover_data(panel: Panel) -> list[list[list[Any]]]:
    """[low, high, rank, value] of each cell; the cursor reads it too (assets/maps.js)."""
    low, high = panel.grid.low, panel.grid.high
    layers, heads = panel.value.shape
    return [
        [
            [
                number(low[layer, head]) if low is not None else None,
                number(high[layer, head]) if high is not None else None,
                float(panel.rank[layer, head]),
                number(panel.value[layer, head]),
            ]
            for head in range(heads)
        ]
        for layer in range(layers)
    ]


def _hover(panel: Panel, by: str) -> str:
    interval = "<br>95 %: %{customdata[0]:.3g} to %{customdata[1]:.3g}" if panel.grid.low is not None else ""
    what = "" if by == "tower" else f"{panel.key}: "
    return (
        f"<b>{panel.tower}.L%{{y}}H%{{x}}</b><br>{what}%{{customdata[3]:.3g}}{interval}"
        f"<br>rank %{{customdata[2]}} of {panel.scored}<extra></extra>"
    )


def _hatch(layer: int, head: int, lines: int = 4) -> tuple[list[float | None], list[float | None]]:
    """Diagonal lines across one cell, in cell coordinates so that they fit cells of any size."""
    x: list[float | None] = []
    y: list[float | None] = []
    r = 0.44  # half a cell, less the gap
    for k in range(1, lines + 1):
        at = -2 * r + 4 * r * k / (lines + 1)  # offset of the line head - layer = at
        x += [head + max(-r, -r + at), head + min(r, r + at), None]
        y += [layer + max(-r, -r - at), layer + min(r, r - at), None]
    return x, y


def _ticks(n: int) -> dict[str, Any]:
    return {"tickmode": "linear", "tick0": 0, "dtick": 1 if n <= 12 else 2 if n <= 20 else 4}


def _wrapped(text: str, width: int = 24) -> str:
    """Axis titles do not wrap by themselves."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)
