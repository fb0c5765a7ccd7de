"""The parts of the overview: maps, ranked scores and table, each a card. What they do is in overview.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from app import maps, reading, views, widgets
from app.views import Panel, View


def map_card(groups: Mapping[str, Mapping[str, Any]], method: str, drawn: Mapping[str, Any]) -> Component:
    labels = {key: views.label_of(key, group) for key, group in groups.items()}
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    options = [
        {"value": key, "label": f"{label} ({key})" if label in twice else label}
        for key, label in labels.items()
    ]
    choose = dmc.Select(
        id="method",
        data=options,
        value=method,
        size="xs",
        w=290,
        allowDeselect=False,
        **widgets.attributes(aria_label="Method"),
    )
    bar = [
        widgets.field("Method", choose),
        widgets.field("Tower", _segments("tower", "Tower", drawn["towers"], drawn["tower"])),
        widgets.field("Colour", _segments("scale", "Colour scale", drawn["scales"], drawn["scale"])),
        html.Div(
            widgets.field("Table by", _segments("factor", "Table by", drawn["factors"], drawn["factor"])),
            id="factor-field",
            style=drawn["factor_style"],
        ),
        html.Div(widgets.export_menu("maps"), className="rs-bar-end"),
    ]
    return html.Section(
        [
            html.Div(bar, className="rs-bar"),
            html.Div(drawn["maps"], id="maps"),
            html.Div(drawn["foot"], id="foot", className="rs-foot"),
        ],
        className="rs-card",
        **widgets.attributes(aria_label="Maps of heads"),
    )


def _segments(name: str, label: str, data: Any, value: str | None) -> Component:
    named = widgets.attributes(aria_label=label)
    return dmc.SegmentedControl(id=name, data=data, value=value, size="xs", **named)


def head_maps(view: View, scheme: str) -> Component:
    """All maps of a view: of one tower equally wide, of several towers as wide as their heads ask for."""
    same = view.by != "tower"
    panels = [head_map(panel, view, scheme) for panel in view.panels]
    heads = max(panel.value.shape[1] for panel in view.panels)
    style = {"--rs-narrowest": f"{_narrowest(heads)}px"} if same else {}
    return html.Div(panels, className="rs-maps equal" if same else "rs-maps", style=style)


def _narrowest(heads: int) -> int:
    """Pixels of a map in which single cells are still seen and hit."""
    return maps.MARGIN["l"] + maps.MARGIN["r"] + max(150, heads * 10)


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
    about = f"Map of the {panel.tower} heads, {panel.key}: arrow keys walk, Enter selects, Escape leaves"
    frame = html.Div(
        [graph, widgets.layer(maps.map_frame(panel))],
        className="rs-map",
        style={"minHeight": f"{maps.map_height(panel, view)}px"},  # the plot comes a moment later
        tabIndex=0,
        role="application",
        **widgets.attributes(
            aria_label=about,
            data_panel=panel.key,
            data_tower=panel.tower,
            data_layers=str(layers),
            data_heads=str(heads),
            data_scored=str(panel.scored),
        ),
    )
    caption = reading.caption(panel) + ("" if view.by != "method" else f" · {panel.scores.label}")
    title = html.Div([html.H2(panel.key), html.Span(caption, title=caption)], className="rs-panel-title")
    share = {
        "--rs-share": str(heads),
        "--rs-narrowest": f"{_narrowest(heads)}px",
        "--rs-widest": f"{margin + heads * 96}px",
    }
    own = [widgets.colour_bar(view, panel)] if view.scale == "panel" else []
    return html.Div([title, frame, *own], className="rs-panel", style=share)


def foot(view: View) -> list[Component]:
    """Under the maps: the scale that they share, and what the marks mean."""
    shared = [] if view.scale == "panel" else [widgets.colour_bar(view, view.panels[0])]
    return [*shared, _keys(view)]


def _keys(view: View) -> Component:
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
        html.Span(drawn["ranked_of"], id="ranked-of", className="rs-muted"),
        html.Div(widgets.export_menu("ranked-plot"), className="rs-bar-end"),
    ]
    plot = html.Div(drawn["ranked"], id="ranked-plot", className="rs-points", style={"minHeight": "220px"})
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


def table_card(drawn: Mapping[str, Any]) -> Component:
    grid = widgets.head_grid("heads", drawn["rows"], drawn["columns"], click_selects=True)
    return html.Section(grid, className="rs-card rs-table", **widgets.attributes(aria_label="Table of heads"))


def columns(view: View, lead: Panel, scale: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of the table; every width is the least, and the room that is left is shared in proportion."""
    number: dict[str, Any] = {"filter": "agNumberColumnFilter", "type": "rightAligned"}
    score = {**number, "valueFormatter": {"function": "short(params.value)"}}

    def column(name: str, width: int, **more: Any) -> dict[str, Any]:
        return {"field": name, "headerName": name, "minWidth": width, "flex": width, **more}

    columns = [column("rank", 48, headerTooltip=views.RANK, **number)]
    if len({panel.tower for panel in view.panels}) > 1:
        columns.append(column("tower", 66, filter="agTextColumnFilter"))
    columns += [column("layer", 48, **number), column("head", 48, **number), column("score", 60, **score)]
    if view.keys:
        columns[-1]["headerName"] = lead.key
    if lead.grid.low is not None:
        glyph = {"cellRenderer": "Interval", "cellRendererParams": {"scale": scale}, "sortable": False}
        glyph["tooltipValueGetter"] = {"function": "interval(params)"}
        columns.append({**column("interval", 98), "headerName": "95 % interval", **glyph})
    others = [key for key in view.keys if key != lead.key]
    return columns + [{**column(f"score_{key}", 75, **score), "headerName": key} for key in others]
