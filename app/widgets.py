"""The few components that pages share: prose, notices, empty states, the export menu, the colour bar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from app.maps import Frame
from app.views import View, ticks

# what a figure may do on its own: choose by box or lasso; saving is the export menu's, nothing is ever uploaded
GRAPH: Any = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtons": [["select2d", "lasso2d"]],
    "displayModeBar": True,
    "doubleClick": False,
    "doubleClickDelay": 1,  # milliseconds: two quick clicks are two clicks, on two heads
}
STILL: Any = {**GRAPH, "displayModeBar": False}

# AG Grid in our colours; custom properties follow the colour scheme by themselves
GRID_THEME = {
    "function": "themeQuartz.withParams({"
    "backgroundColor: 'var(--rs-surface)', foregroundColor: 'var(--rs-text)', borderColor: 'var(--rs-line)',"
    "headerBackgroundColor: 'var(--rs-surface)', headerTextColor: 'var(--rs-muted)', accentColor: 'var(--rs-accent)',"
    "rowHoverColor: 'var(--rs-raised)', chromeBackgroundColor: 'var(--rs-raised)',"
    "selectedRowBackgroundColor: 'color-mix(in srgb, var(--rs-selected) 13%, transparent)',"
    "fontFamily: 'inherit', fontSize: 12, headerFontSize: 12, rowHeight: 27, headerHeight: 32, spacing: 5,"
    "cellHorizontalPadding: 8, wrapperBorder: false, wrapperBorderRadius: 0, columnBorder: false,"
    "browserColorScheme: 'inherit'})"
}


def attributes(**named: Any) -> dict[str, Any]:
    """HTML attributes with dashes in their names: `aria_label` for aria-label."""
    return {name.replace("_", "-"): value for name, value in named.items()}


def prose(text: str) -> html.P:
    """A paragraph with **bold** parts."""
    parts = re.split(r"\*\*(.+?)\*\*", text)
    return html.P([html.B(part) if i % 2 else part for i, part in enumerate(parts) if part])


def notices(lines: Sequence[str]) -> html.Div:
    """What the reader should know before reading on; nothing when there is nothing."""
    return html.Div(
        [html.Div(line, className="rs-notice", role="status") for line in lines], className="rs-notices"
    )


def empty(title: str, *lines: Component | str, error: str | None = None) -> html.Div:
    """The state of a page that has nothing to show: says what is missing and what to do."""
    lit = {1, 8, 9, 16} if error is None else {0, 5, 7, 10, 14, 15, 9, 8, 2, 3, 12, 17}
    ghost = html.Div([html.I(className="on" if i in lit else "") for i in range(18)], className="rs-ghost")
    body: list[Component] = [ghost, html.H1(title)]
    if error is not None:
        body.append(html.P(error, className="what"))
    body += [line if isinstance(line, Component) else html.P(line) for line in lines]
    return html.Div(body, className="rs-card rs-empty" + ("" if error is None else " rs-error"))


def code(text: str) -> html.Code:
    return html.Code(text)


def field(label: str, control: Component, of: str | None = None) -> html.Div:
    """A control with its label on the left; `of` is the id of the input that the label names."""
    name: Component = html.Label(label, htmlFor=of) if of else html.Span(label, className="rs-label")
    return html.Div([name, control], className="rs-field")


def export_menu(page: str, source: str, figure: bool = True) -> dmc.Menu:
    """A figure and the numbers of a page to take away; assets/export.js does it."""
    pictures = (("png", "Figure, PNG"), ("svg", "Figure, SVG")) if figure else ()
    items = (*pictures, ("csv", "Numbers, CSV"), ("json", "Numbers, JSON"))
    button = dmc.Button("Export", id=f"{source}-export", variant="subtle", color="gray", size="compact-xs")
    return dmc.Menu(
        [
            dmc.MenuTarget(button),
            dmc.MenuDropdown(
                [
                    dmc.MenuItem(
                        label, id={"type": f"export-{page}", "source": source, "what": what}, fz=12.5
                    )
                    for what, label in items
                ]
            ),
        ],
        position="bottom-end",
        shadow="md",
    )


def layer(frame: Frame) -> html.Div:
    """A sheet over a figure on which the browser draws the selection (assets/maps.js)."""
    box = " ".join(f"{value:.8g}" for value in frame.box)
    return html.Div(
        className="rs-layer", style={"inset": frame.inset}, **attributes(data_box=box, aria_hidden="true")
    )


def colour_bar(view: View) -> html.Div:
    """The scale of all maps of a view: what it measures, in which units, and which end is better."""
    low, high = view.range
    better = "right" if view.scores.higher_is_better else "left"
    marks: list[Any] = []
    for value in ticks(low, high):
        at = 100 * (value - low) / (high - low)
        edge = " first" if at < 4 else " last" if at > 96 else ""
        marks.append(html.Span(f"{value:g}", style={"left": f"{at:.2f}%"}, className=edge.strip()))
    arrow = "← better" if better == "left" else "better →"
    name = [html.B(view.scores.units or "score"), html.Em(f" · {view.direction} ({arrow})")]
    return html.Div(
        [
            html.Div(name, className="rs-scale-name", id="scale-name"),
            html.Div(className="rs-scale-ramp", style={"--rs-direction": f"to {better}"}),
            html.Div(marks, className="rs-scale-ticks rs-number"),
        ],
        className="rs-scale",
    )
