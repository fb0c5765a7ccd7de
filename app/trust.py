"""Figures of whether a method's scores can be trusted: approximate against exact, and stability over demonstrations.

Pure; the conventions are those of `comparisons`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from app import theme
from app.agreement import judged
from app.comparisons import figure_layout
from app.maps import Figure, Frame
from app.views import number
from interp.scores import HeadScores

SQUARE = {"l": 62, "r": 16, "t": 12, "b": 46}
CURVE = {"l": 52, "r": 16, "t": 30, "b": 42}


def check(exact: HeadScores, rough: HeadScores, tower: str, names: tuple[str, str], scheme: str) -> Figure:
    """The approximation against the exact effect, a point a head; on the line both are equal."""
    colours = theme.SCHEMES[scheme]
    heads = [head for head in exact.ranked(tower) if np.isfinite(rough.score(head))]
    x, y = [exact.score(h) for h in heads], [rough.score(h) for h in heads]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [number(v) for v in x],
        "y": [number(v) for v in y],
        "customdata": [str(h) for h in heads],
        "marker": {"size": 7, "color": f"{colours.arms[1]}b0"},
        "unselected": {"marker": {"opacity": 1}},
        "hovertemplate": "<b>%{customdata}</b><br>exact %{x:.3g}, approximate %{y:.3g}<extra></extra>",
    }
    same = exact.units == rough.units
    low, high = (min(x + y), max(x + y)) if x else (0.0, 1.0)
    line = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high}
    line |= {"line": {"width": 1, "dash": "4px,3px", "color": colours.arms[0]}, "layer": "below"}
    rows = [
        {"head": str(h), names[0]: number(a), names[1]: number(b)}
        for h, a, b in zip(heads, x, y, strict=True)
    ]
    x0, y1, x1, y0 = check_frame(exact, rough, tower).box
    layout = figure_layout(
        scheme,
        f"{rough.label} against {exact.label}" + (f": {exact.factor}" if exact.factor else ""),
        rows,
        [[["data", 0, "marker", "color"], "arms.1/b0"], [["layout", "shapes", 0, "line", "color"], "arms.0"]][
            : 1 + same
        ],
        margin=SQUARE,
        dragmode="select",
        clickmode="event",
        shapes=[line] if same else [],
        xaxis={
            "title": {"text": f"{names[0]}: exact, {exact.units}", "standoff": 6},
            "range": [x0, x1],
            "fixedrange": True,
        },
        yaxis={
            "title": {"text": f"{names[1]}: approximate", "standoff": 6},
            "range": [y0, y1],
            "fixedrange": True,
        },
    )
    return {"data": [points], "layout": layout}


def check_frame(exact: HeadScores, rough: HeadScores, tower: str) -> Frame:
    heads = [head for head in exact.ranked(tower) if np.isfinite(rough.score(head))]
    x = np.array([exact.score(h) for h in heads] or [0.0, 1.0])
    y = np.array([rough.score(h) for h in heads] or [0.0, 1.0])
    if exact.units == rough.units:
        x = y = np.concatenate([x, y])
    return Frame(_box(x, y), SQUARE)


def best_of(found: Mapping[str, HeadScores], tower: str) -> int | None:
    """Among how many best heads the scores count a head; None if they differ (interp/stability.py, `n`)."""
    sizes = {one.settings.get("n", {}).get(tower) for one in found.values()}
    return sizes.pop() if len(sizes) == 1 else None


def stable(found: Mapping[str, HeadScores], tower: str, scheme: str) -> Figure:
    """How often a head is among the best k when demonstrations are resampled, best first; a curve a method.

    A curve that falls from 1 to 0 at once is a method that chooses the same heads every time; chance is flat.
    """
    colours = theme.SCHEMES[scheme]
    data, paint, rows = [], [], []
    for i, (file, one) in enumerate(found.items()):
        arm = 1 + i % (len(colours.arms) - 1)
        heads = one.ranked(tower)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": judged(one),
                "x": list(range(1, len(heads) + 1)),
                "y": [number(one.score(h)) for h in heads],
                "customdata": [str(h) for h in heads],
                "marker": {"size": 5, "color": colours.arms[arm]},
                "line": {"width": 1.5, "color": colours.arms[arm]},
                "unselected": {"marker": {"opacity": 1}},
                "hovertemplate": "<b>%{customdata}</b><br>in %{y:.0%} of the resamples<extra></extra>",
            }
        )
        paint += [[["data", i, part, "color"], f"arms.{arm}"] for part in ("marker", "line")]
        rows += [
            {"method": judged(one), "file": file, "head": str(h), "frequency": number(one.score(h))}
            for h in heads
        ]
    k = best_of(found, tower)
    longest = max((len(one.ranked(tower)) for one in found.values()), default=0)
    shapes: list[dict[str, Any]] = []
    if k and longest:
        line = {"width": 1, "dash": "4px,3px", "color": colours.arms[0]}
        shapes = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": k / longest,
                "y1": k / longest,
                "line": line,
            }
        ]
        paint.append([["layout", "shapes", 0, "line", "color"], "arms.0"])
    x0, y1, x1, y0 = stable_frame(found, tower).box
    layout = figure_layout(
        scheme,
        "How often a head is among the best when demonstrations are resampled",
        rows,
        paint,
        margin=CURVE,
        dragmode="select",
        clickmode="event",
        shapes=shapes,
        xaxis={
            "title": {"text": "heads, most frequent first", "standoff": 6},
            "range": [x0, x1],
            "zeroline": False,
            "fixedrange": True,
        },
        yaxis={
            "title": {"text": "share of resamples", "standoff": 6},
            "range": [y0, y1],
            "tickformat": ".0%",
            "zeroline": False,
            "fixedrange": True,
        },
    )
    layout |= {"showlegend": len(found) > 1}
    layout["legend"] = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {"data": data, "layout": layout}


def stable_frame(found: Mapping[str, HeadScores], tower: str) -> Frame:
    longest = max((len(one.ranked(tower)) for one in found.values()), default=1)
    return Frame((1 - 0.02 * longest, 1.05, longest * 1.02, -0.05), CURVE)


def _box(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom with a little room."""
    rx, ry = (0.05 * float(np.ptp(v)) or 0.5 for v in (x, y))
    return float(x.min()) - rx, float(y.max()) + ry, float(x.max()) + rx, float(y.min()) - ry
