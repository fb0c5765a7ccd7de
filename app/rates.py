"""Figures of rollouts: rates and paired differences as dots with intervals, and against what they cost; pure.

Every figure has one trace an arm, in the comparison's order, so that an arm has one colour everywhere and in both
schemes (the template's colorway). Axis names: row, from top to bottom. Rates and differences are drawn in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import theme
from app.maps import Figure
from app.outcomes import SPOKEN, Group, trials
from steering.compare import Arm, Comparison
from steering.results import IN_DOMAIN
from steering.stats import Interval

ROW = 25  # pixels a row
LETTER = 6.6  # pixels, about, of a letter of a label


@dataclass(frozen=True)
class Dot:
    """An interval to be drawn in row `y`."""

    interval: Interval
    y: float


@dataclass(frozen=True)
class Rows:
    """The vertical axis: labelled rows, headings, and the spans in which rows of one heading lie."""

    labels: tuple[tuple[float, str], ...]
    headings: tuple[tuple[float, str], ...]
    spans: tuple[tuple[float, float], ...]
    row: float = ROW

    @property
    def last(self) -> float:
        return self.spans[-1][1] if self.spans else 0.0

    @property
    def height(self) -> int:
        """Pixels of a figure with these rows."""
        return 66 + round(self.row * (self.last + 0.8))

    @property
    def margin(self) -> int:
        longest = max((len(text) for _, text in (*self.labels, *self.headings)), default=0)
        return min(220, 22 + round(LETTER * longest))


# ---- as in the demonstrations, by task


def task_rows(groups: Sequence[Group]) -> Rows:
    return Rows(
        tuple((row.y, row.label) for group in groups for row in group.rows),
        tuple((group.y, group.task) for group in groups),
        tuple((group.rows[0].y - 0.5, group.rows[-1].y + 0.5) for group in groups),
    )


def success(comparison: Comparison, groups: Sequence[Group], scheme: str) -> Figure:
    """Success rate of every arm with its interval; one row an arm, grouped by task."""
    rows = [row for group in groups for row in group.rows]
    figure = _dots(
        comparison,
        task_rows(groups),
        lambda arm: [Dot(row.cell.success, row.y) for row in rows if row.label == arm.arm],
        scheme,
        title="Success rate, 95 % interval",
        axis="successful rollouts, %",
    )
    for row in rows:
        n = row.cell.n * row.cell.runs
        won = round(row.cell.success.value * n)
        figure["layout"]["annotations"].append(
            _note(f"{won}/{n}", x=1, y=row.y, xref="paper", xanchor="left", xshift=10)
        )
    figure["layout"]["margin"]["r"] = 64
    return figure


def difference(comparison: Comparison, groups: Sequence[Group], scheme: str) -> Figure:
    """Paired difference of success to the baseline on the same episodes."""
    rows = [row for group in groups for row in group.rows]
    figure = _dots(
        comparison,
        task_rows(groups),
        lambda arm: [
            Dot(r.cell.difference, r.y) for r in rows if r.label == arm.arm and r.cell.difference is not None
        ],
        scheme,
        title=f"Difference to {comparison.against}, paired, 95 % interval",
        axis=f"difference to {comparison.against}, percentage points",
        zero=True,
    )
    for row in rows:
        if row.cell.difference is None:
            text = "baseline" if row.baseline else "not paired"
            figure["layout"]["annotations"].append(
                _note(text, x=1, y=row.y, xref="paper", xanchor="right", xshift=-4)
            )
    return figure


# ---- under suites


def suite_rows(comparison: Comparison) -> Rows:
    """A row a suite, wide enough for a dot of every arm; suites stand under what they try."""
    labels, headings, spans = [], [], []
    y = 0.0
    kinds = [
        ("as in the demonstrations", [IN_DOMAIN]),
        *((SPOKEN.get(t, t), s) for t, s in trials(comparison)),
    ]
    for kind, suites in kinds:
        headings.append((y, kind))
        first = y + 0.5
        for suite in suites:
            labels.append((first + 0.5, suite))
            first += 1
        spans.append((y + 0.5, first))
        y = first + 0.4
    return Rows(tuple(labels), tuple(headings), tuple(spans), row=max(ROW, 7 * len(comparison.arms) + 8))


def under_suites(comparison: Comparison, scheme: str, paired: bool = False) -> Figure:
    """Success under every suite, a dot an arm, means over tasks; or the paired difference to the baseline."""
    rows = suite_rows(comparison)
    place = {suite: y for y, suite in rows.labels}
    arms = comparison.arms

    def dots(arm: Arm) -> list[Dot]:
        shift = 0.72 * ((arms.index(arm) + 0.5) / len(arms) - 0.5)
        means = {IN_DOMAIN: arm.success, **arm.suites}
        found = [
            (suite, mean.difference if paired else mean.success)
            for suite, mean in means.items()
            if mean is not None
        ]
        return [Dot(at, place[suite] + shift) for suite, at in found if at is not None and suite in place]

    what = f"Difference to {comparison.against}" if paired else "Success rate"
    axis = f"difference to {comparison.against}, percentage points" if paired else "successful rollouts, %"
    figure = _dots(
        comparison, rows, dots, scheme, title=f"{what} by suite, 95 % interval", axis=axis, zero=paired
    )
    figure["layout"] |= _legend()
    figure["layout"]["margin"] |= {"t": 34}
    return figure


# ---- against what they cost


def cost(comparison: Comparison, what: str, scheme: str) -> Figure:
    """Success, mean over tasks, against trainable "parameters" (logarithmic) or training "seconds".

    Arms that cost nothing stand at the left edge, before the axis begins to count.
    """
    known = [(arm, _price(arm, what), arm.success) for arm in comparison.arms]
    paid = [price for _, price, mean in known if price and mean is not None]
    logarithmic = what == "parameters"
    least, most = (min(paid), max(paid)) if paid else (1.0, 10.0)
    edge = 10 ** (math.floor(math.log10(least)) - 0.5) if logarithmic else 0.0
    data = []
    for arm, price, mean in known:
        shown = mean is not None and price is not None
        interval = mean.success if mean is not None else None
        trace = _trace(
            arm.arm,
            [] if not shown or interval is None else [Dot(interval, 0.0)],
            hover=f"%{{y:.1f}} % (95 % %{{customdata[0]:.1f}} to %{{customdata[1]:.1f}})<br>{_priced(price, what)}",
        )
        trace |= {"x": [price or edge] if shown else [], "y": trace["x"], "error_y": trace.pop("error_x")}
        trace["meta"] = price
        data.append(trace)
    title = "trainable parameters" if logarithmic else "seconds of training"
    axis: dict[str, Any] = {"title": {"text": title, "standoff": 6}, "zeroline": False, "fixedrange": True}
    if logarithmic:
        ticks = log_ticks(least, most)
        free = [arm for arm, price, _ in known if price == 0]
        axis |= {
            "type": "log",
            "tickvals": [*([edge] if free else []), *ticks],
            "ticktext": [*(["none"] if free else []), *map(_short, ticks)],
            "range": [math.log10(edge if free else least) - 0.2, math.log10(most) + 0.2],
        }
    else:
        axis |= {"range": [-0.05 * most, 1.08 * most]}
    rates = {"title": {"text": "success, mean over tasks, %", "standoff": 6}, "range": [-2, 102]}
    return {
        "data": data,
        "layout": {
            "template": theme.plotly_layout(scheme),
            "margin": {"l": 52, "r": 18, "t": 34, "b": 44},
            "hovermode": "closest",
            "dragmode": False,
            "xaxis": axis,
            "yaxis": {**rates, "zeroline": False, "fixedrange": True},
            "meta": {
                "title": f"Success against {title}",
                "name": f"success-{what}",
                "rows": [
                    {"arm": arm.arm, what: price, "success": mean.success.value,
                     "low": mean.success.low, "high": mean.success.high}
                    for arm, price, mean in known if mean is not None
                ],
            },
            **_legend(),
        },
    }  # fmt: skip


def log_ticks(least: float, most: float) -> list[float]:
    """Powers of ten; where that is one or none within the data, 2 and 5 times them too."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    steps = (1, 2, 5) if math.log10(most / least) < 1.5 else (1,)
    ticks = [float(step * 10**d) for d in decades for step in steps]
    return [tick for tick in ticks if least / 2 <= tick <= 2 * most] if len(steps) > 1 else ticks


def _price(arm: Arm, what: str) -> float | None:
    if what == "parameters":
        return float(arm.trained[1])
    if arm.train_seconds is not None:
        return float(arm.train_seconds[1])
    return 0.0 if arm.trained[1] == 0 else None


def _priced(price: float | None, what: str) -> str:
    return "not known" if price is None else f"{price:,.0f} {what}"


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# ---- what the figures share


def _dots(
    comparison: Comparison,
    rows: Rows,
    dots: Callable[[Arm], Sequence[Dot]],
    scheme: str,
    *,
    title: str,
    axis: str,
    zero: bool = False,
) -> Figure:
    unit = "points" if zero else "%"
    sign = "+" if zero else ""
    hover = f"%{{x:{sign}.1f}} {unit} (95 % %{{customdata[0]:{sign}.1f}} to %{{customdata[1]:{sign}.1f}})"
    colours = theme.SCHEMES[scheme]
    # A line of its own in every group, so that it crosses no heading; and room beside it, so that it crosses no label.
    line = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "layer": "below",
        "line": {"width": 1.5, "color": colours.muted},
    }
    shapes = [{**line, "y0": top, "y1": bottom} for top, bottom in rows.spans] if zero else []
    at = {"x": 0, "xref": "paper", "xanchor": "left", "xshift": 8 - rows.margin}
    drawn = {arm.arm: dots(arm) for arm in comparison.arms}
    return {
        "data": [_trace(name, own, hover) for name, own in drawn.items()],
        "layout": {
            "template": theme.plotly_layout(scheme),
            "margin": {"l": rows.margin, "r": 20, "t": 8, "b": 44},
            "hovermode": "closest",
            "dragmode": False,
            "showlegend": False,
            "annotations": [_note(f"<b>{text}</b>", y=y, **at) for y, text in rows.headings],
            "shapes": shapes,
            "xaxis": {
                "title": {"text": axis, "standoff": 6},
                "zeroline": False,
                "fixedrange": True,
                "range": _around_zero(drawn) if zero else [-2, 102],
            },
            "yaxis": {
                "tickvals": [y for y, _ in rows.labels],
                "ticktext": [text for _, text in rows.labels],
                "range": [rows.last + 0.2, -0.6],
                "showgrid": False,
                "zeroline": False,
                "fixedrange": True,
            },
            "meta": {
                "title": title,
                "paint": [[["layout", "shapes", i, "line", "color"], "muted"] for i in range(len(shapes))],
            },
        },
    }


def _around_zero(drawn: Mapping[str, Sequence[Dot]]) -> list[float]:
    """All intervals and zero, with room at both ends; in per cent."""
    ends = [
        0.0,
        *(100 * end for own in drawn.values() for d in own for end in (d.interval.low, d.interval.high)),
    ]
    room = 0.08 * (max(ends) - min(ends)) or 5.0
    return [min(ends) - room, max(ends) + room]


def _trace(name: str, dots: Sequence[Dot], hover: str) -> dict[str, Any]:
    x = [100 * dot.interval.value for dot in dots]
    low, high = [100 * dot.interval.low for dot in dots], [100 * dot.interval.high for dot in dots]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": [dot.y for dot in dots],
        "customdata": [list(pair) for pair in zip(low, high, strict=True)],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [h - at for h, at in zip(high, x, strict=True)],
            "arrayminus": [at - v for at, v in zip(x, low, strict=True)],
            "thickness": 2,
            "width": 0,
        },
        "marker": {"size": 9},
        "hovertemplate": f"<b>{name}</b><br>{hover}<extra></extra>",
    }


def _legend() -> dict[str, Any]:
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    return {"showlegend": True, "legend": {**place, "itemclick": False, "itemdoubleclick": False}}


def _note(text: str, *, y: float, **place: Any) -> dict[str, Any]:
    return {"text": text, "y": y, "yanchor": "middle", "showarrow": False, "font": {"size": 11.5}, **place}
