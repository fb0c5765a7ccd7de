"""Success against what it cost: trainable parameters, and the seconds of a training; pure.

Costs run over tasks and trainings: a dot stands in the middle of its range, a bar spans it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from app import outcomes, theme
from app.maps import Figure
from app.rates import Dot, bar, dress, legend, trace
from steering.compare import Arm, Comparison
from steering.results import IN_DOMAIN


def cost(comparison: Comparison, what: str, scheme: str) -> Figure:
    """Success, mean over tasks, against trainable "parameters" (logarithmic) or the "seconds" of a training.

    Arms that cost nothing stand at the left edge, before the axis begins to count.
    """
    clock = outcomes.clock(comparison)
    unit = "parameters" if what == "parameters" else f"{clock} seconds"
    known = [(arm, _price(arm, what, clock), arm.success) for arm in comparison.arms]
    paid = [end for _, price, mean in known if price and mean is not None for end in price if end]
    logarithmic = what == "parameters"
    least, most = (min(paid), max(paid)) if paid else (1.0, 10.0)
    edge = 10 ** (math.floor(math.log10(least)) - 0.5) if logarithmic else 0.0
    data = []
    for arm, price, mean in known:
        cells = [cell for cell in comparison.cells if (cell.arm, cell.suite) == (arm.arm, IN_DOMAIN)]
        rests = f"{_priced(price, unit)}<br>{outcomes.rests_on(cells, arm)}" if cells else ""
        dots = [Dot(mean.success, 0.0, rests)] if mean is not None and price is not None else []
        hover = "%{y:.1f} % (95 % %{customdata[0]:.1f} to %{customdata[1]:.1f})<br>%{text}"
        one = trace(arm.arm, dots, hover)
        low, high = price or (0.0, 0.0)
        at = [(low + high) / 2 or edge for _ in dots]
        one |= {"x": at, "y": one["x"], "error_y": one["error_x"]}
        one["error_x"] = bar(at, [low or edge for _ in dots], [high or edge for _ in dots])
        data.append(one)
    paint = dress(data, scheme)
    title = "trainable parameters" if logarithmic else f"{unit} of one training"
    axis: dict[str, Any] = {"title": {"text": title, "standoff": 6}, "zeroline": False, "fixedrange": True}
    if logarithmic:
        ticks = log_ticks(least, most)
        free = [arm for arm, price, _ in known if price == (0, 0)]
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
                "paint": paint,
                "rows": [
                    _row(comparison, arm, price, unit) for arm, price, mean in known if mean is not None
                ],
            },
            **legend(),
        },
    }


def _row(comparison: Comparison, arm: Arm, price: tuple[float, float] | None, unit: str) -> dict[str, Any]:
    """What is exported of an arm."""
    assert arm.success is not None
    cells = [cell for cell in comparison.cells if (cell.arm, cell.suite) == (arm.arm, IN_DOMAIN)]
    low, high = price or (None, None)
    named = unit.replace(" ", "_")
    rate = arm.success.success
    return {
        "arm": arm.arm,
        f"{named}_least": low,
        f"{named}_most": high,
        "success_percent": round(100 * rate.value, 4),
        "low": round(100 * rate.low, 4),
        "high": round(100 * rate.high, 4),
        "tasks": len(cells),
        "n": outcomes.span(cell.n for cell in cells),
        "seeds": outcomes.span(outcomes.seeds(cell, arm) for cell in cells),
    }


def log_ticks(least: float, most: float) -> list[float]:
    """Powers of ten; where that is one or none within the data, 2 and 5 times them too."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    steps: Sequence[int] = (1, 2, 5) if math.log10(most / least) < 1.5 else (1,)
    ticks = [float(step * 10**d) for d in decades for step in steps]
    return [tick for tick in ticks if least / 2 <= tick <= 2 * most] if len(steps) > 1 else ticks


def _price(arm: Arm, what: str, clock: str) -> tuple[float, float] | None:
    """From the least to the most; None if it is not known."""
    if what == "parameters":
        return arm.trained[0] or arm.trained[1], arm.trained[
            1
        ]  # a result that does not say is no arm that is free
    spent = arm.train_processor if clock == "processor" else arm.train_seconds
    return spent if spent is not None or arm.trained[1] else (0.0, 0.0)


def _priced(price: tuple[float, float] | None, unit: str) -> str:
    return "not known" if price is None else f"{_ends(price)} {unit}"


def _ends(price: tuple[float, float]) -> str:
    return " to ".join(dict.fromkeys(f"{end:,.0f}" for end in price))


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
