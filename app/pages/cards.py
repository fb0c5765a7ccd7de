"""The parts of the overview: maps, ranked scores, selection and table, each a card. What they do is in overview.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from app import maps, reading, widgets
from app.views import Panel, View

TAKE = 20  # heads that "best" takes unless told otherwise; the published choice


def map_card(groups: Mapping[str, Mapping[str, Any]], method: str, drawn: Mapping[str, Any]) -> Component:
    labels = {key: next(iter(group.values())).label for key, group in groups.items()}
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    options = [
        {"value": key, "label": f"{label} ({key})" if label in twice else label}
        for key, label in labels.items()
    ]
    factor = dmc.SegmentedControl(id="factor", data=drawn["factors"], value=drawn["factor"], size="xs")
    bar = [
        widgets.field(
            "Method",
            dmc.Select(
                id="method",
                data=options,
                value=method,
                size="xs",
                w=290,
                allowDeselect=False,
                **widgets.attributes(aria_label="Method"),
            ),
        ),
        widgets.field(
            "Tower", dmc.SegmentedControl(id="tower", data=drawn["towers"], value=drawn["tower"], size="xs")
        ),
        html.Div(widgets.field("Table by", factor), id="factor-field", style=drawn["factor_style"]),
        html.Div(widgets.export_menu("heads", "maps"), className="rs-bar-end"),
    ]
    return html.Section(
        [
            html.Div(bar, className="rs-bar"),
            html.Div(drawn["maps"], id="maps", className="rs-maps"),
            html.Div(drawn["foot"], id="foot", className="rs-foot"),
        ],
        className="rs-card",
    )


def head_map(panel: Panel, view: View, scheme: str) -> Component:
    """One map in its frame. The frame takes the focus and the keys; its share of the row follows its heads."""
    layers, heads = panel.value.shape
    margin = maps.MARGIN["l"] + maps.MARGIN["r"]
    graph = dcc.Graph(
        id={"type": "head-map", "panel": panel.key, "tower": panel.tower},
        figure=maps.head_map(panel, view, scheme),
        config=widgets.GRAPH,
        responsive=True,
        style={"height": f"{maps.map_height(panel, view)}px"},
    )
    about = f"Map of the {panel.title} heads: arrow keys walk, Enter selects, Escape leaves"
    frame = html.Div(
        [graph, widgets.layer(maps.map_frame(panel))],
        className="rs-map",
        tabIndex=0,
        role="application",
        **widgets.attributes(
            aria_label=about,
            data_panel=panel.key,
            data_tower=panel.tower,
            data_layers=str(layers),
            data_heads=str(heads),
        ),
    )
    title = html.Div([html.H2(panel.title), html.Span(reading.caption(panel))], className="rs-panel-title")
    share = {
        "--rs-share": str(heads),
        "--rs-narrowest": f"{margin + max(186, heads * 10)}px",
        "--rs-widest": f"{margin + heads * 96}px",
    }
    return html.Div([title, frame], className="rs-panel", style=share)


def keys(view: View) -> Component:
    keys: list[Component] = [html.Span([html.I(className="rs-key-selected"), "selected"])]
    if any(panel.grid.dead for panel in view.panels):
        keys.append(html.Span([html.I(className="rs-key-dead"), "dead: reaches no action"]))
    keys.append(
        html.Span(["click, box or lasso; ", html.Kbd("arrows"), html.Kbd("Enter"), " with the keyboard"])
    )
    return html.Div(keys, className="rs-keys")


def ranked_card(drawn: Mapping[str, Any]) -> Component:
    head = [
        html.H2("Ranked heads"),
        html.Span("score by rank, 95 % band", className="rs-muted"),
        html.Div(widgets.export_menu("heads", "ranked"), className="rs-bar-end"),
    ]
    plot = html.Div(drawn["ranked"], id="ranked-plot", className="rs-ranked-plot")
    return html.Section([html.Div(head, className="rs-ranked-title"), plot], className="rs-card rs-ranked")


def ranked_plot(panels: Sequence[Panel], scheme: str) -> list[Component]:
    graph = dcc.Graph(
        id="ranked",
        figure=maps.ranked(panels, scheme),
        config=widgets.GRAPH,
        responsive=True,
        style={"height": "220px"},
    )
    return [graph, widgets.layer(maps.ranked_frame(panels))]


def selection_card(saved: Mapping[str, list[str]]) -> Component:
    named = widgets.attributes(aria_label="Selected heads")
    chosen = html.Div(id="chosen", className="rs-chips", tabIndex=0, role="region", **named)
    small: dict[str, Any] = {"size": "xs", "variant": "default"}
    return html.Section(
        [
            html.Div(
                [
                    html.H2("0 heads selected", id="count", **widgets.attributes(aria_live="polite")),
                    dmc.Button("Undo", id="undo", disabled=True, **small),
                    dmc.Button("Clear", id="clear", disabled=True, **small),
                ],
                className="rs-selection-head",
            ),
            chosen,
            html.Div(
                [
                    widgets.field(
                        "Take the best",
                        dmc.NumberInput(
                            id="best-k", value=TAKE, min=1, max=99_999, step=1, allowDecimal=False, size="xs", w=72,
                            **widgets.attributes(aria_label="How many heads to take"),
                        ),
                    ),
                    dmc.Button("Select", id="best", **small),
                    dmc.Select(
                        id="load", data=sorted(saved), placeholder="Load a saved set", size="xs", className="grow",
                        nothingFoundMessage="no saved sets", **widgets.attributes(aria_label="Load a saved set"),
                    ),
                ],
                className="rs-row",
            ),
            html.Div(
                [
                    dmc.TextInput(
                        id="save-name", placeholder="name of the set", size="xs", className="grow",
                        **widgets.attributes(aria_label="Name of the set"),
                    ),
                    dmc.Button("Save", id="save", size="xs", disabled=True),
                    dmc.Button("Download", id="take", disabled=True, **small),
                ],
                className="rs-row",
            ),
            html.Div(id="save-said", className="rs-said", role="status"),
        ],
        className="rs-card rs-selection",
    )  # fmt: skip


def table_card(drawn: Mapping[str, Any]) -> Component:
    selection = {
        "mode": "multiRow",
        "checkboxes": True,
        "headerCheckbox": True,
        "selectAll": "filtered",
        "enableClickSelection": True,
        "enableSelectionWithoutKeys": True,
    }
    grid = dag.AgGrid(
        id="heads",
        rowData=drawn["rows"],
        columnDefs=drawn["columns"],
        defaultColDef={"sortable": True, "resizable": True, "suppressHeaderMenuButton": True},
        getRowId="params.data.id",
        eventListeners={"selectionChanged": ["headsChosen(params)"]},
        dashGridOptions={
            "theme": widgets.GRID_THEME,
            "rowSelection": selection,
            "selectionColumnDef": {"width": 34, "pinned": "left", "resizable": False},
            "animateRows": False,
        },
        style={"height": "100%", "width": "100%"},
    )
    return html.Section(grid, className="rs-card rs-table", **widgets.attributes(aria_label="Table of heads"))


def columns(view: View, lead: Panel, scale: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of the table; every width is the least, and the room that is left is shared in proportion."""
    number: dict[str, Any] = {"filter": "agNumberColumnFilter", "type": "rightAligned"}
    score = {**number, "valueFormatter": {"function": "short(params.value)"}}

    def column(name: str, width: int, **more: Any) -> dict[str, Any]:
        return {"field": name, "headerName": name, "minWidth": width, "flex": width, **more}

    columns = [column("rank", 52, headerTooltip="rank within the tower, 1 is best", **number)]
    if len({panel.tower for panel in view.panels}) > 1:
        columns.append(column("tower", 66, filter="agTextColumnFilter"))
    columns += [column("layer", 54, **number), column("head", 54, **number), column("score", 62, **score)]
    if view.factors:
        columns[-1]["headerName"] = lead.key
    if any(panel.grid.low is not None for panel in view.panels):
        glyph = {"cellRenderer": "Interval", "cellRendererParams": {"scale": scale}, "sortable": False}
        columns.append({**column("interval", 104), "headerName": "95 % interval", **glyph})
        columns += [column("low", 60, **score), column("high", 60, **score)]
    others = [factor for factor in view.factors if factor != lead.key]
    return columns + [{**column(f"score_{factor}", 84, **score), "headerName": factor} for factor in others]
