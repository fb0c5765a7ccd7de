"""What the selection bar does: every way to choose that is not a gesture on a figure.

Counter, list, undo, redo and clear never ask the server. The best k of any scores, saved sets, their union,
intersection and difference, and files from outside are worked out by the server (`app.selections`) and proposed to the
browser, where each becomes one step of the selection that can be undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from app import selections, views
from app.library import Library, scores_of
from interp.errors import UsageError
from interp.runs import Run
from steering.headset import HeadSet

ALL = "all"
LATE: dict[str, Any] = {"prevent_initial_call": True}


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
            made = selections.best(scores, k, None if tower in (None, ALL) else tower)
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        n = len(made.heads)
        said = "" if n == k else f"only {n} heads have a score"
        return _proposal(made, add=ctx.triggered_id == "best-add"), said, "rs-said"


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
            opened = library.open(run)
            sets, _ = selections.saved_sets(opened)
            current = (chosen or {}).get("heads", [])
            heads = selections.members(sets, a, current)
            made = selections.saved(opened)[0].get(a or "")
            if ctx.triggered_id == "combine":
                heads = selections.combine(heads, operation, selections.members(sets, b, current))
                made = None
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        return _proposal(made or heads), f"{len(heads)} heads", "rs-said good"

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
            made = selections.read_upload(library.open(run), content, name or "file", tower or "expert")
        except UsageError as error:
            return no_update, str(error), "rs-said bad", None
        return _proposal(made), f"{len(made.heads)} heads from {name}", "rs-said good", None


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
        State("origins", "data"),
        State("run", "value"),
        **LATE,
    )
    def save(
        clicks: int | None,
        name: str | None,
        chosen: Mapping[str, Any],
        known: list[dict[str, str]] | None,
        origins: list[dict[str, Any]] | None,
        run: str,
    ) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * 4
        try:
            opened = library.open(run)
            seen = [option["value"] for option in known or []]
            path = selections.save(opened, (name or "").strip(), chosen["heads"], origins or (), replace=seen)
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
        State("origins", "data"),
        State("run", "value"),
        **LATE,
    )
    def take(
        clicks: int | None,
        name: str | None,
        chosen: Mapping[str, Any],
        origins: list[dict[str, Any]] | None,
        run: str,
    ) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * 3
        try:
            content = selections.heads_file(library.open(run), chosen["heads"], origins or ())
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        file = {
            "filename": f"{(name or '').strip() or f'{run}-heads'}.json",
            "content": content,
            "type": "application/json",
        }
        return file, "", "rs-said"

    @app.callback(
        Output("named", "data", allow_duplicate=True),
        Input("long", "data"),
        State("origins", "data"),
        **LATE,
    )
    def link(asked: Mapping[str, Any] | None, origins: list[dict[str, Any]] | None) -> Any:
        try:
            if not asked:
                return no_update
            name = selections.linked(library.open(asked["run"]), asked["heads"], origins or ())
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
    browser("saveLabel", Output("save", "children"), Input("save-name", "value"), Input("set-a", "data"))


def _opened(library: Library, run: str | None) -> Run | None:
    try:
        return library.open(run) if run else None
    except UsageError:
        return None


def _options(saved: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"value": selections.CURRENT, "label": "the selection"},
        *({"value": name, "label": f"{name} ({len(heads)})"} for name, heads in saved.items()),
    ]


def _proposal(made: HeadSet | Sequence[str], add: bool = False) -> dict[str, Any]:
    """Heads, and the set that they are if something chose them as one. A fresh object each time: Dash passes it on even
    if it is the same set again."""
    if not isinstance(made, HeadSet):
        return {"heads": list(made), "add": add, "by": None}
    return {"heads": [str(head) for head in made.heads], "add": add, "by": made.to_json()}
