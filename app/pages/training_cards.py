"""The parts of the Finetune page: the form, the count, the job and the list of jobs. What they do is in finetune.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from app import counting, training, widgets
from app.jobs import Job
from app.training import Form
from interp.runs import Run

HIDDEN = {"display": "none"}


def form(run: Run, allowed: bool) -> html.Section:
    """What to train, and the count of it."""
    first = training.settings(Form(training.recipes()[0]["value"]))
    fields = [
        _choice("Recipe", "recipe", training.recipes(), first.name),
        html.P(training.about(first.name), id="ft-about", className="rs-muted rs-ft-about"),
        _labelled("Name", dmc.TextInput(id="ft-name", placeholder="as the recipe", size="xs")),
        _number("Steps", "steps", first.steps, min=1, allowDecimal=False),
        _number("Learning rate", "lr", first.lr, min=0, decimalScale=8, step=0.0001),
        widgets.field(
            "Slices",
            dmc.SegmentedControl(
                id="ft-form",
                data=[{"value": value, "label": label} for value, label in training.FORMS.items()],
                value=first.form,
                size="xs",
            ),
        ),
        _number("Seed", "seed", 0, min=0, allowDecimal=False),
        html.Div(
            _choice("Scores", "scores", sorted(run.files("scores"))), id="ft-scores-field", style=HIDDEN
        ),
        html.Div(
            _labelled("Other runs", dmc.MultiSelect(id="ft-others", data=[], value=[], size="xs")),
            id="ft-others-field",
            style=HIDDEN,
        ),
    ]
    start: list[Component] = [dmc.Button("Start", id="ft-start", size="xs", disabled=not allowed)]
    if not allowed:
        says: list[Any] = ["This dashboard only looks. It starts jobs when it is opened with "]
        instead = "; or save the selection and type what is then shown here"
        says += [widgets.code("robosteer app --allow-launch"), instead]
        start.append(html.P(says, className="rs-muted"))
    return widgets.card(
        "Train",
        "the selected heads, on the run's own demonstrations",
        html.Div(
            [
                html.Div(fields, className="rs-ft-fields"),
                html.Div(
                    html.P("Counting what would train …", className="rs-muted"),
                    id="ft-count",
                    className="rs-ft-count",
                    **widgets.attributes(aria_live="polite"),
                ),
                html.Div(
                    [*start, html.Code(id="ft-command", className="rs-ft-command")], className="rs-ft-go"
                ),
                html.Div(id="ft-said", className="rs-said", role="status"),
            ],
            className="rs-ft-body",
        ),
    )


def _labelled(label: str, control: Any) -> html.Div:
    setattr(control, "aria-label", label)
    return widgets.field(label, control)


def _choice(label: str, name: str, data: Sequence[Any], value: str | None = None) -> html.Div:
    first = value or (data[0] if data else None)
    chosen = dmc.Select(id=f"ft-{name}", data=list(data), value=first, size="xs", allowDeselect=False)
    return _labelled(label, chosen)


def _number(label: str, name: str, value: float, **more: Any) -> html.Div:
    return _labelled(
        label, dmc.NumberInput(id=f"ft-{name}", value=value, size="xs", w=120, hideControls=True, **more)
    )


def job() -> html.Section:
    small: dict[str, Any] = {"size": "compact-xs", "variant": "default", "style": HIDDEN}
    return html.Section(
        [
            html.Div(
                [
                    html.Div(id="ft-head", className="rs-ft-head"),
                    # the steps change every second; only a change of state is told to who cannot see it
                    html.Div(id="ft-state", className="rs-hidden", role="status"),
                    html.Div(
                        [
                            dmc.Button("Cancel", id="ft-cancel", **small),
                            dmc.Button("Go on", id="ft-resume", **small),
                            widgets.export_menu("ft-curve"),
                        ],
                        className="rs-ft-buttons",
                    ),
                ],
                className="rs-ft-job-title",
            ),
            widgets.figure("ft-curve", 240),
            html.H3("Log", className="rs-ft-small"),
            html.Pre(
                id="ft-log",
                className="rs-ft-log",
                tabIndex=0,
                role="region",
                **widgets.attributes(aria_label="Log"),
            ),
        ],
        id="ft-job",
        className="rs-card rs-ft-job",
        hidden=True,
    )


def none_yet() -> html.Div:
    """Shown while both of the other cards are hidden."""
    return html.Div(
        widgets.empty(
            "Nothing has been trained in this run",
            html.P("The loss, the time that is left and the log of a training appear here."),
        ),
        className="rs-ft-none",
    )


def listing() -> html.Section:
    head = html.Thead(
        html.Tr([html.Th(name, scope="col") for name in ("job", "recipe", "state", "step", "trained")])
    )
    table = html.Table([head, html.Tbody(id="ft-jobs")], className="rs-ft-table")
    return widgets.card(
        "Jobs of this run",
        "one at a time",
        html.Div(table, className="rs-ft-body"),
        id="ft-list",
        hidden=True,
    )


def counted(run: Run, form: Form, chosen: list[str], others: Mapping[str, Run]) -> tuple[Component, str]:
    asked = training.request(run, form, chosen, others)
    own, theirs = training.given_scores(run, form, others)
    try:
        found = counting.count(run, training.settings(form), asked.heads, own, theirs, form.seed or 0)
    except counting.Uncounted as error:
        return html.P(str(error), className="rs-muted"), training.typed(run, asked)
    share = found.trained / max(found.total, 1)
    rows = [
        html.Tr([html.Td(group), html.Td(f"{n:,}", className="rs-number")])
        for group, n in found.groups.items()
    ]
    return html.Div(
        [
            html.P(
                [html.B(f"{found.trained:,}"), f" trainable parameters, {100 * share:.2g} % of the policy"]
            ),
            html.P(training.heads_in_words(asked.heads), className="rs-muted"),
            html.Table(html.Tbody(rows), className="rs-ft-groups"),
            *(html.P(note, className="rs-muted") for note in found.notes),
        ]
    ), training.typed(run, asked)


def heading(job: Job) -> list[Component]:
    points = job.points()
    done = 100 * job.step / job.total if job.total else 0
    facts = [job.recipe, job.config.get("created", "")[:16].replace("T", " ")]
    out: list[Component] = [
        html.Div(
            [
                html.H2(job.id),
                html.Span(job.state, className=f"rs-state {job.state}"),
                html.Span(" · ".join(fact for fact in facts if fact), className="rs-muted"),
            ],
            className="rs-ft-name",
        ),
        dmc.Progress(
            value=100 if job.state == "done" else done,
            size="sm",
            animated=job.active,
            **widgets.attributes(aria_label="Steps done"),
        ),
        html.P(
            training.so_far(points, job.step, job.total, job.active), className="rs-number", id="ft-so-far"
        ),
    ]
    if job.message:
        out.append(html.P(job.message, className="rs-said bad"))
    if job.state == "done":
        trained = sum(job.summary.get("trainable_parameters", {}).values())
        out.append(html.P(f"{trained:,} parameters trained. Let it drive, against the policy before it:"))
        policy = job.path / "policy"
        line = (
            f"robosteer evaluate --run {job.path.parent.parent} --policy {policy} --task TASK --against base"
        )
        out.append(html.P(widgets.code(line), className="rs-ft-command"))
    return out


def log(job: Job) -> str:
    return job.log() or ("" if job.active else "This job was started in a terminal, which has its log.")


def row(job: Job, shown: bool) -> html.Tr:
    trained = sum(job.summary.get("trainable_parameters", {}).values())
    name = html.Button(
        job.id,
        id={"type": "ft-open", "job": job.id},
        className="rs-ft-open",
        **widgets.attributes(aria_pressed=str(shown).lower()),
    )
    cells: list[Any] = [
        name,
        job.recipe,
        html.Span(job.state, className=f"rs-state {job.state}"),
        f"{job.step}" + (f" / {job.total}" if job.total else ""),
    ]
    return html.Tr([html.Td(cell) for cell in (*cells, f"{trained:,}" if trained else "–")])
