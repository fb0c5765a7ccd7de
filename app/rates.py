"""Figures of rollouts: rates and paired differences as dots with intervals, by task and by suite; pure.

Every figure has one trace an arm, which looks the same everywhere (steering/looks.py). Axis names: row, from top to
bottom. Rates and differences are drawn in per cent, and so are the numbers behind a figure, `layout.meta.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app import outcomes, theme
from app.maps import Figure
from app.outcomes import SPOKEN, Group, Row, span, trials
from steering.compare import Arm, Comparison
from steering.looks import looks
from steering.results import IN_DOMAIN
from steering.stats import Interval

ROW = 25  # pixels a row
LETTER = 6.6  # pixels, about, of a letter of a label


@dataclass(frozen=True)
class Dot:
    """An interval to be drawn in row `y`; None for a difference that is not paired, which is only exported."""

    interval: Interval | None
    y: float
    rests: str = ""
    """On how much, in words."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """What is exported beside the interval."""


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
    figure = _dots(
        comparison,
        task_rows(groups),
        lambda arm: [_dot(arm, row, row.cell.success) for row in _of(groups, arm)],
        scheme,
        name="success",
        title="Success rate, 95 % interval",
        axis="successful rollouts, %",
    )
    notes = []
    for arm in comparison.arms:
        for row in _of(groups, arm):
            n = row.cell.n * row.cell.runs
            seeds = outcomes.seeds(row.cell, arm)
            trained = "" if seeds is None else f" · {outcomes.plural(seeds, 'seed')}"
            notes.append((row.y, f"{round(row.cell.success.value * n)}/{n}{trained}"))
    return _noted(figure, notes, 24)


def difference(comparison: Comparison, groups: Sequence[Group], scheme: str) -> Figure:
    """Paired difference of success to the baseline on the same episodes."""
    figure = _dots(
        comparison,
        task_rows(groups),
        lambda arm: [
            _dot(arm, row, row.cell.difference, comparison.against)
            for row in _of(groups, arm)
            if not row.baseline
        ],
        scheme,
        name="difference",
        title=f"Difference to {comparison.against}, paired, 95 % interval",
        axis=f"difference to {comparison.against}, percentage points",
        zero=True,
    )
    notes = []
    for row in (row for group in groups for row in group.rows):
        if row.cell.difference is None:
            notes.append((row.y, "baseline" if row.baseline else "not paired"))
        elif row.cell.paired != row.cell.n:
            notes.append((row.y, f"on {row.cell.paired} of {row.cell.n}"))
    return _noted(figure, notes, 20)


def _of(groups: Sequence[Group], arm: Arm) -> list[Row]:
    return [row for group in groups for row in group.rows if row.label == arm.arm]


def _dot(arm: Arm, row: Row, interval: Interval | None, against: str | None = None) -> Dot:
    """An arm's success on a task, or with `against` its difference to that one."""
    cell = row.cell
    rests, paired = outcomes.rests_on([cell], arm), {}
    if against is not None:
        paired = {"against": against, "paired": cell.paired}
        rests += f"<br>paired on {cell.paired} of {cell.n}" if cell.paired != cell.n else ""
    where = {"task": cell.task, "suite": cell.suite, "arm": arm.arm}
    return Dot(interval, row.y, rests, {**where, **paired, "n": cell.n, "seeds": outcomes.seeds(cell, arm)})


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
    kinds = {suite: trial for trial, suites in trials(comparison) for suite in suites}

    def dots(arm: Arm) -> list[Dot]:
        shift = 0.72 * ((arms.index(arm) + 0.5) / len(arms) - 0.5)
        found = []
        for suite, mean in {IN_DOMAIN: arm.success, **arm.suites}.items():
            if mean is None or suite not in place or (paired and arm.arm == comparison.against):
                continue
            cells = [c for c in comparison.cells if (c.arm, c.suite) == (arm.arm, suite)]
            row = {"suite": suite, "tries": kinds.get(suite), "arm": arm.arm, "tasks": len(cells)}
            row |= {"against": comparison.against, "paired": span(c.paired for c in cells)} if paired else {}
            row |= {"n": span(c.n for c in cells), "seeds": span(outcomes.seeds(c, arm) for c in cells)}
            rests = outcomes.rests_on(cells, arm)
            if paired and any(c.paired != c.n for c in cells):
                rests += f"<br>paired on {row['paired']} of {row['n']}"
            found.append(Dot(mean.difference if paired else mean.success, place[suite] + shift, rests, row))
        return found

    what = f"Difference to {comparison.against}" if paired else "Success rate"
    axis = f"difference to {comparison.against}, percentage points" if paired else "successful rollouts, %"
    figure = _dots(
        comparison,
        rows,
        dots,
        scheme,
        name="suite-difference" if paired else "suites",
        title=f"{what} by suite, 95 % interval",
        axis=axis,
        zero=paired,
    )
    figure["layout"] |= legend()
    figure["layout"]["margin"] |= {"t": 34}
    apart: dict[str, list[str]] = {}
    for dot in (dot for arm in arms for dot in dots(arm)):
        if dot.interval is None:
            apart.setdefault(dot.row["suite"], []).append(dot.row["arm"])
    notes = [(place[s], _not_paired(names)) for s, names in apart.items()]
    return _noted(figure, notes, 20)


def _not_paired(arms: Sequence[str]) -> str:
    return f"not paired:<br>{arms[0] if len(arms) == 1 else f'{len(arms)} arms'}"


# ---- what the figures share


def _dots(
    comparison: Comparison,
    rows: Rows,
    dots: Callable[[Arm], Sequence[Dot]],
    scheme: str,
    *,
    name: str,
    title: str,
    axis: str,
    zero: bool = False,
) -> Figure:
    unit = "points" if zero else "%"
    sign = "+" if zero else ""
    hover = f"%{{x:{sign}.1f}} {unit} (95 % %{{customdata[0]:{sign}.1f}} to %{{customdata[1]:{sign}.1f}})<br>%{{text}}"
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
    found = {arm.arm: dots(arm) for arm in comparison.arms}
    drawn = {arm: [dot for dot in own if dot.interval is not None] for arm, own in found.items()}
    data = [trace(arm, own, hover) for arm, own in drawn.items()]
    paint = dress(data, scheme)
    return {
        "data": data,
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
                "name": name,
                "paint": [
                    *paint,
                    *([["layout", "shapes", i, "line", "color"], "muted"] for i in range(len(shapes))),
                ],
                "rows": [
                    {**dot.row, **_in_percent(dot.interval, "points" if zero else "success")}
                    for own in found.values()
                    for dot in own
                ],
            },
        },
    }


def _in_percent(interval: Interval | None, what: str) -> dict[str, float | None]:
    ends = (None,) * 3 if interval is None else (interval.value, interval.low, interval.high)
    named = zip((what if what == "points" else f"{what}_percent", "low", "high"), ends, strict=True)
    return {name: None if end is None else round(100 * end, 4) for name, end in named}


def _around_zero(drawn: Mapping[str, Sequence[Dot]]) -> list[float]:
    """All intervals and zero, with room at both ends; in per cent."""
    known = [dot.interval for own in drawn.values() for dot in own if dot.interval is not None]
    ends = [0.0, *(100 * end for interval in known for end in (interval.low, interval.high))]
    room = 0.08 * (max(ends) - min(ends)) or 5.0
    return [min(ends) - room, max(ends) + room]


def trace(name: str, dots: Sequence[Dot], hover: str) -> dict[str, Any]:
    """One arm's dots, which have intervals; not dressed yet."""
    known = [dot.interval for dot in dots if dot.interval is not None]
    x = [100 * i.value for i in known]
    low, high = [100 * i.low for i in known], [100 * i.high for i in known]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": [dot.y for dot in dots],
        "text": [dot.rests for dot in dots],
        "customdata": [list(pair) for pair in zip(low, high, strict=True)],
        "error_x": bar(x, low, high),
        "marker": {"size": 9},
        "hovertemplate": f"<b>{name}</b><br>{hover}<extra></extra>",
    }


def bar(at: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [h - x for h, x in zip(high, at, strict=True)],
        "arrayminus": [x - v for x, v in zip(at, low, strict=True)],
        "thickness": 2,
        "width": 0,
    }


def dress(traces: Sequence[dict[str, Any]], scheme: str) -> list[list[Any]]:
    """Give every trace the look of the arm that it is called after; returns what the other scheme repaints
    (`layout.meta.paint`)."""
    paint: list[list[Any]] = []
    found = looks([one["name"] for one in traces])
    colours = theme.SCHEMES[scheme].looks
    for i, one in enumerate(traces):
        look = found[one["name"]]
        place = theme.SCHEMES["light"].looks.index(look.light)
        one["marker"] |= {"symbol": look.symbol, "color": colours[place]}
        if look.symbol.endswith("-open"):
            one["marker"] |= {"line": {"width": 2}}
        paint.append([["data", i, "marker", "color"], f"looks.{place}"])
    return paint


def legend_height(comparison: Comparison) -> int:
    """Pixels of a legend's lines after the first, about, in half a window."""
    longest = max((len(arm.arm) for arm in comparison.arms), default=0)
    beside = max(1, int(560 / (44 + LETTER * longest)))
    return 19 * ((len(comparison.arms) - 1) // beside)


def legend() -> dict[str, Any]:
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    return {"showlegend": True, "legend": {**place, "itemclick": False, "itemdoubleclick": False}}


def _noted(figure: Figure, notes: Sequence[tuple[float, str]], least: int) -> Figure:
    """With a note to the right of rows, and the room that they need."""
    place = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 10}
    figure["layout"]["annotations"] += [_note(text, y=y, **place) for y, text in notes]
    longest = max((len(part) for _, text in notes for part in text.split("<br>")), default=0)
    figure["layout"]["margin"]["r"] = max(least, 18 + round(LETTER * longest) if notes else 0)
    return figure


def _note(text: str, *, y: float, **place: Any) -> dict[str, Any]:
    return {"text": text, "y": y, "yanchor": "middle", "showarrow": False, "font": {"size": 11.5}, **place}
