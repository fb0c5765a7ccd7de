"""Compare: did it work? Results of rollouts side by side: success with Wilson intervals, the paired difference to the
baseline on the same episodes, and what each arm cost in parameters and time."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from app import outcomes, rates, reading, widgets
from app.library import Library
from app.pages.page import Page, Screen

PERCENT = {"function": "params.value == null ? '–' : (100 * params.value).toFixed(1) + ' %'"}
POINTS = {
    "function": "params.value == null ? '–' : (params.value > 0 ? '+' : '') + (100 * params.value).toFixed(1)"
}
COUNT = {"function": "params.value == null ? '–' : d3.format(',')(params.value)"}
SECONDS = {"function": "params.value == null ? '–' : d3.format(',.0f')(params.value)"}


def body(screen: Screen) -> Component:
    results, problems = outcomes.results_of(screen.run)
    if not results:
        return html.Div([widgets.notices(problems), _empty(screen)])
    groups = outcomes.grouped(results)
    height = f"{rates.rows_height(groups)}px"
    n = sorted({row.n for group in groups for row in group.rows})
    rollouts = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
    return html.Div(
        [
            widgets.notices(problems),
            html.Section(
                [
                    html.Div(
                        [html.H1("Before and after"), html.Div(_facts(screen), className="rs-facts")],
                        className="rs-title",
                    ),
                    *(widgets.prose(line) for line in outcomes.reading(groups)),
                ],
                className="rs-card rs-reading",
            ),
            html.Div(
                [
                    _card(
                        "Success in closed loop",
                        f"rate and 95 % Wilson interval; {rollouts} rollouts an arm",
                        _graph("success", rates.success(groups, screen.scheme), height),
                        widgets.export_menu("results", "success"),
                    ),
                    _card(
                        "Against the baseline",
                        "paired over the same episodes; 95 % bootstrap interval",
                        _graph("difference", rates.difference(groups, screen.scheme), height),
                        widgets.export_menu("results", "difference"),
                    ),
                    _card(
                        "What it cost",
                        "trainable parameters, time, memory",
                        _table(groups),
                        widgets.export_menu("results", "results", figure=False),
                        wide=True,
                    ),
                ],
                className="rs-compare",
            ),
            dcc.Store(id="results-meta", data={"run": screen.run.name, "policy": screen.run.policy}),
        ]
    )


def connect(app: Dash, library: Library) -> None:
    app.clientside_callback(
        ClientsideFunction("robosteer", "exportResults"),
        Input({"type": "export-results", "source": ALL, "what": ALL}, "n_clicks"),
        State("results", "rowData"),
        State("results-meta", "data"),
        State("themes", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("robosteer", "dress"),
        Output("success-figure", "figure"),
        Output("difference-figure", "figure"),
        Input("scheme", "data"),
        State("themes", "data"),
        prevent_initial_call=True,
    )


def _facts(screen: Screen) -> list[html.Span]:
    return [html.Span(fact) for fact in reading.facts(screen.run)]


def _card(title: str, about: str, content: Component, menu: Component, wide: bool = False) -> html.Section:
    head = html.Div(
        [html.H2(title), html.P(about), html.Div(menu, className="rs-bar-end")], className="rs-card-title"
    )
    return html.Section([head, content], className="rs-card wide" if wide else "rs-card")


def _graph(name: str, figure: dict[str, Any], height: str) -> dcc.Graph:
    return dcc.Graph(
        id=f"{name}-figure",
        figure=figure,
        config=widgets.STILL,
        responsive=True,
        style={"height": height},
    )


def _table(groups: list[outcomes.Group]) -> dag.AgGrid:
    def column(
        name: str, header: str, width: int, show: dict[str, str] | None = None, **more: Any
    ) -> dict[str, Any]:
        number = (
            {}
            if show is None
            else {"valueFormatter": show, "type": "rightAligned", "filter": "agNumberColumnFilter"}
        )
        return {"field": name, "headerName": header, "width": width, **number, **more}

    return dag.AgGrid(
        id="results",
        rowData=outcomes.table(groups),
        columnDefs=[
            column("task", "task", 160, minWidth=120, flex=1),
            column("label", "arm", 120, minWidth=90, flex=1, tooltipField="name"),
            column("success", "success", 90, PERCENT),
            column("low", "95 % low", 90, PERCENT),
            column("high", "95 % high", 92, PERCENT),
            column("n", "n", 60, COUNT),
            column("difference", "difference", 100, POINTS),
            column("heads", "heads", 74, COUNT),
            column("trainable", "trainable", 104, COUNT),
            column("groups", "trainable by group", 260, minWidth=180, flex=2, tooltipField="groups"),
            column("train_seconds", "train, s", 86, SECONDS),
            column("evaluate_seconds", "evaluate, s", 102, SECONDS),
            column("peak_memory_mb", "peak, MB", 94, SECONDS),
        ],
        defaultColDef={"sortable": True, "resizable": True, "suppressHeaderMenuButton": True},
        getRowId="params.data.name + '/' + params.data.task",
        dashGridOptions={"theme": widgets.GRID_THEME, "domLayout": "autoHeight", "suppressCellFocus": False},
        style={"height": None},
    )


def _empty(screen: Screen) -> Component:
    return widgets.empty(
        "No rollouts in this run yet",
        "Finetune the chosen heads, then let base and finetuned policy drive the same episodes. Success rates, their "
        "intervals and the paired difference appear here.",
        html.P(widgets.code(f"robosteer finetune --run {screen.run.path} --heads NAME")),
        html.P(widgets.code(f"robosteer evaluate --run {screen.run.path} --task TASK")),
    )


PAGE = Page("/compare", "Compare", body, connect)
