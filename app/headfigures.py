"""Figures of one head: its factors, its standing by every method, where it looks. Pure, like `comparisons`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app import theme
from app.comparisons import figure_layout
from app.headtable import Standing
from app.maps import Figure
from app.views import number

ROW = 25


def height(rows: int, below: int = 44) -> int:
    return 14 + ROW * max(rows, 1) + below


def factors(found: Sequence[Standing], name: str, scheme: str) -> Figure:
    """The head's score for each factor with its interval; the dashed line is chance, or else zero."""
    colours = theme.SCHEMES[scheme]
    y = list(range(len(found)))
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [number(s.score) for s in found],
        "y": y,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_gap(s.high, s.score) for s in found],
            "arrayminus": [_gap(s.score, s.low) for s in found],
            "thickness": 2,
            "width": 0,
            "color": colours.arms[1],
        },
        "marker": {"size": 9, "color": colours.arms[1]},
        "customdata": [[s.place, s.of] for s in found],
        "hovertemplate": "%{x:.3g}, rank %{customdata[0]} of %{customdata[1]}<extra></extra>",
    }
    null = found[0].column.scores.tower(_tower(name)).null if found else None
    line = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": null.mean if null else 0,
        "x1": null.mean if null else 0,
    }
    line |= {"line": {"width": 1, "dash": "4px,3px", "color": colours.arms[0]}}
    rows = [
        {"head": name, "factor": s.column.scores.factor, "score": number(s.score), "low": s.low, "high": s.high,
         "rank": s.rank, "tied": s.tied, "of": s.of}
        for s in found
    ]  # fmt: skip
    paint: list[list[Any]] = [[["data", 0, part, "color"], "arms.1"] for part in ("error_x", "marker")]
    paint.append([["layout", "shapes", 0, "line", "color"], "arms.0"])
    units = found[0].column.scores.units if found else ""
    labels = [s.column.scores.factor or "" for s in found]
    layout = figure_layout(
        scheme, f"{name}: score by factor, 95 % interval", rows, paint, shapes=[line], **_bars(labels, units)
    )
    return {"data": [dots], "layout": layout}


def standing(found: Sequence[Standing], name: str, scheme: str) -> Figure:
    """Of how many of the tower's other heads each method thinks less: a scale that all methods share."""
    colours = theme.SCHEMES[scheme]
    y = list(range(len(found)))
    stems: dict[str, list[float | None]] = {"x": [], "y": []}
    for at, s in zip(y, found, strict=True):
        stems["x"] += [0, 100 * s.beaten, None]
        stems["y"] += [at, at, None]
    lines = {
        "type": "scatter", "mode": "lines", **stems, "hoverinfo": "skip", "line": {"width": 1.5, "color": colours.line}
    }  # fmt: skip
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [round(100 * s.beaten, 3) for s in found],
        "y": y,
        "marker": {"size": 9, "color": colours.arms[1]},
        "customdata": [[s.place, s.of, number(s.score), s.column.label] for s in found],
        "hovertemplate": "<b>%{customdata[3]}</b><br>rank %{customdata[0]} of %{customdata[1]}"
        "<br>score %{customdata[2]:.3g}<extra></extra>",
    }
    notes = [
        {"text": s.place, "x": 1, "xref": "paper", "y": at, "xanchor": "left", "xshift": 8, "showarrow": False,
         "font": {"size": 11}}
        for at, s in zip(y, found, strict=True)
    ]  # fmt: skip
    rows = [
        {"head": name, "file": s.column.file, "rank": s.rank, "tied": s.tied, "of": s.of, "score": number(s.score),
         "low": s.low, "high": s.high}
        for s in found
    ]  # fmt: skip
    layout = figure_layout(
        scheme,
        f"{name}: standing among the heads of its tower",
        rows,
        [[["data", 0, "line", "color"], "line"], [["data", 1, "marker", "color"], "arms.1"]],
        annotations=notes,
        **_bars([s.column.file for s in found], "better than % of the others; rank right"),
    )
    layout["xaxis"]["range"] = [-3, 105]
    layout["margin"]["r"] = 16 + 7 * max((len(s.place) for s in found), default=1)
    return {"data": [lines, dots], "layout": layout}


def attention(mass: Mapping[str, float], name: str, scheme: str) -> Figure:
    """Where the head looks: mean share of its attention by part of the input; padding greyed."""
    colours = theme.SCHEMES[scheme]
    parts = list(mass)
    padding = [part.endswith("/padding") for part in parts]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [round(100 * share, 3) for share in mass.values()],
        "y": list(range(len(parts))),
        "width": 0.6,
        "marker": {"color": [colours.hatch if p else colours.arms[1] for p in padding], "line": {"width": 0}},
        "hovertemplate": "%{x:.1f} %<extra></extra>",
    }
    paint = [[["data", 0, "marker", "color", i], "hatch" if p else "arms.1"] for i, p in enumerate(padding)]
    rows = [{"head": name, "part": part, "share": number(share)} for part, share in mass.items()]
    layout = figure_layout(
        scheme,
        f"{name}: mean attention by part of the input",
        rows,
        paint,
        **_bars(parts, "% of its attention"),
    )
    layout["xaxis"]["rangemode"] = "tozero"
    return {"data": [bars], "layout": layout}


def _bars(labels: Sequence[str], title: str) -> dict[str, Any]:
    widest = max((len(label) for label in labels), default=0)
    return {
        "margin": {"l": min(24 + round(6.3 * widest), 170), "r": 14, "t": 4, "b": 40},
        "dragmode": False,
        "xaxis": {
            "title": {"text": title, "standoff": 4},
            "zeroline": False,
            "fixedrange": True,
            "nticks": 6,
        },
        "yaxis": {
            "tickvals": list(range(len(labels))),
            "ticktext": list(labels),
            "range": [max(len(labels), 1) - 0.4, -0.6],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }


def _gap(upper: float | None, lower: float | None) -> float:
    return 0.0 if upper is None or lower is None else max(upper - lower, 0.0)


def _tower(name: str) -> str:
    return name.partition(".")[0]
