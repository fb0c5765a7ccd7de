"""Figures for a paper: one style, sizes in columns, vector files with the fonts in them.

These are matplotlib's, where the dashboard's are Plotly's: a page wants exact widths in inches, PDF with embedded
TrueType fonts, SVG whose letters are outlines, and the same bytes for the same data, without a browser.

An arm looks the same in every figure (steering/looks.py). Maps use cividis, which reads the same with and without
colour vision.

    with style():
        show(by_task(comparison), "success")        in a notebook; written to $ROBOSTEER_FIGURES too, if that is set
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.patches
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from interp.errors import UsageError
from interp.heads import Head
from interp.runs import write_atomic
from steering.cells import Cell, Mean
from steering.compare import Arm, Comparison
from steering.compare_figures import SCHEMES
from steering.looks import LOOKS
from steering.stats import Interval

COLUMN, PAGE = 3.35, 6.9
"""Widths in inches of a column and of a page of two."""
INK = SCHEMES["light"].text
MUTED = SCHEMES["light"].muted
LINE = SCHEMES["light"].line
FACTOR_COLOURS = {"visual": "#0072b2", "linguistic": "#c47a00", "physical": "#009e73"}

RESULTS_VARIABLE, FIGURES_VARIABLE = "ROBOSTEER_RESULTS", "ROBOSTEER_FIGURES"
ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks/results/reproduce"

STYLE: dict[Any, Any] = {  # the stubs know every key by name
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 7,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "svg.hashsalt": "robosteer",
}


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def use_style() -> None:
    """For the rest of a notebook."""
    matplotlib.rcParams.update(STYLE)


def results_directory() -> Path:
    """Where a notebook's data are: $ROBOSTEER_RESULTS, or the committed results."""
    return Path(os.environ.get(RESULTS_VARIABLE) or COMMITTED)


def new(width: float = COLUMN, height: float = 2.2) -> Figure:
    return Figure(figsize=(width, height))


def svg(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def save(figure: Figure, name: str, directory: str | Path) -> list[Path]:
    """`<name>.svg` and `<name>.pdf`."""
    pdf = io.BytesIO()
    with style():
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    written = []
    for kind, content in (("svg", svg(figure)), ("pdf", pdf.getvalue())):
        written.append(Path(directory) / f"{name}.{kind}")
        write_atomic(written[-1], content)
    return written


def show(figure: Figure, name: str) -> None:
    """Display in a notebook, and save where $ROBOSTEER_FIGURES says."""
    from IPython.display import SVG, display

    display(SVG(svg(figure)))
    if directory := os.environ.get(FIGURES_VARIABLE):
        save(figure, name, directory)


def need(found: object, what: str) -> None:
    """Fail in one line, rather than draw an empty figure."""
    if not found:
        raise UsageError(f"{results_directory()} has no {what}: make it with `robosteer reproduce`")


# ---- arms


def colour(arm: str) -> str:
    return LOOKS[_kind(arm)].light


def marker(arm: str) -> str:
    return LOOKS[_kind(arm)].marker


def _kind(arm: str) -> str:
    """By recipe: `aligned-k4` looks like `aligned`."""
    kinds = [kind for kind in LOOKS if arm == kind or arm.startswith(f"{kind}-")]
    return max(kinds, key=len) if kinds else "base"


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in fractions, on a row."""

    row: int
    interval: Interval


def dots(
    axes: Axes,
    rows: Sequence[str],
    series: Mapping[str, Sequence[Dot]],
    *,
    label: str,
    zero: bool = False,
    colours: Callable[[str], str] = colour,
    markers: Callable[[str], str] = marker,
) -> None:
    """Rows from top to bottom; in each, a dot with its 95 % interval for every series. Percent, or points."""
    for i, (name, found) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * 0.74 / max(len(series), 2)
        if not found:
            continue
        x = [100 * d.interval.value for d in found]
        y = [d.row + shift for d in found]
        spread = [
            [100 * (d.interval.value - d.interval.low) for d in found],
            [100 * (d.interval.high - d.interval.value) for d in found],
        ]
        face = "white" if name == "base" else colours(name)
        axes.errorbar(
            x, y, xerr=np.maximum(spread, 0), fmt=markers(name), color=colours(name),
            markerfacecolor=face, markersize=3.6, elinewidth=1, label=name,
        )  # fmt: skip
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0)
    for line in range(1, len(rows)):
        axes.axhline(line - 0.5, color=LINE, linewidth=0.6)
    axes.grid(True, axis="x")
    axes.set_xlabel(label)
    if zero:
        axes.axvline(0, color=MUTED, linewidth=0.9)
    else:
        axes.set_xlim(-3, 103)


def logarithmic(ax: Axes) -> None:
    """x in powers, ticks at 1, 2 and 5 written as 50k."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())


def legend(figure: Figure, axes: Axes, most: int = 6) -> None:
    """Above everything, outside of the panels, in even rows of at most `most` entries."""
    handles, names = axes.get_legend_handles_labels()
    rows = -(-len(names) // most)
    columns = -(-len(names) // rows) if rows else 1
    figure.legend(
        handles, names, loc="outside upper center", ncols=columns, columnspacing=1.2, handletextpad=0.3
    )


def by_task(comparison: Comparison, width: float = PAGE) -> Figure:
    """Success of every arm on every task and their mean, and the paired difference to the baseline."""
    arms = [arm for arm in comparison.arms if arm.success]
    rows = [task for task in comparison.tasks if any(comparison.cell(arm.arm, task) for arm in arms)]
    rows += ["mean"] if len(rows) > 1 else []

    def found(arm: Arm, row: str) -> Cell | Mean | None:
        if row == "mean":
            return arm.success if arm.tasks == len(rows) - 1 else None
        return comparison.cell(arm.arm, row)

    return panels(arms, rows, found, comparison.against, width)


def panels(
    arms: Sequence[Arm],
    rows: Sequence[str],
    found: Callable[[Arm, str], Cell | Mean | None],
    against: str | None,
    width: float = PAGE,
) -> Figure:
    """Left: success. Right: paired difference to the baseline, if there is one."""
    figure = new(width, 0.75 + len(rows) * max(0.3, 0.095 * len(arms)))
    left, *right = figure.subplots(1, 2 if against else 1, sharey=True, squeeze=False)[0]
    cells = {
        arm.arm: [(y, cell) for y, row in enumerate(rows) if (cell := found(arm, row)) is not None]
        for arm in arms
    }
    dots(left, rows, {a: [Dot(y, c.success) for y, c in cs] for a, cs in cells.items()}, label="success, %")
    differences = {
        a: [Dot(y, c.difference) for y, c in cs if c.difference is not None] for a, cs in cells.items()
    }
    for axes in right:
        dots(axes, rows, differences, label=f"difference to {against}, points", zero=True)
    legend(figure, left)
    return figure


# ---- heads


def head_map(
    axes: Axes,
    grid: Float[np.ndarray, "layer head"],
    *,
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    chosen: Iterable[Head] = (),
    cmap: str = "cividis",
) -> AxesImage:
    """Layers from top to bottom, heads from left to right; heads without a score are hatched, chosen ones outlined."""
    layers, heads = grid.shape
    axes.set_facecolor("#eceff2")
    image = axes.imshow(grid, cmap=cmap, vmin=low, vmax=high, aspect="equal", interpolation="nearest")
    for layer, head in np.argwhere(~np.isfinite(grid)):
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (head - 0.5, layer - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#b4bcc6", linewidth=0
            )
        )
    outlined = list(chosen)
    axes.plot(
        [h.index for h in outlined], [h.layer for h in outlined], "s",
        markersize=4.6, markerfacecolor="none", markeredgecolor="#d55e00", markeredgewidth=1,
    )  # fmt: skip
    axes.set_xticks(range(0, heads, max(1, heads // 4)))
    axes.set_yticks(range(0, layers, max(1, layers // 4)))
    axes.tick_params(length=0, pad=1.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, fontsize=6.8)
    return image
