"""Figures of a comparison as plain Plotly dictionaries: dots with 95 % intervals, drawn for a colour scheme.

An arm looks the same in every figure, and as on the dashboard and on paper (steering/looks.py).
`plotly.graph_objects.Figure(figure)` writes any of them as an image.

Axis names: row (a task, a trial, or their mean), from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steering.cells import Cell, Mean
from steering.compare import TRIALS, Arm, Comparison
from steering.looks import Look, looks
from steering.stats import Interval

Figure = dict[str, Any]
FONT = 'system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class Scheme:
    page: str
    surface: str
    line: str
    text: str
    muted: str


SCHEMES = {
    "light": Scheme("#f4f6f8", "#ffffff", "#dfe4ea", "#18222d", "#586574"),
    "dark": Scheme("#0e141b", "#161e27", "#2b3744", "#e4eaf0", "#9aa8b7"),
}


def css(name: str) -> str:
    """A scheme's colours as custom properties; dark is also what a reader's system may ask for."""
    s = SCHEMES[name]
    names = ("page", "surface", "line", "text", "muted")
    rules = "".join(f"--{n}:{getattr(s, n)};" for n in names) + f"color-scheme:{name};"
    return f"{':root' if name == 'light' else '[data-scheme=dark]'}{{{rules}}}\n"


def figures(comparison: Comparison, scheme: str = "light") -> list[tuple[str, str, Figure]]:
    """(title, caption, figure) of all that the comparison has data for."""
    against = comparison.against
    made = [
        (
            "Success by task",
            f"Left: success in closed loop, 95 % interval. Right: difference to {against} on the same episodes.",
            by_task(comparison, scheme),
        )
    ]
    if any(arm.trials for arm in comparison.arms):
        made.append(
            (
                "Robustness and forgetting",
                "Means over tasks and suites: what the cameras see, what is said, where things are; a task that nobody "
                f"trained; the tasks of pretraining, where a negative difference to {against} is forgetting.",
                by_trial(comparison, scheme),
            )
        )
    if sum(arm.trained[1] > 0 and arm.tasks == len(comparison.tasks) for arm in comparison.arms) > 1:
        made.append(
            ("Success against size", "Mean success by parameters trained.", by_size(comparison, scheme))
        )
    if any(_forgetting(arm) for arm in comparison.arms):
        made.append(
            (
                "What was won against what was lost",
                f"Differences to {against}: up is better on the tasks, right is better on the pretraining tasks.",
                by_forgetting(comparison, scheme),
            )
        )
    return made


def by_task(comparison: Comparison, scheme: str = "light") -> Figure:
    """Success and paired difference of every arm on every task, and their mean."""

    def found(arm: Arm, row: str) -> Cell | Mean | None:
        if row == "mean":
            return arm.success if arm.tasks == len(rows) - 1 else None
        return comparison.cell(arm.arm, row)

    arms = [arm for arm in comparison.arms if arm.success]
    rows = [task for task in comparison.tasks if any(comparison.cell(arm.arm, task) for arm in arms)]
    rows += ["mean"] if len(rows) > 1 else []
    return _panels(comparison, rows, found, scheme)


def by_trial(comparison: Comparison, scheme: str = "light") -> Figure:
    """Success and paired difference of every arm by factor, on the unseen task and on the pretraining tasks."""
    rows = [trial for trial in TRIALS if any(trial in arm.trials for arm in comparison.arms)]
    return _panels(comparison, rows, lambda arm, row: arm.trials.get(row), scheme)


def by_size(comparison: Comparison, scheme: str = "light") -> Figure:
    """Mean success against trained parameters; the baseline, which trains none, is a line."""
    data, shapes = [], []
    look = _looks(comparison)
    for arm in comparison.arms:
        if arm.success is None or arm.tasks < len(comparison.tasks):
            continue
        if arm.trained[1]:
            x = [sum(arm.trained) / 2]
            data.append(_points(arm, look[arm.arm], scheme, y=[arm.success.success], x=x, axis="y"))
        else:
            y = 100 * arm.success.success.value
            colour = _colour(look[arm.arm], scheme)
            shapes.append({
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
                "line": {"color": colour, "dash": "dot", "width": 1.5},
                "label": {"text": arm.arm, "textposition": "start", "font": {"color": colour}},
            })  # fmt: skip
    layout = _layout(scheme, height=380)
    layout["xaxis"] |= {"type": "log", "title": _title("trained parameters", scheme), "dtick": 1}
    layout["yaxis"] |= {"title": _title("mean success, %", scheme), "range": [-2, 102]}
    return {"data": data, "layout": {**layout, "shapes": shapes}}


def by_forgetting(comparison: Comparison, scheme: str = "light") -> Figure:
    """Difference on the tasks against the difference on the pretraining tasks."""
    data = []
    look = _looks(comparison)
    for arm in comparison.arms:
        lost = _forgetting(arm)
        if lost is None or arm.success is None or arm.success.difference is None:
            continue
        won, x = [arm.success.difference], [100 * lost.value]
        trace = _points(arm, look[arm.arm], scheme, y=won, x=x, axis="y", sign="+")
        trace["error_x"] = _bars([lost])
        data.append(trace)
    layout = _layout(scheme, height=400)
    for axis, text in (("xaxis", "pretraining tasks"), ("yaxis", "tasks adapted to")):
        title = f"{text}, points against {comparison.against}"
        layout[axis] |= {"title": _title(title, scheme), "zeroline": True}
    return {"data": data, "layout": layout}


# ---- parts


def _panels(
    comparison: Comparison,
    rows: Sequence[str],
    found: Callable[[Arm, str], Cell | Mean | None],
    scheme: str,
) -> Figure:
    """Success on the left, difference to the baseline on the right; the same rows in both."""
    data = []
    look = _looks(comparison)
    arms = [arm for arm in comparison.arms if any(found(arm, row) for row in rows)]
    for i, arm in enumerate(arms):
        shift = (i - (len(arms) - 1) / 2) * 0.72 / max(len(arms), 4)
        ours = look[arm.arm]
        cells = [(y + shift, cell) for y, row in enumerate(rows) if (cell := found(arm, row))]
        data.append(_points(arm, ours, scheme, x=[c.success for _, c in cells], y=[y for y, _ in cells]))
        known = [(y, c.difference) for y, c in cells if c.difference is not None]
        if known:
            right = _points(arm, ours, scheme, x=[d for _, d in known], y=[y for y, _ in known], sign="+")
            data.append({**right, "xaxis": "x2", "showlegend": False})
    paired = any(trace.get("xaxis") == "x2" for trace in data)
    layout = _layout(scheme, height=90 + round(len(rows) * max(46, 17 * len(arms))))
    layout["xaxis"] |= {
        "title": _title("success, %", scheme), "range": [-2, 102], "domain": [0, 0.49] if paired else [0, 1],
    }  # fmt: skip
    if paired:
        title = f"difference to {comparison.against}, points"
        layout["xaxis2"] = {
            **_axis(scheme), "title": _title(title, scheme), "domain": [0.53, 1], "zeroline": True, "anchor": "y",
        }  # fmt: skip
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [f"<b>{row}</b>" if row == "mean" else row for row in rows],
        "range": [len(rows) - 0.5, -0.5],
        "showgrid": False,
    }
    between = [{
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y - 0.5, "y1": y - 0.5,
        "line": {"color": SCHEMES[scheme].line, "width": 1},
    } for y in range(1, len(rows))]  # fmt: skip
    return {"data": data, "layout": {**layout, "shapes": between}}


def _points(
    arm: Arm,
    look: Look,
    scheme: str,
    *,
    x: Sequence[Any],
    y: Sequence[Any],
    axis: str = "x",
    sign: str = "",
) -> Figure:
    """One arm's dots; on `axis` lie intervals (fractions, drawn as percent), on the other numbers."""
    intervals: Sequence[Interval] = x if axis == "x" else y
    centres = [100 * i.value for i in intervals]
    hollow = look.symbol.endswith("-open")
    return {
        "type": "scatter",
        "mode": "markers",
        "name": arm.arm,
        "legendgroup": arm.arm,
        "x": centres if axis == "x" else list(x),
        "y": list(y) if axis == "x" else centres,
        f"error_{axis}": _bars(intervals),
        "marker": {
            "size": 9,
            "symbol": look.symbol,
            "color": _colour(look, scheme),
            "line": {"width": 2 * hollow},
        },
        "customdata": [[100 * i.low, 100 * i.high] for i in intervals],
        "hovertemplate": (
            f"<b>{arm.arm}</b> %{{{axis}:{sign}.1f}} (95 % %{{customdata[0]:{sign}.1f}} to "
            f"%{{customdata[1]:{sign}.1f}})<extra></extra>"
        ),
    }


def _bars(intervals: Sequence[Interval]) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (i.high - i.value) for i in intervals],
        "arrayminus": [100 * (i.value - i.low) for i in intervals],
        "thickness": 1.8,
        "width": 0,
    }


def _forgetting(arm: Arm) -> Interval | None:
    kept = arm.trials.get("pretraining")
    return kept.difference if kept else None


def _looks(comparison: Comparison) -> dict[str, Look]:
    return looks(arm.arm for arm in comparison.arms)


def _colour(look: Look, scheme: str) -> str:
    return look.dark if scheme == "dark" else look.light


def _title(text: str, scheme: str) -> Figure:
    return {"text": text, "font": {"color": SCHEMES[scheme].muted, "size": 12.5}, "standoff": 8}


def _axis(scheme: str) -> Figure:
    s = SCHEMES[scheme]
    return {
        "gridcolor": s.line, "zerolinecolor": s.muted, "zeroline": False, "linecolor": s.line,
        "tickfont": {"color": s.text},
        "automargin": True,
    }  # fmt: skip


def _layout(scheme: str, height: int) -> Figure:
    s = SCHEMES[scheme]
    return {
        "height": height,
        "paper_bgcolor": s.surface,
        "plot_bgcolor": s.surface,
        "font": {"family": FONT, "size": 13, "color": s.text},
        "margin": {"l": 20, "r": 16, "t": 34, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"color": s.text}},
        "hoverlabel": {"bgcolor": s.surface, "font": {"color": s.text}, "bordercolor": s.line},
        "xaxis": _axis(scheme),
        "yaxis": _axis(scheme),
    }
