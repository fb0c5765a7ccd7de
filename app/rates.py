"""Figures of rollouts: success rates and paired differences as dots with intervals; pure, and without a server.

One row an arm, grouped by task, the same rows in both figures; colours come from the template's colorway in the order
of the arms, so an arm has one colour everywhere and in both colour schemes. Axis names: row, from top to bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app import theme
from app.maps import Figure
from app.outcomes import Group, Row

ROW = 25  # pixels a row


def success(groups: Sequence[Group], scheme: str) -> Figure:
    """Success rate of every arm with its Wilson interval; one row an arm, grouped by task."""
    rows = _rows(groups)
    data = []
    for arm, ours in _by_arm(rows):
        rates = [row.result.success_rate for row in ours]
        data.append(
            _dots(
                arm,
                x=[100 * r.value for r in rates],
                y=[row.y for row in ours],
                low=[100 * r.low for r in rates],
                high=[100 * r.high for r in rates],
                hover="%{x:.1f} % (95 % %{customdata[0]:.1f} to %{customdata[1]:.1f})",
            )
        )
    counts = [
        _note(f"{row.successes}/{row.n}", x=1, y=row.y, xref="paper", xanchor="left", xshift=10)
        for row in rows
    ]
    layout = _rows_layout(groups, rows, scheme, title="successful rollouts, %")
    layout["annotations"] += counts
    layout["xaxis"]["range"] = [-2, 102]
    layout["margin"]["r"] = 64
    return {"data": data, "layout": layout}


def difference(groups: Sequence[Group], scheme: str) -> Figure:
    """Paired difference of success to the baseline on the same episodes, with its bootstrap interval."""
    rows = _rows(groups)
    data = []
    for arm, ours in _by_arm(rows):
        paired = [(row.y, row.result.paired) for row in ours]
        known = [(y, p) for y, p in paired if p is not None]
        data.append(
            _dots(
                arm,
                x=[100 * p.difference for _, p in known],
                y=[y for y, _ in known],
                low=[100 * p.low for _, p in known],
                high=[100 * p.high for _, p in known],
                hover="%{x:+.1f} points (95 % %{customdata[0]:+.1f} to %{customdata[1]:+.1f})",
            )
        )
    layout = _rows_layout(groups, rows, scheme, title="difference to the baseline, percentage points")
    layout["xaxis"] |= {"zeroline": True, "zerolinewidth": 1.5}
    for row in rows:
        if row.result.paired is None:
            text = "baseline" if row.baseline else "not paired"
            layout["annotations"].append(_note(text, x=0, y=row.y, xanchor="left", xshift=8))
    return {"data": data, "layout": layout}


def rows_height(groups: Sequence[Group]) -> int:
    """Pixels of `success` and `difference`."""
    return 58 + round(ROW * (_rows(groups)[-1].y + 0.6)) if groups else 0


def _rows(groups: Sequence[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


def _by_arm(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of each arm; the order of arms decides their colours, the same in every figure."""
    arms = list(dict.fromkeys(row.result.arm for row in rows))
    return [(arm, [row for row in rows if row.result.arm == arm]) for arm in arms]


def _dots(
    arm: str, x: Sequence[float], y: Sequence[float], low: Sequence[float], high: Sequence[float], hover: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": arm,
        "x": list(x),
        "y": list(y),
        "customdata": [list(pair) for pair in zip(low, high, strict=True)],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [h - v for h, v in zip(high, x, strict=True)],
            "arrayminus": [v - at for at, v in zip(low, x, strict=True)],
            "thickness": 2,
            "width": 0,
        },
        "marker": {"size": 9},
        "hovertemplate": f"<b>{arm}</b><br>{hover}<extra></extra>",
    }


def _note(text: str, *, x: float, y: float, xanchor: str, **more: Any) -> dict[str, Any]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xanchor": xanchor,
        "yanchor": "middle",
        "showarrow": False,
        "font": {"size": 11.5},
        **more,
    }


def _rows_layout(groups: Sequence[Group], rows: Sequence[Row], scheme: str, title: str) -> dict[str, Any]:
    headings = [
        _note(f"<b>{group.task}</b>", x=0, y=group.y, xref="paper", xanchor="left", xshift=-104)
        for group in groups
    ]
    return {
        "template": theme.plotly_layout(scheme),
        "margin": {"l": 112, "r": 20, "t": 8, "b": 44},
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": False,
        "annotations": headings,
        "xaxis": {"title": {"text": title, "standoff": 6}, "zeroline": False, "fixedrange": True},
        "yaxis": {
            "tickvals": [row.y for row in rows],
            "ticktext": [row.label for row in rows],
            "range": [(rows[-1].y if rows else 0) + 0.6, -0.6],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }
