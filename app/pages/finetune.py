"""Finetune: train the chosen heads, and watch it. A form for the recipe with the count of what it would train, the job
with its curve, estimate and log, and the run's other jobs.

The job is a process of its own (app/jobs.py); this page only looks at its files, every second. So it may be reloaded,
closed, or opened elsewhere, and the server may be started again. Starting, cancelling and going on need a server that
was started with --allow-launch and the token that only its own pages carry. Wish in the URL: job.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from flask import current_app

from app import counting, jobs, training
from app.jobs import Job
from app.library import Library
from app.pages import training_cards as cards
from app.pages.page import Page, Screen
from app.training import Form
from interp.errors import UsageError
from interp.runs import Run

FIELDS = ("recipe", "name", "steps", "lr", "form", "seed", "scores", "others")
POLL = 1000  # milliseconds
ALLOWED, TOKEN = "ALLOW_LAUNCH", "LAUNCH_TOKEN"  # in the server's configuration


def body(screen: Screen) -> Component:
    run, allowed = screen.run, bool(current_app.config.get(ALLOWED))
    return html.Div(
        [
            html.Div(
                [cards.form(run, allowed), cards.job(), cards.listing(), cards.none_yet()],
                className="rs-finetune",
            ),
            dcc.Interval(id="ft-poll", interval=POLL),
            dcc.Store(id="ft-token", data=current_app.config[TOKEN] if allowed else None),
            dcc.Store(id="ft-acted"),
            dcc.Store(id="ft-open"),
            dcc.Store(id="ft-seen"),
        ]
    )


def connect(app: Dash, library: Library) -> None:
    app.server.config.setdefault(ALLOWED, False)
    app.server.config[TOKEN] = secrets.token_urlsafe(32)
    form = [State(f"ft-{name}", "value") for name in FIELDS]

    @app.callback(
        Output("ft-steps", "value"),
        Output("ft-lr", "value"),
        Output("ft-form", "value"),
        Output("ft-about", "children"),
        Output("ft-scores-field", "style"),
        Output("ft-others-field", "style"),
        Output("ft-others", "data"),
        Input("ft-recipe", "value"),
        State("run", "value"),
        prevent_initial_call=True,
    )
    def recipe_chosen(name: str, run: str) -> tuple[Any, ...]:
        own = training.settings(Form(name))
        offered: list[str] = []
        with suppress(UsageError):  # the run has gone; the page says so when it is left
            offered = list(others_of(library, library.open(run)))
        shown = [{} if name in names else cards.HIDDEN for names in (training.SCORED, ("generic-k",))]
        return own.steps, own.lr, own.form, training.about(name), *shown, offered

    @app.callback(
        Output("ft-count", "children"),
        Output("ft-command", "children"),
        Input("selection", "data"),
        Input("ft-acted", "data"),  # a name that was free is taken now
        *[Input(f"ft-{name}", "value") for name in FIELDS],
        State("run", "value"),
    )
    def would_train(selection: Mapping[str, Any] | None, acted: Any, *values: Any) -> tuple[Any, Any]:
        *fields, name = values
        if not selection or selection["run"] != name:
            return no_update, no_update
        try:
            run = library.open(name)
            return cards.counted(run, _filled(fields), selection["heads"], others_of(library, run))
        except UsageError as error:
            return html.P(str(error), className="rs-said bad"), ""

    @app.callback(
        Output("ft-acted", "data"),
        Output("ft-said", "children"),
        Output("ft-said", "className"),
        Input("ft-start", "n_clicks"),
        Input("ft-cancel", "n_clicks"),
        Input("ft-resume", "n_clicks"),
        State("ft-token", "data"),
        State("selection", "data"),
        State("ft-seen", "data"),
        State("run", "value"),
        *form,
        prevent_initial_call=True,
    )
    def act(
        start: int | None,
        stop: int | None,
        again: int | None,
        token: str | None,
        selection: Mapping[str, Any] | None,
        seen: Mapping[str, Any] | None,
        name: str,
        *fields: Any,
    ) -> tuple[Any, ...]:
        pressed = ctx.triggered_id
        if not {"ft-start": start, "ft-cancel": stop, "ft-resume": again}[pressed]:
            return no_update, no_update, no_update
        try:
            _check(app, token)
            run, shown = library.open(name), (seen or {}).get("job")
            if pressed == "ft-start":
                chosen = selection["heads"] if selection and selection["run"] == name else []
                job = start_job(library, run, _filled(fields), chosen)
                said = f"Job {job.id} has started. It goes on when this page is closed."
            elif pressed == "ft-cancel":
                job = jobs.cancel(run, str(shown))
                said = f"Job {job.id} was asked to save and stop."
            else:
                job = jobs.resume(run, str(shown), _runs(library))
                said = f"Job {job.id} goes on from its last checkpoint."
        except UsageError as error:
            return no_update, str(error), "rs-said bad"
        return {"job": job.id, "turn": secrets.token_hex(4)}, said, "rs-said good"

    @app.callback(
        Output("ft-seen", "data"),
        Output("ft-head", "children"),
        Output("ft-state", "children"),
        Output("ft-curve", "figure"),
        Output("ft-log", "children"),
        Output("ft-jobs", "children"),
        Output("ft-cancel", "children"),
        Output("ft-cancel", "style"),
        Output("ft-resume", "style"),
        Output("ft-job", "hidden"),
        Output("ft-list", "hidden"),
        Input("ft-poll", "n_intervals"),
        Input("view", "data"),
        Input("ft-acted", "data"),
        State("ft-seen", "data"),
        State("run", "value"),
        State("scheme", "data"),
    )
    def look(
        beat: int | None,
        view: Mapping[str, Any] | None,
        acted: Mapping[str, Any] | None,
        seen: Mapping[str, Any] | None,
        name: str,
        scheme: str | None,
    ) -> tuple[Any, ...]:
        nothing = (no_update,) * 11
        try:
            found = jobs.jobs_of(library.open(name))
        except UsageError:
            return nothing  # the run has gone; the page says so when it is left
        wished = acted["job"] if ctx.triggered_id == "ft-acted" and acted else (view or {}).get("job")
        shown = _shown(found, wished)
        now = _signature(found, shown, name)
        if now == seen:
            return nothing
        allowed = bool(app.server.config[ALLOWED])
        may_stop = allowed and shown is not None and shown.alive
        may_go_on = (
            allowed and shown is not None and shown.state in jobs.ENDED_EARLY and "pid" in shown.config
        )
        return (
            now,
            cards.heading(shown) if shown else "",
            f"{shown.id}: {shown.state}" if shown else "",
            training.curve(
                shown.points() if shown else [], shown.total if shown else None, scheme or "light"
            ),
            cards.log(shown) if shown else "",
            [cards.row(job, job.id == (shown.id if shown else None)) for job in found],
            "Stop at once" if shown and shown.state == "cancelling" else "Cancel",
            {} if may_stop else cards.HIDDEN,
            {} if may_go_on else cards.HIDDEN,
            shown is None,
            not found,
        )

    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    late = {"prevent_initial_call": True}
    browser(
        "jobOpened", Output("ft-open", "data"), Input({"type": "ft-open", "job": ALL}, "n_clicks"), **late
    )
    browser("jobActed", Input("ft-acted", "data"), **late)


def start_job(library: Library, run: Run, form: Form, chosen: list[str]) -> Job:
    """Check what is asked as the job itself would, then start it."""
    others = others_of(library, run)
    asked = training.request(run, form, chosen, others)
    own, theirs = training.given_scores(run, form, others)
    with suppress(counting.Uncounted):  # then the job itself says what is wrong
        counting.count(run, training.settings(form), asked.heads, own, theirs, form.seed or 0)
    return jobs.launch(run, asked, _runs(library))


def others_of(library: Library, run: Run) -> dict[str, Run]:
    """Runs of the same policy on other demonstrations."""
    runs = {other.name: other for other in _runs(library)}
    return {n: o for n, o in runs.items() if o.policy == run.policy and o.data != run.data}


def _check(app: Dash, token: str | None) -> None:
    if not app.server.config[ALLOWED]:
        raise UsageError("this dashboard only looks: start it with `robosteer app --allow-launch`")
    if not token or not secrets.compare_digest(token, app.server.config[TOKEN]):
        raise UsageError("the server was started again since this page was loaded: reload the page")


def _runs(library: Library) -> list[Run]:
    return [entry.run for entry in library.entries() if entry.run is not None]


def _filled(fields: Any) -> Form:
    values = dict(zip(FIELDS, fields, strict=True))
    for name in ("steps", "lr", "seed"):
        values[name] = None if values[name] in (None, "") else values[name]
    return Form(**{**values, "name": values["name"] or "", "others": tuple(values["others"] or ())})


def _shown(found: list[Job], wished: str | None) -> Job | None:
    """The wished one, or the one at work, or the latest."""
    by_id = {job.id: job for job in found}
    if wished in by_id:
        return by_id[wished]
    return next((job for job in found if job.active), found[0] if found else None)


def _signature(found: list[Job], shown: Job | None, run: str) -> dict[str, Any]:
    """Changes whenever anything on the page does."""
    log = shown.path / "log" if shown else None
    size = log.stat().st_size if log is not None and log.is_file() else 0
    states = [f"{job.id} {job.state} {job.step}" for job in found]
    return {"run": run, "job": shown.id if shown else None, "states": states, "log": size}


PAGE = Page("/finetune", "Finetune", body, connect)
