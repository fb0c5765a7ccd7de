"""The few components that pages share: prose, notices, empty states, the export menu, the colour bar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import dash_ag_grid as dag
from dash import dcc, html
from dash.development.base_component import Component

from app.maps import Figure, Frame
from app.views import Panel, View, direction, ticks

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


def export_menu(source: str, figure: bool = True) -> html.Details:
    """A figure and the numbers behind it to take away. `source` is the id of the element that holds the figure, or a
    name under which the page has registered what is exported (assets/export.js, which also closes the menu).

    A native disclosure: Mantine's menu puts aria-expanded on a wrapper that may not have it.
    """
    pictures = (("png", "Figure, PNG"), ("svg", "Figure, SVG")) if figure else ()
    items = (*pictures, ("csv", "Numbers, CSV"), ("json", "Numbers, JSON"))
    buttons = [
        html.Button(label, id={"type": "export", "source": source, "what": what}, type="button")
        for what, label in items
    ]
    return html.Details(
        [html.Summary("Export", id=f"{source}-export"), html.Div(buttons, className="rs-menu-list")],
        className="rs-menu",
    )


def head_grid(
    name: str, rows: list[dict[str, Any]], columns: list[dict[str, Any]], *, click_selects: bool, **more: Any
) -> dag.AgGrid:
    """A table of heads that shows the selection and chooses too (assets/table.js). A row's `id` is the written head."""
    selection = {
        "mode": "multiRow",
        "checkboxes": True,
        "headerCheckbox": True,
        "selectAll": "filtered",
        "enableClickSelection": click_selects,
        "enableSelectionWithoutKeys": True,
    }
    options = {
        "theme": GRID_THEME,
        "rowSelection": selection,
        "selectionColumnDef": {"width": 34, "pinned": "left", "resizable": False},
        "animateRows": False,
    }
    return dag.AgGrid(
        id=name,
        rowData=rows,
        columnDefs=columns,
        defaultColDef={"sortable": True, "resizable": True, "suppressHeaderMenuButton": True},
        getRowId="params.data.id",
        className="rs-head-grid",
        eventListeners={
            "selectionChanged": ["headsChosen(params)"],
            "rowDataUpdated": ["headsShown(params)"],
            **more.pop("listeners", {}),
        },
        dashGridOptions=options | more.pop("options", {}),
        style={"height": "100%", "width": "100%"},
        **more,
    )


def figure(name: Any, height: int, drawn: Figure | None = None, config: Any = STILL) -> html.Div:
    """A figure in its place, which is as high before it is drawn: nothing jumps when it is."""
    shown: dict[str, Any] = {} if drawn is None else {"figure": drawn}
    graph = dcc.Graph(id=name, config=config, responsive=True, style={"height": f"{height}px"}, **shown)
    return html.Div(graph, style={"minHeight": f"{height}px"})


def layer(frame: Frame) -> html.Div:
    """A sheet over a figure on which the browser draws the selection (assets/maps.js)."""
    box = " ".join(f"{value:.8g}" for value in frame.box)
    return html.Div(
        className="rs-layer", style={"inset": frame.inset}, **attributes(data_box=box, aria_hidden="true")
    )


def card(
    title: str,
    about: str,
    *content: Component,
    menu: Component | None = None,
    wide: bool = False,
    **more: Any,
) -> html.Section:
    """A card with a title, a line that says what is shown, and the menu to export it."""
    end = [html.Div(menu, className="rs-bar-end")] if menu is not None else []
    head = html.Div([html.H2(title), html.P(about), *end], className="rs-card-title")
    return html.Section([head, *content], className="rs-card wide" if wide else "rs-card", **more)


def colour_bar(view: View, panel: Panel) -> html.Div:
    """The colour scale of a panel: what it measures, in which units, and which end is better."""
    low, high = view.range(panel)
    better = "right" if view.better_up(panel) else "left"
    marks: list[Any] = []
    for value in ticks(low, high):
        at = 100 * (value - low) / (high - low)
        edge = " first" if at < 4 else " last" if at > 96 else ""
        marks.append(html.Span(f"{value + 0.0:g}", style={"left": f"{at:.2f}%"}, className=edge.strip()))
    arrow = "← better" if better == "left" else "better →"
    if view.scale == "rank":
        measured, which = "rank within the map", "1 is best"
    else:
        measured, which = panel.scores.units or "score", direction(panel.scores)
    name = [html.B(measured), html.Em(f" · {which} ({arrow})")]
    return html.Div(
        [
            html.Div(name, className="rs-scale-name"),
            html.Div(className="rs-scale-ramp", style={"--rs-direction": f"to {better}"}),
            html.Div(marks, className="rs-scale-ticks rs-number"),
        ],
        className="rs-scale",
    )
