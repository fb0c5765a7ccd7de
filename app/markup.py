"""Components as plain HTML: a picture of them for the moment before Dash can draw them.

Dash's own HTML components become the tags that they are; of Mantine's controls there is a box with their words, in
their place and size; a head map becomes an SVG. What cannot be seen yet (tables, other figures, what opens on a click)
leaves its room empty. Ids are left out: nothing here can be mistaken for what it is a picture of.

Colours are classes `q0` (worst) to `q31` (best) and custom properties, so that one picture serves light and dark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from dash.development.base_component import Component

from app import theme
from app.maps import MARGIN, TRACES, Figure
from interp.heads import Head

LEVELS = 32
ATTRIBUTES = {"className": "class", "hidden": "hidden", "href": "href", "title": "title", "role": "role"}
# heights of Mantine's controls, pixels
XS, COMPACT_XS, COMPACT_SM = 30, 22, 26


@dataclass(frozen=True)
class Markup:
    """How components look while `run` is on the screen at `path` with these heads chosen."""

    path: str
    run: str | None = None
    heads: Sequence[Head] = ()

    def of(self, part: Any, tower: str = "") -> str:
        """The HTML of a component, of text, or of several of both. `tower`: whose map it is in."""
        if part is None or isinstance(part, bool):
            return ""
        if isinstance(part, Component):
            drawn = part.to_plotly_json()
            props = drawn["props"]
            if drawn["namespace"] == "dash_html_components":
                return self._tag(drawn["type"].lower(), props, tower)
            draw = DRAWN.get(drawn["type"])
            return draw(self, props) if draw else ""
        if isinstance(part, Sequence) and not isinstance(part, str):
            return "".join(self.of(one, tower) for one in part)
        return escape(str(part))

    def _tag(self, name: str, props: Mapping[str, Any], tower: str) -> str:
        tower = props.get("data-tower", tower)
        inside = self.of(props.get("children"), tower)
        if props.get("className") == "rs-layer" and tower:
            inside = _outlines(props["data-box"], [head for head in self.heads if head.tower == tower])
        elif props.get("id") == "count" and self.heads:
            inside = "1 head selected" if len(self.heads) == 1 else f"{len(self.heads)} heads selected"
        elif props.get("id") == "chosen" and self.heads:
            inside = "  ".join(map(str, self.heads))
            props = {**props, "className": "rs-chips"}
        said = [
            f' {called}="{escape(str(props[prop]))}"' if props[prop] is not True else f" {called}"
            for prop, called in ATTRIBUTES.items()
            if props.get(prop) not in (None, False)
        ]
        said += [f' {key}="{escape(str(value))}"' for key, value in props.items() if key.startswith("aria-")]
        style = "".join(f"{_dashed(key)}:{value};" for key, value in (props.get("style") or {}).items())
        said += [f' style="{escape(style)}"'] if style else []
        return f"<{name}{''.join(said)}>{inside}</{name}>"

    def _link(self, props: Mapping[str, Any]) -> str:
        name = props.get("className", "active" if props["href"] == self.path else "")
        return f'<a class="{name}" href="{escape(props["href"])}">{self.of(props["children"])}</a>'

    def _select(self, props: Mapping[str, Any]) -> str:
        value = self.run if props.get("id") == "run" else props.get("value")
        return _box(_label(props.get("data"), value), XS, props.get("w"), "field")

    def _segments(self, props: Mapping[str, Any]) -> str:
        chosen = _label(props["data"], props.get("value"))
        words = (_label([option], _value(option)) for option in props["data"])
        return "".join(
            f'<span class="rs-first-segment{" on" if word == chosen else ""}">{escape(word)}</span>'
            for word in words
        ).join(('<span class="rs-first-segments">', "</span>"))

    def _button(self, props: Mapping[str, Any]) -> str:
        height = {"compact-xs": COMPACT_XS, "compact-sm": COMPACT_SM}.get(props.get("size", ""), XS)
        return _box(str(props.get("children", "")), height, None, str(props.get("variant", "filled")))

    def _first_child(self, props: Mapping[str, Any]) -> str:
        """A popover is closed: of it there is what opens it."""
        return self.of(props["children"][0])

    def _children(self, props: Mapping[str, Any]) -> str:
        return self.of(props.get("children"))

    def _graph(self, props: Mapping[str, Any]) -> str:
        figure: Figure = props["figure"]
        drawn = head_map(figure) if figure["data"] and figure["data"][0]["type"] == "heatmap" else ""
        return f'<div style="position:relative;height:{props["style"]["height"]}">{drawn}</div>'


DRAWN: Mapping[str, Callable[[Markup, Mapping[str, Any]], str]] = {
    "Link": Markup._link,
    "Select": Markup._select,
    "SegmentedControl": Markup._segments,
    "Button": Markup._button,
    "ColorSchemeToggle": lambda markup, props: _box("", XS, XS, "field"),
    "Popover": Markup._first_child,
    "PopoverTarget": Markup._children,
    "MantineProvider": Markup._children,
    "Graph": Markup._graph,
}


def head_map(figure: Figure) -> str:
    """A layer x head map as `maps.head_map` describes it, at the same place in its frame."""
    cells, hatch = (figure["data"][TRACES.index(name)] for name in ("cells", "hatch"))
    scale = figure["layout"]["coloraxis"]
    worst, best = scale["cmin"], scale["cmax"]
    if scale["reversescale"]:
        worst, best = best, worst
    z = np.array(cells["z"], dtype=float)
    layers, heads = z.shape
    at: dict[int, list[str]] = defaultdict(list)
    for layer, head in zip(*np.nonzero(np.isfinite(z)), strict=True):
        share = min(max((z[layer, head] - worst) / (best - worst), 0.0), 1.0)
        at[round(share * (LEVELS - 1))].append(f"M{head} {layer}h1v1h-1z")
    paths = [f'<path class="q{level}" d="{"".join(d)}"/>' for level, d in sorted(at.items())]
    between = "".join(f"M{i} 0V{layers}" for i in range(1, heads))
    between += "".join(f"M0 {i}H{heads}" for i in range(1, layers))
    paths.append(f'<path class="between" style="stroke-width:{cells["xgap"]}px" d="{between}"/>')
    paths.append(f'<path class="hatch" d="{_broken(hatch["x"], hatch["y"])}"/>')
    inset = " ".join(f"{MARGIN[side]}px" for side in "trbl")
    inside = f'<svg viewBox="0 0 {heads} {layers}" preserveAspectRatio="none">{"".join(paths)}</svg>'
    for side, axis, n in (("left", "xaxis", heads), ("top", "yaxis", layers)):
        for i in range(0, n, figure["layout"][axis]["dtick"]):
            inside += f'<i class="{axis}" style="{side}:{100 * (i + 0.5) / n:.3f}%">{i}</i>'
        inside += f'<b class="{axis}">{figure["layout"][axis]["title"]["text"]}</b>'
    return f'<div class="rs-first-map" style="inset:{inset}">{inside}</div>'


def style() -> str:
    """The colours of the levels."""
    stops = len(theme.SCHEMES["light"].worst_to_best)
    rules = []
    for level in range(LEVELS):
        low, share = divmod(level * (stops - 1) / (LEVELS - 1), 1)
        low, share = (stops - 2, 1.0) if low == stops - 1 else (low, share)
        mixed = f"color-mix(in srgb,var(--rs-ramp-{low + 1:.0f}) {100 * share:.1f}%,var(--rs-ramp-{low:.0f}))"
        rules.append(f".q{level}{{fill:{mixed}}}")
    return "".join(rules)


def _outlines(box: str, heads: Iterable[Head]) -> str:
    """Chosen cells, as assets/maps.js draws them."""
    x0, y0, x1, y1 = map(float, box.split())
    d = "".join(
        f"M{h.index - 0.47 - x0:g} {h.layer - 0.47 - y0:g}h.94v.94h-.94z"
        for h in heads
        if h.index < x1 and h.layer < y1
    )
    paths = f'<path class="rs-halo" d="{d}"/><path class="rs-outline" d="{d}"/>'
    return f'<svg viewBox="0 0 {x1 - x0:g} {y1 - y0:g}" preserveAspectRatio="none">{paths}</svg>'


def _broken(xs: Sequence[float | None], ys: Sequence[float | None]) -> str:
    """A line that is broken at None, in cells' coordinates, as a path."""
    d, pen = "", "M"
    for x, y in zip(xs, ys, strict=True):
        if x is None or y is None:
            pen = "M"
        else:
            d += f"{pen}{x + 0.5:.2f} {y + 0.5:.2f}"
            pen = "L"
    return d


def _box(text: str, height: int, width: int | None, kind: str) -> str:
    size = f"height:{height}px;line-height:{height - 2}px;" + (f"width:{width}px;" if width else "")
    return f'<span class="rs-first-box {kind}" style="{size}">{escape(text)}</span>'


def _value(option: Any) -> Any:
    return option["value"] if isinstance(option, Mapping) else option


def _label(options: Iterable[Any] | None, value: Any) -> str:
    found = next((option for option in options or () if _value(option) == value), value)
    return str(found["label"] if isinstance(found, Mapping) else found or "")


def _dashed(name: str) -> str:
    """camelCase, as React writes it, as CSS writes it."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name)
