"""Figures of how methods agree, made from `agreement`; pure, and without a server.

Every figure carries its numbers in `layout.meta.rows` (what is exported) and the colours that its template does not
reach in `layout.meta.paint` (assets/export.js). Points and lines that stand for a head carry it in `customdata`, so
that the browser can draw the selection over them and choose by them (assets/maps.js).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app import theme
from app.agreement import Correlation, Membership, Overlap, Rankings
from app.maps import Figure, Frame
from app.views import number

ROW = 26  # pixels of a row of `overlap` and of `upset`
COLUMNS = 24  # groups of `upset` that are shown
SLOPE = {"l": 30, "r": 30, "t": 26, "b": 24}


def figure_layout(
    scheme: str, title: str, rows: list[dict[str, Any]], paint: list[list[Any]], **more: Any
) -> Figure:
    return {
        "template": theme.plotly_layout(scheme),
        "hovermode": "closest",
        "showlegend": False,
        "meta": {"title": title, "rows": rows, "paint": paint},
        **more,
    }


def matrix(ranks: Rankings, pairs: Sequence[Correlation], scheme: str) -> Figure:
    """Spearman's rank correlation of every two methods."""
    n = len(ranks.methods)
    z = np.full((n, n), np.nan)
    hover = [["" for _ in range(n)] for _ in range(n)]
    for c in pairs:
        z[c.a, c.b] = z[c.b, c.a] = c.value
        said = f"{ranks.methods[c.a]} and {ranks.methods[c.b]}<br>ρ = {c.value:.3f}, 95 % {c.low:.2f} to {c.high:.2f}"
        hover[c.a][c.b] = hover[c.b][c.a] = said
    rows = [
        {"a": ranks.methods[c.a], "b": ranks.methods[c.b], "spearman": number(c.value), "low": number(c.low),
         "high": number(c.high), "heads": ranks.n}
        for c in pairs
    ]  # fmt: skip
    trace = {
        "type": "heatmap",
        "z": [[number(v) for v in row] for row in z],
        "text": hover,
        "texttemplate": "%{z:.2f}",
        "textfont": {"size": 12},
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "coloraxis": "coloraxis",
        "xgap": 2,
        "ygap": 2,
    }
    ticks = {"tickvals": list(range(n)), "ticktext": list(ranks.methods), "fixedrange": True}
    still = {"showgrid": False, "zeroline": False, "ticks": ""}
    layout = figure_layout(
        scheme,
        f"Spearman's rank correlation over {ranks.n} heads",
        rows,
        [[["layout", "coloraxis", "colorscale"], "worst_to_best"]],
        margin={"l": 118, "r": 12, "t": 10, "b": 92},
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": theme.ramp(scheme), "showscale": False},
        xaxis={**ticks, **still, "tickangle": -35},
        yaxis={**ticks, **still, "autorange": "reversed"},
        dragmode=False,
    )
    return {"data": [trace], "layout": layout}


def overlap(ranks: Rankings, pairs: Sequence[Overlap], k: int, scheme: str) -> Figure:
    """Heads that two top-k sets share, as a dot over the central 95 % of chance."""
    colours = theme.SCHEMES[scheme]
    labels = [f"{ranks.methods[o.a]} · {ranks.methods[o.b]}" for o in pairs]
    y = list(range(len(pairs)))
    band: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "base": [o.low - 0.12 for o in pairs],
        "x": [o.high - o.low + 0.24 for o in pairs],
        "y": y,
        "width": 0.62,
        "marker": {"color": f"{colours.arms[0]}3a", "line": {"width": 0}},
        "hoverinfo": "skip",
    }
    mean = {
        "type": "scatter",
        "mode": "markers",
        "x": [o.expected for o in pairs],
        "y": y,
        "marker": {"symbol": "line-ns", "size": 14, "line": {"width": 1.5, "color": colours.arms[0]}},
        "hoverinfo": "skip",
    }
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "shared",
        "x": [o.shared for o in pairs],
        "y": y,
        "marker": {
            "size": 10,
            "color": [colours.arms[1] if o.shared > o.high else colours.muted for o in pairs],
        },
        "customdata": [[o.expected, o.low, o.high, o.p] for o in pairs],
        "hovertemplate": "%{x} of "
        + f"{k} in common<br>chance %{{customdata[0]:.1f}} (95 % %{{customdata[1]}} to %{{customdata[2]}})"
        "<br>p = %{customdata[3]:.2g}<extra></extra>",
    }
    rows = [
        {"a": ranks.methods[o.a], "b": ranks.methods[o.b], "k": k, "heads": ranks.n, "shared": o.shared,
         "chance": number(o.expected), "chance_low": o.low, "chance_high": o.high, "p": number(o.p)}
        for o in pairs
    ]  # fmt: skip
    paint: list[list[Any]] = [
        [["data", 0, "marker", "color"], "arms.0/3a"],
        [["data", 1, "marker", "line", "color"], "arms.0"],
    ]
    paint += [
        [["data", 2, "marker", "color", i], "arms.1" if o.shared > o.high else "muted"]
        for i, o in enumerate(pairs)
    ]
    layout = figure_layout(
        scheme,
        f"Heads in common among the best {k}; band: 95 % of random sets",
        rows,
        paint,
        margin={"l": 210, "r": 20, "t": 6, "b": 44},
        dragmode=False,
        xaxis={
            "title": {"text": f"heads in common among the best {k}", "standoff": 6},
            "range": [-0.5, k + 0.5],
            "zeroline": False,
            "fixedrange": True,
        },
        yaxis={
            "tickvals": y,
            "ticktext": labels,
            "range": [len(pairs) - 0.4, -0.6],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    )
    return {"data": [band, mean, dots], "layout": layout}


def overlap_height(pairs: Sequence[Overlap]) -> int:
    return max(180, 60 + ROW * len(pairs))


def upset(ranks: Rankings, groups: Sequence[Membership], k: int, scheme: str) -> Figure:
    """How many heads exactly these methods have among their best k. A click on a bar selects its heads."""
    colours = theme.SCHEMES[scheme]
    shown, n = list(groups[:COLUMNS]), len(ranks.methods)
    x = list(range(len(shown)))
    bars = {
        "type": "bar",
        "x": x,
        "y": [len(g.heads) for g in shown],
        "text": [str(len(g.heads)) for g in shown],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": colours.arms[1], "line": {"width": 0}},
        "width": 0.62,
        "customdata": [{"heads": [str(h) for h in g.heads], "said": _few(g)} for g in shown],
        "hovertemplate": "%{customdata.said}<br>click to select<extra></extra>",
    }
    inside = [(i, m) for i, g in enumerate(shown) for m in g.methods]
    lines: dict[str, list[float | None]] = {"x": [], "y": []}
    for i, g in enumerate(shown):
        lines["x"] += [i, i, None]
        lines["y"] += [g.methods[0], g.methods[-1], None]
    lower = {"type": "scatter", "yaxis": "y2", "hoverinfo": "skip"}
    empty = {
        **lower,
        "mode": "markers",
        "x": [i for i in x for _ in range(n)],
        "y": [m for _ in x for m in range(n)],
        "marker": {"size": 9, "color": colours.line},
    }
    joined = {**lower, **lines, "mode": "lines", "line": {"width": 2.5, "color": colours.text}}
    full = {
        **lower,
        "mode": "markers",
        "x": [i for i, _ in inside],
        "y": [m for _, m in inside],
        "marker": {"size": 10, "color": colours.text},
    }
    rows = [
        {"methods": " & ".join(ranks.methods[m] for m in g.methods), "k": k, "count": len(g.heads),
         "heads": " ".join(str(h) for h in g.heads)}
        for g in groups
    ]  # fmt: skip
    split = (ROW * n) / (ROW * n + 150)
    most = max((len(g.heads) for g in shown), default=1)
    layout = figure_layout(
        scheme,
        f"Which methods share their best {k} heads",
        rows,
        [
            [["data", 0, "marker", "color"], "arms.1"],
            [["data", 1, "marker", "color"], "line"],
            [["data", 2, "line", "color"], "text"],
            [["data", 3, "marker", "color"], "text"],
        ],
        margin={"l": 118, "r": 14, "t": 18, "b": 10},
        dragmode=False,
        clickmode="event",
        xaxis={
            "visible": False,
            "range": [-0.6, max(len(shown), 6) - 0.4],
            "fixedrange": True,
            "anchor": "y2",
        },
        yaxis={
            "domain": [split, 1],
            "range": [0, most * 1.12],
            "title": {"text": "heads", "standoff": 6},
            "nticks": 5,
            "zeroline": False,
            "fixedrange": True,
        },
        yaxis2={
            "domain": [0, split - 0.02],
            "range": [n - 0.4, -0.6],
            "tickvals": list(range(n)),
            "ticktext": list(ranks.methods),
            "tickfont": {"size": 11, "color": colours.muted},
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    )
    layout["meta"]["paint"].append([["layout", "yaxis2", "tickfont", "color"], "muted"])
    return {"data": [bars, empty, joined, full], "layout": layout}


def upset_height(ranks: Rankings) -> int:
    return 178 + ROW * len(ranks.methods)


def slope(ranks: Rankings, k: int, scheme: str) -> Figure:
    """Rank by method, one line a head that is among the best k of any; a line that stays flat is agreement."""
    colours = theme.SCHEMES[scheme]
    inside = np.nonzero((ranks.rank <= k).any(axis=0))[0].tolist()
    x: list[float | None] = []
    y: list[float | None] = []
    ids: list[str | None] = []
    for i in inside:
        x += [*range(len(ranks.methods)), None]
        y += [*ranks.rank[:, i].tolist(), None]
        ids += [*([str(ranks.heads[i])] * len(ranks.methods)), None]
    lines = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "customdata": ids,
        "line": {"width": 1.2, "color": f"{colours.arms[1]}8c"},
        "marker": {"size": 4, "color": colours.arms[1]},
        "hovertemplate": "<b>%{customdata}</b><br>rank %{y}<extra></extra>",
    }
    rows = [
        {"head": str(ranks.heads[i]), **{m: int(ranks.rank[j, i]) for j, m in enumerate(ranks.methods)}}
        for i in inside
    ]
    edge = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": k + 0.5, "y1": k + 0.5}
    edge |= {"line": {"width": 1, "dash": "4px,3px", "color": colours.arms[0]}}
    names = [
        {"text": m, "x": j, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "yshift": 4,
         "font": {"size": 11.5}}
        for j, m in enumerate(ranks.methods)
    ]  # fmt: skip
    x0, y0, x1, y1 = slope_frame(ranks).box
    layout = figure_layout(
        scheme,
        f"Ranks of the heads that are among the best {k} of any method",
        rows,
        [
            [["data", 0, "line", "color"], "arms.1/8c"],
            [["data", 0, "marker", "color"], "arms.1"],
            [["layout", "shapes", 0, "line", "color"], "arms.0"],
        ],
        margin=SLOPE,
        dragmode=False,
        clickmode="event",
        shapes=[edge],
        annotations=names,
        xaxis={"visible": False, "range": [x0, x1], "fixedrange": True},
        yaxis={
            "range": [y1, y0],
            "tickvals": [1, *range(10, ranks.n + 1, 10 if ranks.n <= 80 else 100)],
            "zeroline": False,
            "fixedrange": True,
        },
    )
    return {"data": [lines], "layout": layout}


def slope_frame(ranks: Rankings) -> Frame:
    last = max(ranks.n, 1)
    return Frame((-0.18, 1 - 0.03 * last, len(ranks.methods) - 0.82, last * 1.03), SLOPE)


def _few(group: Membership, most: int = 8) -> str:
    said = [f"L{h.layer}H{h.index}" for h in group.heads[:most]]
    return ", ".join(said) + (f" and {len(group.heads) - most} more" if len(group.heads) > most else "")
