"""Overview: what the scores say, and choosing heads. The reading, maps, ranked scores and a table on one screen.

The server draws a view (method, tower, scale, factor) once; choosing heads happens in the browser alone
(assets/selection.js, maps.js, table.js).
"""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update, set_props
from dash.development.base_component import Component

from app import reading, views, widgets
from app.library import Library, scores_of
from app.pages import cards
from app.pages.page import Page, Screen
from app.selections import saved_sets
from app.views import View
from interp.errors import UsageError
from interp.runs import Run


def body(screen: Screen) -> Component:
    scores, problems = scores_of(screen.run)
    problems += saved_sets(screen.run)[1]
    groups = views.methods(scores)
    if not groups:
        return html.Div([widgets.notices(problems), _empty(screen)])
    method = screen.wishes.get("method", "")
    if method not in groups:
        method = next(iter(groups))
    shown = views.view(groups[method], screen.wishes.get("tower"), screen.wishes.get("scale"))
    drawn = _drawn(screen.run, shown, screen.wishes.get("factor"), screen.scheme)
    return html.Div(
        [
            widgets.notices(problems),
            html.Section(drawn["reading"], id="reading", className="rs-card rs-reading"),
            html.Div(
                [
                    html.Div(
                        [cards.map_card(groups, method, drawn), cards.ranked_card(drawn)], className="rs-left"
                    ),
                    html.Div(cards.table_card(drawn), className="rs-side"),
                ],
                className="rs-overview",
            ),
            dcc.Store(id="meta", data=drawn["meta"]),
            dcc.Store(id="described"),
        ]
    )


# what `draw` gives, in this order: names in `_drawn` and the properties that show them
OUTPUTS = {
    "reading": Output("reading", "children"),
    "maps": Output("maps", "children"),
    "foot": Output("foot", "children"),
    "ranked": Output("ranked-plot", "children"),
    "ranked_of": Output("ranked-of", "children"),
    "rows": Output("heads", "rowData"),
    "columns": Output("heads", "columnDefs"),
    "meta": Output("meta", "data"),
    "towers": Output("tower", "data"),
    "tower": Output("tower", "value"),
    "scales": Output("scale", "data"),
    "scale": Output("scale", "value"),
    "factors": Output("factor", "data"),
    "factor": Output("factor", "value"),
    "factor_style": Output("factor-field", "style"),
}


def connect(app: Dash, library: Library) -> None:
    @app.callback(
        *OUTPUTS.values(),
        Input("method", "value"),
        Input("tower", "value"),
        Input("factor", "value"),
        Input("scale", "value"),
        State("run", "value"),
        State("scheme", "data"),
        prevent_initial_call=True,
    )
    def draw(
        method: str, tower: str, factor: str | None, scale: str | None, run: str, scheme: str | None
    ) -> tuple[Any, ...]:
        try:
            opened = library.open(run)
        except UsageError as error:  # moved or deleted while it was on the screen
            set_props("notices", {"data": [str(error)]})
            return (no_update,) * len(OUTPUTS)
        groups = views.methods(scores_of(opened)[0])
        if method not in groups:
            return (no_update,) * len(OUTPUTS)
        drawn = _drawn(opened, views.view(groups[method], tower, scale), factor, scheme or "light")
        return tuple(drawn[name] for name in OUTPUTS)

    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    browser(
        "viewed",
        Input("method", "value"),
        Input("tower", "value"),
        Input("factor", "value"),
        Input("scale", "value"),
        prevent_initial_call=True,
    )
    browser("described", Output("described", "data"), Input("meta", "data"))


def _drawn(run: Run, view: View, factor: str | None, scheme: str) -> dict[str, Any]:
    """Everything on the page that depends on the view, by name."""
    lead = view.lead(factor)
    led = view.led(factor)
    low, high = views.span(panel.grid for panel in (view.panels if view.scale == "shared" else led))
    chance = {panel.tower: panel.null.mean for panel in led if panel.null is not None}
    scores = lead.scores
    units = "rank within the map" if view.scale == "rank" else f"{scores.units} ({views.direction(scores)})"
    return {
        "reading": _reading(run, view),
        "maps": cards.head_maps(view, scheme),
        "foot": cards.foot(view),
        "ranked": cards.ranked_plot(led, scheme),
        "ranked_of": (f"{lead.key}: " if view.keys else "") + "score by rank, 95 % band",
        "rows": views.rows(view, lead.key),
        "columns": cards.columns(view, lead, {"low": low, "high": high, "chance": chance}),
        "towers": [
            {"value": name, "label": "all towers" if name == views.ALL_TOWERS else name}
            for name in view.towers
        ],
        "tower": view.tower,
        "scales": [{"value": name, "label": views.SCALES[name]} for name in view.scales],
        "scale": view.scale,
        "factors": list(view.keys),
        "factor": lead.key if view.keys else None,
        "factor_style": {} if view.keys else {"display": "none"},
        "meta": {
            "run": run.name,
            "policy": run.policy,
            "data": run.data,
            "file": lead.file,
            "method": scores.method,
            "label": scores.label,
            "units": scores.units,
            "higher_is_better": scores.higher_is_better,
            "n": dict(scores.n),
            "created": scores.created,
            "factor": scores.factor,
            "scale": view.scale,
            "measured": units,
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


PAGE = Page("/", "Overview", body, connect, early=True)
