"""The selection bar: what is chosen, on every page, and every way to choose that is not a gesture on a figure.

Counter, list, undo, redo and clear never ask the server. The best k of any scores, saved sets, their union,
intersection and difference, and files from outside are worked out by the server (`app.selections`) and proposed to the
browser, where each becomes one step of the selection that can be undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from app import selections, views, widgets
from app.library import Library, scores_of
from interp.errors import UsageError
from interp.runs import Run

TAKE = 20  # heads that "best" takes unless told otherwise; the published choice
ALL = "all"
SMALL: dict[str, Any] = {"size": "xs", "variant": "default"}
LATE: dict[str, Any] = {"prevent_initial_call": True}


def bar() -> Component:
    """The bar, empty: it is filled in the browser."""
    buttons = [
        dmc.Button(label, id=name, disabled=True, size="compact-xs", variant="subtle", color="gray")
        for name, label in (("undo", "Undo"), ("redo", "Redo"), ("clear", "Clear"))
    ]
    chosen = html.Div(
        id="chosen",
        className="rs-chips none",
        tabIndex=0,
        role="region",
        **widgets.attributes(aria_label="Selected heads"),
    )
    return html.Section(
        [
            html.H2("0 heads selected", id="count", **widgets.attributes(aria_live="polite")),
            chosen,
            html.Div(buttons, className="rs-selbar-buttons"),
            html.Div(
                [
                    _popover("best", "Take the best …", _best(), width=330),
                    _popover("sets", "Sets", _sets(), width=380),
                ],
                className="rs-selbar-buttons",
            ),
            html.Div(id="cursor-says", className="rs-hidden", **widgets.attributes(aria_live="polite")),
            dcc.Store(id="proposal"),
            dcc.Store(id="long"),
            dcc.Store(id="named"),
            dcc.Download(id="download"),
        ],
        className="rs-selbar",
        **widgets.attributes(aria_label="Selection"),
    )


def _popover(name: str, label: str, content: list[Component], width: int) -> Component:
    said = widgets.attributes(aria_haspopup="dialog")  # Mantine would put it on a wrapper that has no role
    button = dmc.Button(label, id=f"{name}-open", size="compact-sm", variant="light", **said)
    return dmc.Popover(
        [
            dmc.PopoverTarget(button),
            dmc.PopoverDropdown(
                html.Div(content, className="rs-popover"), **widgets.attributes(aria_label=label)
            ),
        ],
        id=f"{name}-popover",
        position="bottom-end",
        width=width,
        shadow="md",
        withinPortal=True,
        keepMounted=True,
        withRoles=False,
    )


def _select(name: str, label: str, **more: Any) -> Component:
    inside: dict[str, Any] = {"withinPortal": False}  # a click on an option must not close the popover
    return dmc.Select(
        id=name,
        label=label,
        size="xs",
        allowDeselect=False,
        comboboxProps=inside,
        className="grow",
        **more,
    )


def _best() -> list[Component]:
    count = dmc.NumberInput(
        id="best-k",
        label="Heads",
        value=TAKE,
        min=1,
        max=99_999,
        step=1,
        allowDecimal=False,
        size="xs",
        w=76,
    )
    return [
        html.Div([count, _select("best-tower", "of tower")], className="rs-row"),
        html.Div(_select("best-by", "by"), className="rs-row"),
        html.Div(
            [
                dmc.Button("Select", id="best", size="xs"),
                dmc.Button("Add to the selection", id="best-add", **SMALL),
            ],
            className="rs-row",
        ),
        html.Div(id="best-said", className="rs-said", role="status"),
    ]


def _sets() -> list[Component]:
    operations = dmc.SegmentedControl(
        id="operation",
        data=[{"value": name, "label": label} for name, label in selections.OPERATIONS.items()],
        value="unite",
        size="xs",
        fullWidth=True,
        className="grow",
        **widgets.attributes(aria_label="Operation"),
    )
    opened = dcc.Upload(
        html.Button("Open a heads file …", type="button", className="rs-link"),
        id="open-file",
        accept=".json,application/json",
        max_size=selections.LARGEST,
    )
    return [
        html.H3("Save the selection"),
        html.Div(
            [
                dmc.TextInput(
                    id="save-name",
                    placeholder="name of the set",
                    size="xs",
                    className="grow",
                    **widgets.attributes(aria_label="Name of the set"),
                ),
                dmc.Button("Save", id="save", size="xs", disabled=True),
                dmc.Button("Download", id="take", disabled=True, **SMALL),
            ],
            className="rs-row",
        ),
        html.Div(id="save-said", className="rs-said", role="status"),
        html.H3("Load or combine"),
        html.Div(
            [
                _select("set-a", "first set"),
                dmc.Button("Load", id="load", **SMALL),
            ],
            className="rs-row end",
        ),
        html.Div(operations, className="rs-row"),
        html.Div(
            [
                _select("set-b", "second set"),
                dmc.Button("Apply", id="combine", **SMALL),
            ],
            className="rs-row end",
        ),
        html.Div(id="combine-said", className="rs-said", role="status"),
        html.H3("From a file"),
        html.Div([opened, _select("file-tower", "tower of bare pairs")], className="rs-row end"),
        html.Div(id="open-said", className="rs-said", role="status"),
    ]


def connect(app: Dash, library: Library) -> None:
    _connect_best(app, library)
    _connect_sets(app, library)
    _connect_files(app, library)
    _connect_browser(app)


def _connect_best(app: Dash, library: Library) -> None:
    @app.callback(
        Output("best-by", "data"),
        Output("best-by", "value"),
        Input("best-open", "n_clicks"),
        Input("run", "value"),
        State("view", "data"),
    )
    def offer(_: int | None, run: str | None, wishes: Mapping[str, str] | None) -> tuple[Any, Any]:
        opened = _opened(library, run)
        if opened is None:
            return [], None
        scores = scores_of(opened)[0]
        return views.file_options(scores), views.file_shown(scores, wishes or {})

    @app.callback(
        Output("best-tower", "data"),
        Output("best-tower", "value"),
        Input("best-by", "value"),
        State("best-tower", "value"),
        State("run", "value"),
        State("view", "data"),
        **LATE,
    )
    def towers(
        file: str | None, tower: str | None, run: str, wishes: Mapping[str, str] | None
    ) -> tuple[list[dict[str, str]], str | None]:
        opened = _opened(library, run)
        scores = scores_of(opened)[0].get(file or "") if opened else None
        if scores is None:
            return [], None
        names = list(scores.towers)
        every = [{"value": ALL, "label": "all towers"}] if len(names) > 1 else []
        options = [*every, *({"value": name, "label": name} for name in names)]
        asked = (tower, (wishes or {}).get("tower"))
        known = [option["value"] for option in options]
        return options, next((name for name in asked if name in known), known[0])

    @app.callback(
        Output("proposal", "data"),
        Output("best-said", "children"),
        Output("best-said", "className"),
        Input("best", "n_clicks"),
        Input("best-add", "n_clicks"),
        State("best-k", "value"),
        State("best-by", "value"),
        State("best-tower", "value"),
        State("run", "value"),
        **LATE,
    )
    def take_best(
        clicks: int | None, more: int | None, k: Any, file: str | None, tower: str | None, run: str
    ) -> tuple[Any, str, str]:
        if not (clicks or more):
            return no_update, "", "rs-said"
        try:
            if file is None:
                raise UsageError("this run has no scores yet: rank the heads first")
            if not isinstance(k, int) or k < 1:
                raise UsageError("how many heads? write a number from 1")
            scores = library.open(run).read_scores(file)
            heads = selections.best(scores, k, None if tower in (None, ALL) else tower)
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        said = "" if len(heads) == k else f"only {len(heads)} heads have a score"
        return _proposal(heads, add=ctx.triggered_id == "best-add"), said, "rs-said"


def _connect_sets(app: Dash, library: Library) -> None:
    @app.callback(
        Output("set-a", "data"),
        Output("set-b", "data"),
        Output("set-a", "value"),
        Output("set-b", "value"),
        Output("file-tower", "data"),
        Output("file-tower", "value"),
        Output("combine-said", "children"),
        Output("combine-said", "className"),
        Input("sets-open", "n_clicks"),
        Input("run", "value"),
        State("set-a", "value"),
        State("set-b", "value"),
        State("file-tower", "value"),
    )
    def offer(
        _: int | None, run: str | None, a: str | None, b: str | None, tower: str | None
    ) -> tuple[Any, ...]:
        opened = _opened(library, run)
        if opened is None:
            return [], [], None, None, [], None, "", "rs-said"
        saved, problems = selections.saved_sets(opened)
        towers = list(opened.spec.towers)
        options = _options(saved)
        return (
            options,
            options,
            a if a in saved else next(iter(saved), selections.CURRENT),
            b if b in saved else selections.CURRENT,
            towers,
            tower if tower in towers else towers[-1],
            " ".join(problems),
            "rs-said bad" if problems else "rs-said",
        )

    @app.callback(
        Output("proposal", "data", allow_duplicate=True),
        Output("combine-said", "children", allow_duplicate=True),
        Output("combine-said", "className", allow_duplicate=True),
        Input("load", "n_clicks"),
        Input("combine", "n_clicks"),
        State("set-a", "value"),
        State("operation", "value"),
        State("set-b", "value"),
        State("selection", "data"),
        State("run", "value"),
        **LATE,
    )
    def apply(
        loads: int | None,
        combines: int | None,
        a: str | None,
        operation: str,
        b: str | None,
        chosen: Mapping[str, Any] | None,
        run: str,
    ) -> tuple[Any, str, str]:
        if not (loads or combines):
            return no_update, "", "rs-said"
        try:
            sets, _ = selections.saved_sets(library.open(run))
            current = (chosen or {}).get("heads", [])
            first = selections.members(sets, a, current)
            heads = list(first)
            if ctx.triggered_id == "combine":
                heads = selections.combine(first, operation, selections.members(sets, b, current))
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        return _proposal(heads), f"{len(heads)} heads", "rs-said good"

    @app.callback(
        Output("proposal", "data", allow_duplicate=True),
        Output("open-said", "children"),
        Output("open-said", "className"),
        Output("open-file", "contents"),
        Input("open-file", "contents"),
        State("open-file", "filename"),
        State("file-tower", "value"),
        State("run", "value"),
        **LATE,
    )
    def opened_file(
        content: str | None, name: str | None, tower: str | None, run: str
    ) -> tuple[Any, str, str, None]:
        if not content:
            return no_update, no_update, no_update, None  # type: ignore[return-value]
        try:
            heads = selections.read_upload(library.open(run), content, name or "file", tower or "expert")
        except UsageError as error:
            return no_update, str(error), "rs-said bad", None
        return _proposal(heads), f"{len(heads)} heads from {name}", "rs-said good", None


def _connect_files(app: Dash, library: Library) -> None:
    @app.callback(
        Output("save-said", "children"),
        Output("save-said", "className"),
        Output("set-a", "data", allow_duplicate=True),
        Output("set-b", "data", allow_duplicate=True),
        Input("save", "n_clicks"),
        State("save-name", "value"),
        State("selection", "data"),
        State("set-a", "data"),
        State("view", "data"),
        State("run", "value"),
        **LATE,
    )
    def save(
        clicks: int | None,
        name: str | None,
        chosen: Mapping[str, Any],
        known: list[dict[str, str]] | None,
        wishes: Mapping[str, str] | None,
        run: str,
    ) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * 4
        try:
            opened = library.open(run)
            seen = [option["value"] for option in known or []]
            path = selections.save(
                opened, (name or "").strip(), chosen["heads"], _file(opened, wishes), replace=seen
            )
        except UsageError as error:
            return str(error), "rs-said bad", no_update, no_update
        except OSError as error:
            return f"cannot be saved: {error.strerror}", "rs-said bad", no_update, no_update
        options = _options(selections.saved_sets(opened)[0])
        return f"Saved to {path.relative_to(opened.path.parent)}", "rs-said good", options, options

    @app.callback(
        Output("download", "data"),
        Output("save-said", "children", allow_duplicate=True),
        Output("save-said", "className", allow_duplicate=True),
        Input("take", "n_clicks"),
        State("save-name", "value"),
        State("selection", "data"),
        State("view", "data"),
        State("run", "value"),
        **LATE,
    )
    def take(
        clicks: int | None,
        name: str | None,
        chosen: Mapping[str, Any],
        wishes: Mapping[str, str] | None,
        run: str,
    ) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * 3
        try:
            opened = library.open(run)
            content = selections.heads_file(opened, chosen["heads"], _file(opened, wishes))
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        file = {
            "filename": f"{(name or '').strip() or f'{run}-heads'}.json",
            "content": content,
            "type": "application/json",
        }
        return file, "", "rs-said"

    @app.callback(Output("named", "data", allow_duplicate=True), Input("long", "data"), **LATE)
    def link(asked: Mapping[str, Any] | None) -> Any:
        try:
            if not asked:
                return no_update
            name = selections.linked(library.open(asked["run"]), asked["heads"])
        except (UsageError, OSError):  # a folder that cannot be written: the address lists the heads then
            return no_update
        return {**asked, "name": name}


def _connect_browser(app: Dash) -> None:
    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    browser(
        "mirror",
        Output("clear", "disabled"), Output("undo", "disabled"), Output("redo", "disabled"),
        Output("save", "disabled"), Output("take", "disabled"), Input("selection", "data"),
    )  # fmt: skip
    browser("propose", Input("proposal", "data"), **LATE)
    for name in ("clear", "undo", "redo"):
        browser(name, Input(name, "n_clicks"), **LATE)
    browser("saveLabel", Output("save", "children"), Input("save-name", "value"), Input("set-a", "data"))


def _opened(library: Library, run: str | None) -> Run | None:
    try:
        return library.open(run) if run else None
    except UsageError:
        return None


def _file(run: Run, wishes: Mapping[str, str] | None) -> str | None:
    return views.file_shown(scores_of(run)[0], wishes or {})


def _options(saved: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"value": selections.CURRENT, "label": "the selection"},
        *({"value": name, "label": f"{name} ({len(heads)})"} for name, heads in saved.items()),
    ]


def _proposal(heads: list[str], add: bool = False) -> dict[str, Any]:
    """A fresh object each time: Dash passes it on even if it is the same set again."""
    return {"heads": heads, "add": add}
