"""The timeline under the Watch page's pictures: one figure, one row a kind of signal, all over the same frames. Pure.

Rows, top to bottom: the action dimensions in groups that share a unit, demonstrated and predicted; what each shown head
adds to the action; where the leading head's attention goes, stacked by part of the input. The cursor is not in the
figure: the browser moves a line over it (assets/watch.js), in the coordinates of `MARGIN` and the frame axis.
Axis names: frame; part, of the input (interp/mass.py); action, a dimension of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from app import theme
from app.maps import Figure

ROW, GAP = 86, 22  # pixels of a row and between rows
MARGIN = {"l": 58, "r": 168, "t": 20, "b": 38}
PADDING = "padding"
COLOURS = 5  # of theme.Scheme.arms after the first, which is grey


@dataclass(frozen=True)
class Line:
    """A shown head (or its twin) and what it adds to the action; None for heads that add nothing by themselves."""

    name: str
    contribution: Float[np.ndarray, "frame action"] | None


@dataclass(frozen=True)
class Episode:
    """What the timeline is drawn from. Actions in the robot's units, contributions in normalised units."""

    names: Sequence[str]
    demonstrated: Float[np.ndarray, "frame action"] | None
    predicted: Mapping[str, Float[np.ndarray, "frame action"]]
    """By take, the one on the screen first."""
    lines: Sequence[Line]
    leading: str
    parts: Sequence[str]
    mass: Float[np.ndarray, "frame part"]

    @property
    def frames(self) -> int:
        return len(self.mass)


def groups(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Action dimensions that share a row: neighbours whose names differ in an axis or a number at their end.

    `dx dy dz drotation_x drotation_y drotation_z gripper` are three rows, `action_0 ... action_6` are one.
    """
    out: list[tuple[str, list[int]]] = []
    for at, name in enumerate(names):
        stem = re.sub(r"[_.]?([xyz]|roll|pitch|yaw|\d+)$", "", name) or name
        if out and out[-1][0] == stem:
            out[-1][1].append(at)
        else:
            out.append((stem, [at]))
    return [(_title(stem, [names[i] for i in own]), own) for stem, own in out]


def _title(stem: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return "translation" if stem == "d" else "rotation" if "rot" in stem else stem


def folded(
    parts: Sequence[str], mass: Float[np.ndarray, "frame part"]
) -> dict[str, Float[np.ndarray, " frame"]]:
    """Mass by part with all padding in one; parts that get none are left out."""
    out: dict[str, np.ndarray] = {}
    for at, part in enumerate(parts):
        name = PADDING if part.endswith("/padding") else part.removeprefix("image/")
        out[name] = out.get(name, 0) + mass[:, at]
    shown = {name: values for name, values in out.items() if values.max(initial=0) > 1e-6}
    return {name: shown[name] for name in sorted(shown, key=lambda name: name == PADDING)}


def timeline(episode: Episode, dimension: int | None, scheme: str) -> Figure:
    """`dimension` of the action whose contributions are shown; None for their norm over all dimensions."""
    rows = [*groups(episode.names), ("what the head adds to the action", []), ("where it attends", [])]
    drawn = _Drawing(scheme, len(rows), episode.frames)
    for row, (title, dims) in enumerate(rows[:-2]):
        _actions(drawn, row, title, dims, episode)
    _contributions(drawn, len(rows) - 2, episode, dimension)
    drawn.title(len(rows) - 1, f"where {episode.leading} attends, share of its attention")
    for place, (part, values) in enumerate(folded(episode.parts, episode.mass).items()):
        drawn.area(len(rows) - 1, part, values, "hatch" if part == PADDING else f"arms.{1 + place % COLOURS}")
    return drawn.figure("Timeline of the episode")


def height(names: Sequence[str]) -> int:
    """Pixels of `timeline`."""
    rows = len(groups(names)) + 2
    return MARGIN["t"] + MARGIN["b"] + rows * ROW + (rows - 1) * GAP


def _actions(drawn: _Drawing, row: int, title: str, dims: Sequence[int], episode: Episode) -> None:
    """Of one take, demonstrated (solid) and predicted (dotted); of two takes, what is predicted for each."""
    curves = {f"predicted, {name}": values for name, values in episode.predicted.items()}
    if len(curves) == 1:
        curves = {"predicted": next(iter(curves.values()))}
        if episode.demonstrated is not None:
            curves = {"demonstrated": episode.demonstrated, **curves}
    solid, *dotted = curves
    drawn.title(row, title + (f" (dotted: {dotted[0]})" if dotted else f", {solid}"))
    for place, dim in enumerate(dims):
        colour = f"arms.{1 + place % COLOURS}"
        for name, values in curves.items():
            dash = "2px,2px" if name in dotted else None
            full = f"{episode.names[dim]}, {name}"
            drawn.line(row, full, values[:, dim], colour, dash, None if dash else episode.names[dim])


def _contributions(drawn: _Drawing, row: int, episode: Episode, dimension: int | None) -> None:
    what = "all dimensions, norm" if dimension is None else episode.names[dimension]
    drawn.title(row, f"what the head adds to the first action: {what}, normalised units")
    known = [
        (place, line.name, line.contribution)
        for place, line in enumerate(episode.lines)
        if line.contribution is not None
    ]
    for place, name, wrote in known:
        values = np.linalg.norm(wrote, axis=1) if dimension is None else wrote[:, dimension]
        drawn.line(row, f"adds, {name}", values, f"arms.{1 + place % COLOURS}", label=name)
    if not known:
        drawn.say(row, "heads of the vlm write no action themselves: the expert's heads read them")


class _Drawing:
    """Rows of a figure; remembers what to repaint in the other scheme (`layout.meta.paint`)."""

    def __init__(self, scheme: str, rows: int, frames: int) -> None:
        self.colours, self.rows, self.frames = theme.SCHEMES[scheme], rows, frames
        self.data: list[dict[str, Any]] = []
        self.paint: list[list[Any]] = []
        self.names: list[str] = []
        total = rows * ROW + (rows - 1) * GAP
        self.tops = [1 - row * (ROW + GAP) / total for row in range(rows)]
        self.share = ROW / total
        last = rows - 1
        still = {"zeroline": False, "fixedrange": True}
        self.layout: dict[str, Any] = {
            "template": theme.plotly_layout(scheme),
            "margin": MARGIN,
            "hovermode": "x",
            "dragmode": False,
            "annotations": [],
            "uirevision": "timeline",
            "xaxis": {
                **still,
                "range": [-0.5, max(frames - 0.5, 0.5)],
                "title": {"text": "frame", "standoff": 4},
                "anchor": _axis("y", last),
                "showgrid": False,
            },
        }
        for row, top in enumerate(self.tops):
            ends = [max(top - self.share, 0), top]
            self.layout[_axis("yaxis", row)] = {**still, "domain": ends, "nticks": 4}
            legend = {"x": 1.01, "xanchor": "left", "y": top, "yanchor": "top", "font": {"size": 10.5}}
            legend |= {"bgcolor": "rgba(0,0,0,0)", "itemclick": False, "itemdoubleclick": False}
            legend |= {"tracegroupgap": 0, "indentation": -6}
            self.layout[_axis("legend", row)] = legend
        self.layout[_axis("yaxis", last)] |= {"range": [0, 1], "tickformat": ".0%"}

    def line(
        self,
        row: int,
        name: str,
        values: np.ndarray,
        colour: str,
        dash: str | None = None,
        label: str | None = None,
    ) -> None:
        """`name` is the curve's in hover and export, `label` in the legend; without one it is left out there."""
        line = {"width": 1.6, "color": self._colour(colour)} | ({"dash": dash} if dash else {})
        self._add(row, name, values, {"line": line}, ["line", "color"], colour, label)

    def area(self, row: int, name: str, values: np.ndarray, colour: str) -> None:
        shown = {"stackgroup": "parts", "line": {"width": 0}, "fillcolor": self._colour(colour) + "b0"}
        self._add(row, name, values, shown, ["fillcolor"], f"{colour}/b0", name)

    def title(self, row: int, text: str) -> None:
        self._note(text, x=0, y=self.tops[row], yref="paper", yanchor="bottom", xanchor="left", yshift=1)

    def say(self, row: int, text: str) -> None:
        middle = self.tops[row] - self.share / 2
        self._note(text, x=0.01, y=middle, yref="paper", yanchor="middle", xanchor="left")

    def figure(self, title: str) -> Figure:
        columns = [trace["y"] for trace in self.data]
        rows = [
            {"frame": frame, **dict(zip(self.names, at, strict=True))}
            for frame, at in enumerate(zip(*columns, strict=True))
        ]
        meta = {"title": title, "name": "timeline", "paint": self.paint, "rows": rows}
        return {"data": self.data, "layout": {**self.layout, "meta": meta}}

    def _add(
        self,
        row: int,
        name: str,
        values: np.ndarray,
        shown: Mapping[str, Any],
        path: list[Any],
        token: str,
        label: str | None,
    ) -> None:
        self.names.append(name)
        self.paint.append([["data", len(self.data), *path], token])
        self.data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label or name,
                "showlegend": label is not None,
                "x0": 0,
                "dx": 1,
                "y": [float(f"{value:.5g}") for value in values],
                "yaxis": _axis("y", row),
                "legend": _axis("legend", row),
                "hovertemplate": f"%{{y:.3g}} {name}<extra></extra>",
                **shown,
            }
        )

    def _note(self, text: str, **place: Any) -> None:
        self.layout["annotations"].append(
            {"text": text, "xref": "paper", "showarrow": False, "font": {"size": 11}, **place}
        )

    def _colour(self, token: str) -> str:
        name, _, at = token.partition(".")
        found = getattr(self.colours, name)
        return str(found[int(at)] if at else found)


def _axis(name: str, row: int) -> str:
    return name if row == 0 else f"{name}{row + 1}"
