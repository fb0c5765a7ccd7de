"""Overview: what the scores say, and choosing heads. Maps, ranked scores, table and selection on one screen.

The server draws a view (method, tower, factor) once; choosing heads happens in the browser alone (assets/selection.js,
maps.js, table.js) until the selection is saved as a heads file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update, set_props
from dash.development.base_component import Component

from app import reading, views, widgets
from app.library import Library, scores_of
from app.pages import cards
from app.pages.page import Page, Screen
from app.selections import heads_file, save, saved_sets
from app.views import View
from interp.errors import UsageError
from interp.runs import Run

MAPS = {"type": "head-map", "panel": ALL, "tower": ALL}


def body(screen: Screen) -> Component:
    scores, problems = scores_of(screen.run)
    groups = views.methods(scores)
    saved, unusable = saved_sets(screen.run)
    if not groups:
        return html.Div([widgets.notices([*problems, *unusable]), _empty(screen)])
    method = screen.wishes.get("method", "")
    if method not in groups:
        method = next(iter(groups))
    shown = views.view(groups[method], screen.wishes.get("tower"))
    drawn = _drawn(screen.run, shown, screen.wishes.get("factor"), screen.scheme)
    return html.Div(
        [
            widgets.notices([*problems, *unusable]),
            html.Section(drawn["reading"], id="reading", className="rs-card rs-reading"),
            html.Div(
                [
                    html.Div(
                        [cards.map_card(groups, method, drawn), cards.ranked_card(drawn)], className="rs-left"
                    ),
                    html.Div([cards.selection_card(saved), cards.table_card(drawn)], className="rs-side"),
                ],
                className="rs-overview",
            ),
            dcc.Store(id="meta", data=drawn["meta"]),
            dcc.Store(id="saved", data=saved),
            dcc.Store(id="cursor"),
            dcc.Store(id="painted"),  # `paint` needs an output on this page, or it would run on every page
            dcc.Download(id="download"),
            html.Div(id="cursor-says", className="rs-hidden", **widgets.attributes(aria_live="polite")),
        ]
    )


def connect(app: Dash, library: Library) -> None:
    @app.callback(
        Output("reading", "children"),
        Output("maps", "children"),
        Output("foot", "children"),
        Output("ranked-plot", "children"),
        Output("heads", "rowData"),
        Output("heads", "columnDefs"),
        Output("meta", "data"),
        Output("tower", "data"),
        Output("tower", "value"),
        Output("factor", "data"),
        Output("factor", "value"),
        Output("factor-field", "style"),
        Input("method", "value"),
        Input("tower", "value"),
        Input("factor", "value"),
        State("run", "value"),
        State("scheme", "data"),
        prevent_initial_call=True,
    )
    def draw(method: str, tower: str, factor: str | None, run: str, scheme: str | None) -> tuple[Any, ...]:
        try:
            opened = library.open(run)
        except UsageError as error:  # moved or deleted while it was on the screen
            set_props("notices", {"data": [str(error)]})
            return (no_update,) * 12
        groups = views.methods(scores_of(opened)[0])
        if method not in groups:
            return (no_update,) * 12
        drawn = _drawn(opened, views.view(groups[method], tower), factor, scheme or "light")
        return tuple(
            drawn[name]
            for name in (
                "reading", "maps", "foot", "ranked", "rows", "columns", "meta",
                "towers", "tower", "factors", "factor", "factor_style",
            )
        )  # fmt: skip

    @app.callback(
        Output("saved", "data"),
        Output("save-said", "children"),
        Output("save-said", "className"),
        Output("load", "data"),
        Input("save", "n_clicks"),
        State("save-name", "value"),
        State("selection", "data"),
        State("meta", "data"),
        State("saved", "data"),
        State("run", "value"),
        prevent_initial_call=True,
    )
    def save_selection(
        clicks: int | None,
        name: str | None,
        chosen: Mapping[str, Any],
        meta: Mapping[str, Any],
        known: Mapping[str, Any],
        run: str,
    ) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * 4
        try:
            opened = library.open(run)
            path = save(opened, (name or "").strip(), chosen["heads"], meta["file"], replace=known)
        except UsageError as error:
            return no_update, str(error), "rs-said bad", no_update
        saved, _ = saved_sets(opened)
        return saved, f"Saved to {path.relative_to(opened.path.parent)}", "rs-said good", sorted(saved)

    @app.callback(
        Output("download", "data"),
        Output("save-said", "children", allow_duplicate=True),
        Output("save-said", "className", allow_duplicate=True),
        Input("take", "n_clicks"),
        State("save-name", "value"),
        State("selection", "data"),
        State("meta", "data"),
        State("run", "value"),
        prevent_initial_call=True,
    )
    def take(
        clicks: int | None, name: str | None, chosen: Mapping[str, Any], meta: Mapping[str, Any], run: str
    ) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * 3
        try:
            content = heads_file(library.open(run), chosen["heads"], meta["file"])
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        file = {
            "filename": f"{(name or '').strip() or f'{run}-heads'}.json",
            "content": content,
            "type": "application/json",
        }
        return file, "", "rs-said"

    _connect_browser(app)


def _connect_browser(app: Dash) -> None:
    """The callbacks that run in the browser: gestures to actions, the selection to everything that shows it."""

    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    late = {"prevent_initial_call": True}
    browser(
        "viewed",
        Output("view", "data", allow_duplicate=True),
        Input("method", "value"),
        Input("tower", "value"),
        Input("factor", "value"),
        **late,
    )
    browser(
        "paint",
        Output("painted", "data"),
        Input("selection", "data"),
        Input("cursor", "data"),
        Input("heads", "rowData"),
        Input(MAPS, "id"),
        State("meta", "data"),
    )
    dress = (Input("scheme", "data"), State("themes", "data"))
    browser("dressMaps", Output(MAPS, "figure"), *dress, State(MAPS, "id"), **late)
    browser("dressRanked", Output("ranked", "figure"), *dress, State("ranked", "figure"), **late)
    browser(
        "sayCursor",
        Output("cursor-says", "children"),
        Input("cursor", "data"),
        Input("selection", "data"),
        State("heads", "rowData"),
        **late,
    )
    browser(
        "mirror",
        Output("heads", "selectedRows"),
        Output("count", "children"),
        Output("chosen", "children"),
        Output("chosen", "className"),
        Output("clear", "disabled"),
        Output("undo", "disabled"),
        Output("save", "disabled"),
        Output("take", "disabled"),
        Input("selection", "data"),
        Input("heads", "rowData"),
        State("meta", "data"),
    )
    browser("best", Input("best", "n_clicks"), State("best-k", "value"), State("heads", "rowData"), **late)
    browser("clear", Input("clear", "n_clicks"), **late)
    browser("undo", Input("undo", "n_clicks"), **late)
    browser("load", Output("load", "value"), Input("load", "value"), State("saved", "data"), **late)
    browser(
        "exportHeads",
        Input({"type": "export-heads", "source": ALL, "what": ALL}, "n_clicks"),
        State("heads", "rowData"),
        State("meta", "data"),
        State("selection", "data"),
        State("themes", "data"),
        **late,
    )
    browser("saveLabel", Output("save", "children"), Input("save-name", "value"), Input("saved", "data"))


def _drawn(run: Run, view: View, factor: str | None, scheme: str) -> dict[str, Any]:
    """Everything on the page that depends on the view, by name."""
    lead = view.lead(factor)
    led = [lead] if view.factors else list(view.panels)  # what the table and the ranked scores show
    low, high = view.range
    chance = {panel.tower: panel.null.mean for panel in led if panel.null is not None}
    scores = lead.scores
    return {
        "reading": _reading(run, view),
        "maps": [cards.head_map(panel, view, scheme) for panel in view.panels],
        "foot": [widgets.colour_bar(view), cards.keys(view)],
        "ranked": cards.ranked_plot(led, scheme),
        "rows": views.rows(view, scores.factor),
        "columns": cards.columns(view, lead, {"low": low, "high": high, "chance": chance}),
        "towers": [
            {"value": name, "label": "all towers" if name == views.ALL_TOWERS else name}
            for name in view.towers
        ],
        "tower": view.tower,
        "factors": list(view.factors),
        "factor": scores.factor,
        "factor_style": {} if view.factors else {"display": "none"},
        "meta": {
            "run": run.name,
            "policy": run.policy,
            "data": run.data,
            "file": lead.file,
            "method": scores.method,
            "label": scores.label,
            "units": scores.units,
            "higher_is_better": scores.higher_is_better,
            "scale": f"{scores.units} ({view.direction})",
            "n": dict(scores.n),
            "created": scores.created,
            "factor": scores.factor,
        },
    }


def _reading(run: Run, view: View) -> list[Component]:
    facts = [html.Span(fact) for fact in reading.facts(run, view.scores)]
    head = html.Div(
        [html.H1(reading.title(run)), html.Div(facts, className="rs-facts")], className="rs-title"
    )
    return [head, *(widgets.prose(text) for text in reading.paragraphs(view))]


def _empty(screen: Screen) -> Component:
    return widgets.empty(
        "This run has no scores yet",
        "Rank the heads, and the layer × head maps appear here: which heads know the task, and how sure that is.",
        html.P(widgets.code(f"robosteer rank --run {screen.run.path}")),
    )


PAGE = Page("/", "Overview", body, connect)
