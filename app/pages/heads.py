"""Heads: all heads in one table, with everything that is known of each, and one head looked at closely in a drawer.

The table chooses like the maps do; a click on a row opens its head beside it (wish `head` in the URL): factor profile,
standing by every method, where it looks, the frames in which it stands out, and the same head in other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from app import headfigures, headtable, views, widgets
from app.headtable import Column
from app.library import Library, scores_of
from app.maps import Figure
from app.pages.page import Page, Screen
from app.selections import saved_sets
from interp.errors import UsageError
from interp.heads import Head
from interp.runs import Run

GRID = "heads-table"


def body(screen: Screen) -> Component:
    run = screen.run
    scores, problems = scores_of(run)
    problems += saved_sets(run)[1]
    if not scores:
        return html.Div([widgets.notices(problems), _empty(screen)])
    found = headtable.columns(scores)
    rows = headtable.rows(run, found)
    asked = screen.wishes.get("head", "")
    looked = asked if any(row["id"] == asked for row in rows) else (rows[0]["id"] if rows else None)
    grid = widgets.head_grid(
        GRID,
        rows,
        _columns(found),
        click_selects=False,
        listeners={"cellClicked": ["headLooked(params)"], "cellKeyDown": ["headLooked(params)"]},
        options={
            "isExternalFilterPresent": {"function": "onlyChosen()"},
            "doesExternalFilterPass": {"function": "isChosen(params)"},
            "groupHeaderHeight": 28,
            "includeHiddenColumnsInQuickFilter": True,
        },
        rowClassRules={"rs-looked": "isLooked(params)"},
    )
    tools = [
        html.H2(f"{len(rows):,} heads"),
        html.Span(_dead(run), className="rs-muted"),
        dmc.TextInput(
            id="heads-search",
            placeholder="find: expert L3",
            size="xs",
            w=150,
            **widgets.attributes(aria_label="Find heads"),
        ),
        dmc.Switch(id="heads-only", label="only selected", size="xs"),
        html.Div(widgets.export_menu(GRID, figure=False), className="rs-bar-end"),
    ]
    return html.Div(
        [
            widgets.notices(problems),
            html.Div(
                [
                    html.Section(
                        [html.Div(tools, className="rs-bar"), grid],
                        className="rs-card rs-table",
                        **widgets.attributes(aria_label="All heads"),
                    ),
                    html.Section(
                        id="drawer",
                        className="rs-card rs-drawer",
                        **widgets.attributes(aria_label="One head"),
                    ),
                ],
                className="rs-heads",
            ),
            dcc.Store(id="looked", data=looked),
            dcc.Store(id="heads-meta", data=[{"at": c.at, "file": c.file, "label": c.label} for c in found]),
            dcc.Store(id="heads-done"),
        ]
    )


def connect(app: Dash, library: Library) -> None:
    @app.callback(
        Output("drawer", "children"), Input("looked", "data"), State("run", "value"), State("scheme", "data")
    )
    def look(written: str | None, run: str, scheme: str | None) -> list[Component]:
        try:
            if not written:
                raise UsageError("no head of this run has a score")
            opened = library.open(run)
            head = Head.parse(written)
            opened.spec.check(head)
            return _drawer(library, opened, head, scheme or "light")
        except UsageError as error:
            return [html.Div(html.P(str(error)), className="rs-drawer-part")]

    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    # not at first: the body has looked at the wish, and an answer of "no change" would hold back the drawer
    browser(
        "look",
        Output("looked", "data"),
        Input("view", "data"),
        State("looked", "data"),
        prevent_initial_call=True,
    )
    browser(
        "describedHeads", Output("heads-done", "data"), Input("heads-meta", "data"), Input("looked", "data")
    )
    browser(
        "findHeads",
        Input("heads-search", "value"),
        Input("heads-only", "checked"),
        prevent_initial_call=True,
    )
    browser(
        "toggleLooked", Input("drawer-toggle", "n_clicks"), State("looked", "data"), prevent_initial_call=True
    )


def _columns(found: Sequence[Column]) -> list[dict[str, Any]]:
    number: dict[str, Any] = {"filter": "agNumberColumnFilter", "type": "rightAligned"}
    pinned = {"pinned": "left", "suppressMovable": True}
    out: list[dict[str, Any]] = [
        {"field": "id", "hide": True},  # what the search looks in: "expert L3" finds expert.L3H2
        {
            "headerName": "head",
            "children": [
                {
                    "field": "tower",
                    "headerName": "tower",
                    "width": 74,
                    "filter": "agTextColumnFilter",
                    **pinned,
                },
                {"field": "layer", "headerName": "layer", "width": 62, **number, **pinned},
                {"field": "head", "headerName": "head", "width": 62, **number, **pinned},
            ],
        },
    ]
    factors = headtable.profile_columns(found)
    if len(factors) > 1:
        fields = [column.fields[0] for column in factors]
        ends = views.span((t for c in factors for t in c.scores.towers.values()), intervals=False)
        scale = dict(zip(("low", "high"), ends, strict=True))
        names = ", ".join(str(column.scores.factor) for column in factors)
        out.append(
            {
                "colId": "profile",
                "headerName": "profile",
                "headerTooltip": f"{factors[0].scores.label}: {names}",
                "width": 30 + 17 * len(fields),
                "sortable": False,
                "cellRenderer": "Profile",
                "cellRendererParams": {"fields": fields, "scale": scale},
            }
        )
    short = {"valueFormatter": {"function": "short(params.value)"}}
    for column in found:
        score, rank, low, high = column.fields
        better = "desc" if column.scores.higher_is_better else "asc"
        children: list[dict[str, Any]] = [
            {
                "field": score,
                "headerName": "score",
                "width": 74,
                "sortingOrder": [better, None],
                **number,
                **short,
            },
            {"field": rank, "headerName": "rank", "headerTooltip": views.RANK, "width": 66, **number},
        ]
        if any(tower.low is not None for tower in column.scores.towers.values()):
            params = {"scale": column.scale(), "at": [score, low, high]}
            children.append(
                {
                    "colId": f"i{column.at}",
                    "headerName": "95 % interval",
                    "width": 112,
                    "sortable": False,
                    "cellRenderer": "Interval",
                    "cellRendererParams": params,
                    "tooltipValueGetter": {"function": "interval(params)"},
                }
            )
        tip = f"{column.label}; {column.scores.units}; {views.direction(column.scores)}"
        out.append(
            {"headerName": column.file, "headerTooltip": tip, "children": children, "marryChildren": True}
        )
    return out


def _drawer(library: Library, run: Run, head: Head, scheme: str) -> list[Component]:
    found = headtable.columns(scores_of(run)[0])
    standings = headtable.standings(head, found)
    profile_files = {column.file for column in headtable.profile_columns(found)}
    profile = [s for s in standings if s.column.file in profile_files]
    name = str(head)
    parts = [_title(name, standings)]
    if profile:
        figure = headfigures.factors(profile, name, scheme)
        parts.append(_figure("Factors", "head-factors", figure, headfigures.height(len(profile))))
    if standings:
        figure = headfigures.standing(standings, name, scheme)
        parts.append(
            _figure("Standing by method", "head-standing", figure, headfigures.height(len(standings)))
        )
    parts += [_looks(run, head, scheme), _frames(run, head), _elsewhere(library, run, head)]
    return parts


def _title(name: str, standings: Sequence[headtable.Standing]) -> Component:
    best = min(standings, key=lambda s: s.rank, default=None)
    said = f"best rank: {best.among}, by {best.column.file}" if best else "no method has scored it"
    watch = dcc.Link("Watch it", id={"type": "nav", "page": "watch-head"}, href="/watch", className="rs-go")
    toggle = dmc.Button("Select", id="drawer-toggle", size="compact-sm", variant="default")
    return html.Div(
        [
            html.H2(name),
            html.Div([toggle, watch], className="rs-drawer-tools"),
            html.P(said, className="rs-muted"),
        ],
        className="rs-drawer-title",
    )


def _part(title: str, *content: Component, menu: Component | None = None, note: str = "") -> Component:
    head = [html.H3(title), html.Span(note, className="rs-muted")]
    end = [html.Div(menu, className="rs-bar-end")] if menu is not None else []
    return html.Div(
        [html.Div([*head, *end], className="rs-drawer-head"), *content], className="rs-drawer-part"
    )


def _figure(title: str, name: str, figure: Figure, height: int, note: str = "") -> Component:
    return _part(title, widgets.figure(name, height, figure), menu=widgets.export_menu(name), note=note)


def _looks(run: Run, head: Head, scheme: str) -> Component:
    mass = headtable.mass(run, head)
    if not mass:
        if head.tower == "vision":
            return _part("Where it looks", html.P("Heads of vision see one camera's patches only."))
        how = widgets.code(f"robosteer capture --footage --run {run.path}")
        return _part("Where it looks", html.P(["This run has no footage yet: ", how]))
    figure = headfigures.attention(mass, str(head), scheme)
    return _figure(
        "Where it looks", "head-attention", figure, headfigures.height(len(mass)), "mean share of attention"
    )


def _frames(run: Run, head: Head) -> Component:
    frames = headtable.top_frames(run, head)
    if not frames:
        return _part(
            "Frames in which it stands out", html.P("The activations of its tower were not captured.")
        )
    tiles = []
    for frame in frames:
        said = f"episode {frame.episode}, frame {frame.frame}"
        pictures = [
            html.Img(src=url, alt=f"{camera} camera, {said}", width=76, height=76)
            for camera, url in frame.pictures.items()
        ]
        caption = html.Figcaption([said, html.Br(), f"{frame.strength:.1f} × its usual"])
        tiles.append(html.Figure([html.Div(pictures), caption], className="rs-moment"))
    return _part(
        "Frames in which it stands out",
        html.Div(tiles, className="rs-moments"),
        note="output furthest from its mean",
    )


def _elsewhere(library: Library, run: Run, head: Head) -> Component:
    found = headtable.neighbours(library, run, head)
    if not found:
        return _part("In other runs", html.P("No other run has scores of this head by the same methods."))
    rows = [
        html.Tr(
            [
                html.Td([n.run, *([] if n.same_policy else [html.Br(), html.Em("another policy")])]),
                html.Td(n.standing.column.file),
                html.Td(n.standing.among),
                html.Td(views.short(n.standing.score)),
            ]
        )
        for n in found
    ]
    header = html.Thead(html.Tr([html.Th(name, scope="col") for name in ("run", "scores", "rank", "score")]))
    return _part("In other runs", html.Table([header, html.Tbody(rows)], className="rs-plain-table"))


def _dead(run: Run) -> str:
    n = sum(len(tower.dead) for tower in run.spec.towers.values())
    return f"and {n} dead, left out" if n else ""


def _empty(screen: Screen) -> Component:
    return widgets.empty(
        "This run has no scores yet",
        "Rank the heads, and all of them are listed here with their scores, ranks and intervals.",
        html.P(widgets.code(f"robosteer rank --run {screen.run.path}")),
    )


PAGE = Page("/heads", "Heads", body, connect)
