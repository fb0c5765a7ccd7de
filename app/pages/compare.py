"""Compare: did it work? Results of rollouts side by side: success with intervals, the paired difference to a pinned
baseline on the same episodes, under suites that change one factor, on other tasks, and what each arm cost.

Wish in the URL: against (the pinned baseline).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from app import costs, films, outcomes, rates, raw, reading, widgets
from app.library import Library
from app.maps import Figure
from app.pages.page import Page, Screen
from interp.errors import UsageError
from interp.runs import Run
from steering.compare import Comparison
from steering.results import Result

PERCENT = {"function": "params.value == null ? '–' : (100 * params.value).toFixed(1) + ' %'"}
POINTS = {
    "function": "params.value == null ? '–' : (params.value > 0 ? '+' : '') + (100 * params.value).toFixed(1)"
}
COUNT = {"function": "params.value == null ? '–' : d3.format(',')(params.value)"}
ROLLOUTS = {
    "function": "params.data.seeds == null ? d3.format(',')(params.value) : params.value + ' × ' + params.data.seeds"
}
PAIRS = {
    "function": "params.value == null || params.value === params.data.n ? '' : d3.format(',')(params.value)"
}
SECONDS = {"function": "params.value == null ? '–' : d3.format(',.0f')(params.value)"}
NOTES = 4  # shown before one asks for more
FILMS = 12  # shown at once, or the first episode's if there are more


def _interval(low: str, high: str, sign: bool = False) -> dict[str, str]:
    """Both ends of an interval in one cell, as percent; sorted by its low end."""

    def shown(end: str) -> str:
        number = f"(100 * params.data.{end}).toFixed(1)"
        return f"(params.data.{end} > 0 ? '+' : '') + {number}" if sign else number

    return {"function": f"params.data.{low} == null ? '–' : {shown(low)} + ' to ' + {shown(high)}"}


def _range(least: str, most: str) -> dict[str, str]:
    """From the least to the most of a cost; sorted by the most."""
    ends = [f"d3.format(',.0f')(params.data.{end})" for end in (least, most)]
    several = f"{ends[0]} === {ends[1]} ? {ends[1]} : {ends[0]} + ' to ' + {ends[1]}"
    return {"function": f"params.data.{most} == null ? '–' : ({several})"}


def body(screen: Screen) -> Component:
    results, problems = outcomes.read(screen.run)
    comparison = outcomes.compared(results, screen.wishes.get("against"), suites=False)
    if comparison is None:
        return html.Div([widgets.notices(problems), _empty(screen)])
    pinned = dmc.Select(
        id="compare-against",
        data=[arm.arm for arm in comparison.arms],
        value=comparison.against,
        placeholder="none",
        size="xs",
        w=170,
        allowDeselect=False,
        **widgets.attributes(aria_label="Baseline"),
    )
    more = len(results) > len(comparison.cells)
    return html.Div(
        [
            html.Div(_notes([*problems, *outcomes.notes(comparison)]), id="compare-notes"),
            html.Section(
                [
                    html.Div(
                        [
                            html.H1("Before and after"),
                            html.Div(_facts(screen), className="rs-facts"),
                            html.Div(widgets.field("Baseline", pinned), className="rs-bar-end"),
                        ],
                        className="rs-title",
                    ),
                    html.Div(_read(comparison), id="compare-reading"),
                ],
                className="rs-card rs-reading",
            ),
            html.Div(_tasks(comparison, screen.scheme), className="rs-compare", id="compare-tasks"),
            html.Div(
                html.P("Working out the intervals of the other suites …", className="rs-muted rs-working")
                if more
                else [],
                id="compare-suites",
                className="rs-compare",
                **widgets.attributes(aria_live="polite"),
            ),
            html.Div(
                [
                    html.Div(
                        _costs(comparison, screen.scheme),
                        className="rs-compare even wide",
                        id="compare-costs",
                    ),
                    _cells(comparison, len(results)),
                    _settings(results.values()),
                    *_films(screen.run, results, [arm.arm for arm in comparison.arms]),
                ],
                className="rs-compare",
            ),
            dcc.Store(id="compare-pinned"),
        ],
        className="rs-compare-page",
    )


def connect(app: Dash, library: Library) -> None:
    @app.callback(
        Output("compare-notes", "children"),
        Output("compare-reading", "children"),
        Output("compare-tasks", "children"),
        Output("compare-suites", "children"),
        Output("compare-costs", "children"),
        Output("results", "rowData"),
        Input("compare-against", "value"),
        State("run", "value"),
        State("scheme", "data"),
    )
    def pin(against: str | None, name: str, scheme: str | None) -> tuple[Any, ...]:
        """Everything that a baseline decides, and all suites: their intervals take a while the first time."""
        comparison = None
        try:
            results, problems = outcomes.read(library.open(name))
            comparison = outcomes.compared(results, against)
            notes = [
                *problems,
                *(outcomes.notes(comparison) if comparison else [f"run {name} has no results any more"]),
            ]
        except (UsageError, OSError) as error:
            notes = [f"the suites cannot be shown: {error}"]
        if comparison is None:
            return _notes(notes), no_update, no_update, [], no_update, no_update
        shown = scheme or "light"
        return (
            _notes(notes),
            _read(comparison),
            _tasks(comparison, shown),
            _suites(comparison, shown),
            _costs(comparison, shown),
            outcomes.table(comparison),
        )

    app.clientside_callback(
        ClientsideFunction("robosteer", "pinned"),
        Output("compare-pinned", "data"),
        Input("compare-against", "value"),
        prevent_initial_call=True,
    )

    def film(run: str, film: str) -> Path:
        return films.film(library.open(run), film)

    raw.route(app, "/raw/<run>/videos/<path:film>", film)


def _notes(lines: Sequence[str]) -> list[Component]:
    """What was left out or cannot be relied on; a comparison of many cells has more of it than anyone reads at once."""
    first, others = lines[:NOTES], lines[NOTES:]
    more = [html.Summary(f"{len(others)} more notes"), widgets.notices(others)]
    return [widgets.notices(first), *([html.Details(more, className="rs-more-notes")] if others else [])]


def _read(comparison: Comparison) -> list[Component]:
    return [widgets.prose(line) for line in outcomes.reading(comparison)]


def _facts(screen: Screen) -> list[html.Span]:
    return [html.Span(fact) for fact in reading.facts(screen.run)]


PAIRED = "paired over the same episodes; 95 % interval"


def _tasks(comparison: Comparison, scheme: str) -> list[Component]:
    """As in the demonstrations."""
    groups = outcomes.grouped(comparison)
    height = rates.task_rows(groups).height
    rests = outcomes.rests(comparison, (row.cell for group in groups for row in group.rows))
    success = rates.success(comparison, groups, scheme)
    cards: list[Component] = [
        _figure("success", "Success in closed loop", f"rate and 95 % interval; {rests}", success, height)
    ]
    if comparison.against is not None:
        difference = rates.difference(comparison, groups, scheme)
        cards.append(_figure("difference", "Against the baseline", PAIRED, difference, height))
    return cards


def _suites(comparison: Comparison, scheme: str) -> list[Component]:
    """When one factor changes, on tasks that nobody trained, and on those of the pretraining."""
    if not outcomes.trials(comparison):
        return []
    height = rates.suite_rows(comparison).height + rates.legend_height(comparison)
    about = f"mean over tasks, 95 % interval; {outcomes.rests(comparison, comparison.cells)}"
    success = rates.under_suites(comparison, scheme)
    cards: list[Component] = [_figure("suites", "When something changes", about, success, height)]
    if comparison.against is not None:
        difference = rates.under_suites(comparison, scheme, paired=True)
        title = "Robustness and forgetting against the baseline"
        cards.append(_figure("suite-difference", title, PAIRED, difference, height))
    return cards


def _costs(comparison: Comparison, scheme: str) -> list[Component]:
    parameters = costs.cost(comparison, "parameters", scheme)
    seconds = costs.cost(comparison, "seconds", scheme)
    spans = "bars span tasks and seeds"
    slow = "wall seconds, which other jobs lengthen; " if outcomes.clock(comparison) == "wall" else ""
    about = f"{slow}evaluation not counted; {spans}"
    height = 300 + rates.legend_height(comparison)
    return [
        _figure(
            "parameters",
            "Success against what trains",
            f"trainable parameters, logarithmic; {spans}",
            parameters,
            height,
        ),
        _figure("seconds", "Success against time", about, seconds, height),
    ]


def _cells(comparison: Comparison, cells: int) -> html.Section:
    menu = widgets.export_menu("results", figure=False)
    return widgets.card(
        "Every cell", "an arm on a task under a suite", _table(comparison, cells), menu=menu, wide=True
    )


def _figure(name: str, title: str, about: str, figure: Figure, height: int) -> html.Section:
    menu = widgets.export_menu(f"{name}-figure")
    return widgets.card(title, about, widgets.figure(f"{name}-figure", height, figure), menu=menu)


def _table(comparison: Comparison, cells: int) -> dag.AgGrid:
    """`cells`: how many there will be when all suites are worked out."""

    def column(
        name: str, header: str, width: int, show: dict[str, str] | None = None, **more: Any
    ) -> dict[str, Any]:
        number = {} if show is None else {"valueFormatter": show, "type": "rightAligned"}
        if show is not None:
            number["filter"] = "agNumberColumnFilter"
        return {"field": name, "headerName": header, "width": width, **number, **more}

    few = cells <= 24
    clock = outcomes.clock(comparison)
    spent = f"train_{clock}_seconds"
    return dag.AgGrid(
        id="results",
        rowData=outcomes.table(comparison),
        columnDefs=[
            column("task", "task", 120, minWidth=110, flex=1, filter="agTextColumnFilter"),
            column("suite", "suite", 116, minWidth=116, flex=1, filter="agTextColumnFilter"),
            column("arm", "arm", 90, minWidth=84, flex=1, filter="agTextColumnFilter"),
            column("success", "success", 84, PERCENT),
            column("low", "95 %", 108, _interval("low", "high")),
            column(
                "n",
                "n × seeds",
                88,
                ROLLOUTS,
                headerTooltip="episodes, and trainings of an arm that was trained",
            ),
            column("difference", "points", 78, POINTS),
            column("difference_low", "95 %", 124, _interval("difference_low", "difference_high", sign=True)),
            column(
                "paired", "paired", 72, PAIRS, headerTooltip="episodes that the baseline ran too, where fewer"
            ),
            column("trainable", "trainable", 90, COUNT, tooltipField="groups"),
            column(f"{spent}_most", f"{clock}, s", 96, _range(f"{spent}_least", f"{spent}_most")),
            column("peak_memory_mb", "peak, MB", 84, SECONDS),
            column("failures", "how it failed", 180, minWidth=160, flex=2, tooltipField="failures"),
        ],
        defaultColDef={"sortable": True, "resizable": True, "suppressHeaderMenuButton": True},
        getRowId="params.data.arm + '/' + params.data.task + '/' + params.data.suite",
        dashGridOptions={
            "theme": widgets.GRID_THEME,
            "domLayout": "autoHeight" if few else "normal",
            "suppressCellFocus": False,
        },
        style={"height": None if few else "520px"},
    )


def _settings(results: Iterable[Result]) -> Component:
    """What several arms have side by side; what one alone has as a list of its own."""
    arms, rows = outcomes.differing(results)
    if not rows:
        return html.Div()
    shared = [(name, values) for name, values in rows if sum(value != outcomes.NONE for value in values) > 1]
    alone = {
        arm: [
            (name, values[i])
            for name, values in rows
            if (name, values) not in shared and values[i] != outcomes.NONE
        ]
        for i, arm in enumerate(arms)
    }
    parts: list[Component] = [_side_by_side(arms, shared)] if shared else []
    for arm, own in alone.items():
        if own:
            pairs = [html.Div([html.Dt(name), html.Dd(value, title=value)]) for name, value in own]
            parts += [html.H3(f"{arm} alone"), html.Dl(pairs)]
    settings = html.Div(parts, className="rs-differs")
    return widgets.card("What differs", "settings that are not the same for all arms", settings, wide=True)


def _side_by_side(arms: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Component:
    head = html.Tr([html.Th(name, scope="col") for name in ("setting", *arms)])
    lines = [
        html.Tr([html.Th(name, scope="row"), *(html.Td(value, title=value) for value in values)])
        for name, values in rows
    ]
    table = html.Table([html.Thead(head), html.Tbody(lines)], className="rs-settings")
    named = widgets.attributes(aria_label="What differs in the settings")
    return html.Div(table, className="rs-scroll", tabIndex=0, role="region", **named)


def _films(run: Run, results: Mapping[Path, Result], arms: Sequence[str]) -> list[Component]:
    """Episode by episode, so that arms are seen on the same one."""
    names = films.films_of(run)
    if not names:
        return []
    scenes = films.scenes(names, results, arms)
    so_far = list(accumulate(len(scene.films) for scene in scenes))
    shown = [scene for scene, n in zip(scenes, so_far, strict=True) if n <= FILMS] or scenes[:1]
    count = sum(len(scene.films) for scene in shown)
    about = "the same episode, arm by arm" + (
        f"; {count} of {len(names)} films" if count < len(names) else ""
    )
    rows = [_scene(run, scene) for scene in shown]
    return [widgets.card("Rollouts", about, html.Div(rows, className="rs-scenes"), wide=True)]


def _scene(run: Run, scene: films.Scene) -> html.Div:
    title = [html.H3(scene.title)] if scene.title else []
    return html.Div([*title, html.Div([_film(run, film) for film in scene.films], className="rs-films")])


def _film(run: Run, film: films.Film) -> html.Figure:
    address = f"/raw/{run.name}/videos/{film.name}?v={raw.version(run.path / 'videos' / film.name)}"
    moving = Path(film.name).suffix in (".mp4", ".webm")
    said = f"{film.arm}: {film.ended}" if film.ended else film.arm
    picture: Component = (
        html.Video(src=address, controls=True, muted=True, preload="metadata", **widgets.attributes(aria_label=said))
        if moving
        else html.Img(src=address, alt=f"film of the rollout {said}")
    )  # fmt: skip
    outcome = {True: "good", False: "bad", None: ""}[film.success]
    caption: list[Any] = [html.B(film.arm)]
    caption += [html.Span(film.ended, className=f"rs-said {outcome}")] if film.ended else []
    return html.Figure([picture, html.Figcaption(caption)])


def _empty(screen: Screen) -> Component:
    return widgets.empty(
        "No rollouts in this run yet",
        "Finetune the chosen heads, then let base and finetuned policy drive the same episodes. Success rates, their "
        "intervals and the paired difference appear here.",
        html.P(widgets.code(f"robosteer finetune --run {screen.run.path} --heads NAME")),
        html.P(widgets.code(f"robosteer evaluate --run {screen.run.path} --task TASK")),
    )


PAGE = Page("/compare", "Compare", body, connect)
