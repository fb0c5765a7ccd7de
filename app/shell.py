"""The frame around every page: header, navigation, run picker, colour scheme, and the stores that pages share.

Stores, all in memory of the tab:

selection  {run, heads, past, future, last, turn}: the one truth about what is chosen (assets/selection.js)
view       what is looked at: {method, tower, factor, episode, ...}, every key of the URL that is nobody else's
origins    the latest sets that something else than a hand chose, as heads files say it (app/selections.py)
named      {run, heads, name}: the saved set that the URL names in place of a long selection
scheme     light or dark, as it is now
runs       the runs that there are, with towers and dead heads; null for a run that cannot be read
themes     colours of both schemes, for repainting figures without the server
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from app import selecting, selection_bar, theme, widgets
from app.library import Entry, Library, shape_of
from app.pages import Page, Screen
from interp.errors import UsageError

NAV = {"type": "nav", "page": ALL}

# the mark: a head map in which two heads are chosen
MARK = ("mid", "", "on", "", "mid", "", "on", "", "mid")


def layout(library: Library, pages: Sequence[Page]) -> Component:
    """The frame, made anew at every load: runs come and go while the server runs."""
    entries = library.entries()
    runs = {entry.name: shape_of(entry.run) if entry.run else None for entry in entries}
    return dmc.MantineProvider(
        html.Div(
            [
                dcc.Location(id="url", refresh=False),
                dcc.Store(id="runs", data=runs),
                dcc.Store(id="themes", data=theme.client()),
                dcc.Store(id="selection"),
                dcc.Store(id="view"),
                dcc.Store(id="scheme"),
                dcc.Store(id="notices"),
                *frame(entries, pages),
                html.Main([html.Div(id="notice-list"), html.Div(id="page")], className="rs-main"),
            ],
            id="app",
        ),
        theme=theme.MANTINE,
        defaultColorScheme="auto",
    )


def frame(entries: Sequence[Entry], pages: Sequence[Page]) -> list[Component]:
    """What is above every page."""
    options = [{"value": e.name, "label": e.name if e.run else f"{e.name} (unreadable)"} for e in entries]
    bar = html.Div(selection_bar.bar(), id="selbar", hidden=not any(entry.run for entry in entries))
    return [_header(pages, options), bar]


def connect(app: Dash, library: Library, pages: Sequence[Page]) -> None:
    by_path = {page.path: page for page in pages}

    @app.callback(
        Output("page", "children"),
        Input("url", "pathname"),
        Input("run", "value"),
        State("view", "data"),
        State("scheme", "data"),
    )
    def show(path: str, run: str | None, wishes: Mapping[str, str] | None, scheme: str | None) -> Component:
        if path not in by_path:
            return widgets.empty("There is no such page", html.P(dcc.Link("Back to the overview", href="/")))
        if run is None:
            return _no_runs(library)
        try:
            screen = Screen(library.open(run), wishes or {}, scheme or "light")
            return by_path[path].body(screen)
        except UsageError as error:
            said = str(error)
        except (
            Exception
        ) as error:  # a file is not what it says, or a mistake of ours: the frame and the rest still work
            app.logger.exception("page %s of run %s", path, run)
            said = f"{type(error).__name__}: {error}"
        return widgets.empty(f"Run {run} cannot be shown here", _others(library, run), error=said)

    @app.callback(Output("notice-list", "children"), Input("notices", "data"), prevent_initial_call=True)
    def tell(lines: list[str] | None) -> Component:
        return widgets.notices(lines or [])

    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    browser(
        "start",
        Output("run", "value"), Output("view", "data"), Output("selection", "data"), Output("notices", "data"),
        Output("scheme", "data"), Output("named", "data"), Input("url", "href"), State("runs", "data"),
    )  # fmt: skip
    browser(
        "arrive",
        Output("selection", "data", allow_duplicate=True),
        Input("run", "value"), State("selection", "data"), State("runs", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    browser(
        "address",
        Output(NAV, "href"), Output(NAV, "className"),
        Input("run", "value"), Input("view", "data"), Input("selection", "data"), Input("named", "data"),
        Input("url", "pathname"), State(NAV, "href"), State(NAV, "id"),
    )  # fmt: skip
    browser(
        "exported",
        Input({"type": "export", "source": ALL, "what": ALL}, "n_clicks"),
        State("run", "value"), State("themes", "data"), prevent_initial_call=True,
    )  # fmt: skip
    browser("dressAll", Input("scheme", "data"), State("themes", "data"), prevent_initial_call=True)
    selecting.connect(app, library)


def _header(pages: Sequence[Page], options: list[dict[str, str]]) -> Component:
    mark = html.Span(
        [html.I(className=c) for c in MARK], className="rs-mark", **widgets.attributes(aria_hidden="true")
    )
    brand = dcc.Link([mark, "robosteer"], id={"type": "nav", "page": "home"}, href="/", className="rs-brand")
    links = [dcc.Link(page.name, id={"type": "nav", "page": page.path}, href=page.path) for page in pages]
    run = dmc.Select(
        id="run",
        data=options,
        size="xs",
        w=210,
        allowDeselect=False,
        searchable=len(options) > 8,
        placeholder="no runs",
        disabled=not options,
        **widgets.attributes(aria_label="Run"),
    )
    toggle = dmc.ColorSchemeToggle(
        id="scheme-toggle",
        lightIcon=html.Span(className="rs-icon sun"),
        darkIcon=html.Span(className="rs-icon moon"),
        variant="default",
        size=30,
        **widgets.attributes(aria_label="Light or dark"),
    )
    return html.Header(
        [
            brand,
            html.Nav(links, className="rs-nav", **widgets.attributes(aria_label="Pages")),
            html.Div([html.Span("Run", className="rs-run-label"), run, toggle], className="rs-header-right"),
        ],
        className="rs-header",
    )


def _no_runs(library: Library) -> Component:
    return widgets.empty(
        "No runs here yet",
        html.P(
            [
                "The folder ",
                widgets.code(str(library.root)),
                " has no run. A run is made by capturing a policy:",
            ]
        ),
        html.P(widgets.code(f"robosteer capture --demos DEMOS --run {library.root / 'first'}")),
        html.P(["or see the whole loop at once: ", widgets.code("robosteer demo")]),
    )


def _others(library: Library, run: str) -> Component:
    readable = [entry.name for entry in library.entries() if entry.run and entry.name != run]
    if not readable:
        return html.P("It may be half-written or from another version; capture again under another name.")
    return html.P(["The other runs still work: ", ", ".join(readable[:6])])
