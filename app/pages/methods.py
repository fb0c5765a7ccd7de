"""Methods: do the ways of judging heads agree, with each other and with themselves on other demonstrations?

Rank correlation, overlap of the best k against chance, which methods share which heads (UpSet), ranks side by side,
approximations against what they approximate, stability over demonstrations. Wishes in the URL: tower, factor, k, pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, html, no_update
from dash.development.base_component import Component

from app import agreement, comparisons, reading, trust, views, widgets
from app.library import Library, scores_of
from app.maps import Figure, Frame
from app.pages.page import Page, Screen
from interp.errors import UsageError
from interp.runs import Run
from interp.scores import HeadScores

TAKE = 12  # the k at first; a fifth of tiny-pi0's expert
WHOLE = "all"  # the factor control's word for scores without a factor


def body(screen: Screen) -> Component:
    scores, problems = scores_of(screen.run)
    scored = {name for one in scores.values() for name in one.towers}
    towers = [name for name in screen.run.spec.towers if name in scored]  # the last one writes the action
    if not towers:
        return html.Div([widgets.notices(problems), _empty(screen)])
    asked = screen.wishes
    tower = asked["tower"] if asked.get("tower") in towers else towers[-1]
    factors = _factors(scores, tower)
    factor = asked["factor"] if asked.get("factor") in factors else factors[0]
    k = int(asked["k"]) if asked.get("k", "").isdecimal() and int(asked["k"]) > 0 else TAKE
    drawn = _drawn(screen.run, tower, factor, k, asked.get("pair"), screen.scheme)
    return html.Div(
        [
            widgets.notices(problems),
            html.Section(
                [
                    html.Div(
                        [
                            html.H1("Do the methods agree?"),
                            html.Div([html.Span(t) for t in reading.facts(screen.run)], className="rs-facts"),
                        ],
                        className="rs-title",
                    ),
                    html.Div(drawn[0], id="methods-reading"),
                    html.Div(_controls(towers, tower, factors, factor, k), className="rs-controls"),
                ],
                className="rs-card rs-reading",
            ),
            html.Div(drawn[1], id="methods-cards", className="rs-compare even"),
        ]
    )


def _controls(towers: list[str], tower: str, factors: list[str], factor: str, k: int) -> list[Component]:
    def segments(name: str, label: str, data: list[Any], value: str) -> Component:
        control = dmc.SegmentedControl(
            id=f"methods-{name}", data=data, value=value, size="xs", **widgets.attributes(aria_label=label)
        )
        return widgets.field(label, control)

    labels = [{"value": f, "label": "whole action" if f == WHOLE else f} for f in factors]
    count = dmc.NumberInput(
        id="methods-k", value=k, min=1, max=9999, allowDecimal=False, size="xs", w=76,
        **widgets.attributes(aria_label="How many heads count as the best"),
    )  # fmt: skip
    return [
        segments("tower", "Tower", towers, tower),
        segments("factor", "Factor", labels, factor),
        widgets.field("Best", count),
    ]


def connect(app: Dash, library: Library) -> None:
    @app.callback(
        Output("methods-reading", "children"),
        Output("methods-cards", "children"),
        Output("methods-factor", "data"),
        Output("methods-factor", "value"),
        Input("methods-tower", "value"),
        Input("methods-factor", "value"),
        Input("methods-k", "value"),
        State("view", "data"),
        State("run", "value"),
        State("scheme", "data"),
        prevent_initial_call=True,
    )
    def draw(
        tower: str, factor: str, k: Any, wishes: Mapping[str, str] | None, run: str, scheme: str | None
    ) -> tuple[Any, ...]:
        try:
            opened = library.open(run)
        except UsageError as error:
            return widgets.prose(str(error)), [], no_update, no_update
        if not isinstance(k, int) or k < 1:
            return (no_update,) * 4
        factors = _factors(scores_of(opened)[0], tower)
        chosen = factor if factor in factors else factors[0]
        drawn = _drawn(opened, tower, chosen, k, (wishes or {}).get("pair"), scheme or "light")
        labels = [{"value": f, "label": "whole action" if f == WHOLE else f} for f in factors]
        return *drawn, labels, chosen

    @app.callback(
        Output("check", "children"),
        Output("check-says", "children"),
        Input("methods-pair", "value"),
        State("methods-tower", "value"),
        State("run", "value"),
        State("scheme", "data"),
        prevent_initial_call=True,
    )
    def check(pair: str | None, tower: str, run: str, scheme: str | None) -> tuple[Any, Any]:
        try:
            scores, _ = scores_of(library.open(run))
        except UsageError as error:
            return [], str(error)
        exact, rough = (pair or "").split("~", 1) if "~" in (pair or "") else ("", "")
        if (exact, rough) not in agreement.checks(scores, tower):
            return no_update, no_update
        return _check(scores, tower, exact, rough, scheme or "light")

    for name in ("tower", "factor", "k", "pair"):
        app.clientside_callback(
            ClientsideFunction("robosteer", f"wish_{name}"),
            Input(f"methods-{name}", "value"),
            prevent_initial_call=True,
        )


def _drawn(
    run: Run, tower: str, factor: str, k: int, pair: str | None, scheme: str
) -> tuple[list[Component], list[Component]]:
    """The reading and the cards."""
    scores, _ = scores_of(run)
    files = agreement.files_of(scores, tower, None if factor == WHOLE else factor)
    ranks = agreement.rankings(files, tower)
    k = min(k, ranks.n)
    pairs = agreement.checks(scores, tower)
    found = agreement.stability(scores, tower)
    cards: list[Component] = []
    if len(files) > 1 and ranks.n > 1:
        lines = agreement.reading(ranks, k)
        cards += _agreement_cards(ranks, k, scheme)
    elif len(files) > 1:
        lines = ["The methods scored no heads in common: there is nothing to compare."]
    else:
        one = f"Only **{next(iter(files))}** has" if files else "No method has"
        lines = [
            f"{one} scores of tower {tower}" + ("" if factor == WHOLE else f" for {factor}") + _more(run)
        ]
    if pairs:
        known = [f"{a}~{b}" for a, b in pairs]
        wanted = [p for p in known if factor != WHOLE and scores[p.split("~")[0]].factor == factor]
        cards.append(
            _check_card(scores, tower, known, pair if pair in known else (wanted or known)[0], scheme)
        )
    else:
        line = f"robosteer attribute --run {run.path}" + (f" --factor {factor}" if factor != WHOLE else "")
        cards.append(
            _missing("Approximate against exact", "No approximation of exact scores is here yet.", line)
        )
    if found:
        cards.append(_stability_card(found, tower, scheme))
    else:
        line = f"robosteer rank --run {run.path} --stability"
        cards.append(
            _missing(
                "Stability over demonstrations",
                "No method was tried on half the demonstrations yet.",
                line,
            )
        )
    return [widgets.prose(line) for line in lines], cards


def _agreement_cards(ranks: agreement.Rankings, k: int, scheme: str) -> list[Component]:
    pairs, groups = agreement.overlaps(ranks, k), agreement.memberships(ranks, k)
    square = max(comparisons.overlap_height(pairs), 330)
    return [
        widgets.card(
            "Rank correlation",
            f"Spearman's ρ over {ranks.n} heads",
            widgets.figure(
                "matrix", square, comparisons.matrix(ranks, agreement.correlations(ranks), scheme)
            ),
            menu=widgets.export_menu("matrix"),
        ),
        widgets.card(
            f"Overlap of the best {k} against chance",
            f"dot: heads in common; band: 95 % of random sets of {k} of {ranks.n}",
            widgets.figure("overlap", square, comparisons.overlap(ranks, pairs, k, scheme)),
            menu=widgets.export_menu("overlap"),
        ),
        widgets.card(
            f"Who shares which of the best {k}",
            "a column: the heads that exactly these methods have; click a bar to select them",
            _points(
                "upset", comparisons.upset(ranks, groups, k, scheme), None, comparisons.upset_height(ranks)
            ),
            menu=widgets.export_menu("upset"),
        ),
        widgets.card(
            "Ranks side by side",
            f"heads among the best {k} of any method; above the dashed line they are; click a line to select it",
            _points(
                "slope", comparisons.slope(ranks, k, scheme), comparisons.slope_frame(ranks), 330, lines=True
            ),
            menu=widgets.export_menu("slope"),
        ),
    ]


def _check_card(
    scores: Mapping[str, HeadScores], tower: str, known: list[str], pair: str, scheme: str
) -> Component:
    options = [{"value": p, "label": "{} as {}".format(*reversed(p.split("~")))} for p in known]
    choose = dmc.Select(
        id="methods-pair", data=options, value=pair, size="xs", w=260, allowDeselect=False,
        **widgets.attributes(aria_label="Approximation to check"),
    )  # fmt: skip
    exact, rough = pair.split("~")
    plot, says = _check(scores, tower, exact, rough, scheme)
    return widgets.card(
        "Approximate against exact",
        "a point a head; on the line both are equal",
        html.Div(
            [choose, html.Span(says, id="check-says", className="rs-muted")], className="rs-controls in"
        ),
        html.Div(plot, id="check"),
        menu=widgets.export_menu("check"),
    )


def _check(
    scores: Mapping[str, HeadScores], tower: str, exact: str, rough: str, scheme: str
) -> tuple[list[Component], str]:
    a, b = scores[exact], scores[rough]
    ranks = agreement.rankings({exact: a, rough: b}, tower)
    k = min(TAKE, ranks.n)
    says = "no heads in common"
    if ranks.n > 1:
        rho, low, high = agreement.spearman(ranks.score[0], ranks.score[1])
        shared = agreement.overlaps(ranks, k)[0].shared
        says = f"ρ = {rho:.2f} (95 % {low:.2f} to {high:.2f}); {shared} of the best {k} found"
    figure = trust.check(a, b, tower, (exact, rough), scheme)
    return [_points("check-plot", figure, trust.check_frame(a, b, tower), 320)], says


def _missing(title: str, about: str, line: str) -> Component:
    """A question that nobody has computed the answer to, and the command that does."""
    return widgets.card(
        title, about, html.P(widgets.code(line), className="rs-missing"), style={"alignSelf": "start"}
    )


def _stability_card(found: Mapping[str, HeadScores], tower: str, scheme: str) -> Component:
    k = trust.best_of(found, tower)
    of = f"the best {k}" if k else "the best k"
    return widgets.card(
        "Stability over demonstrations",
        f"how often a head is among {of} when the episodes are resampled; dashed: chance",
        _points("stable", trust.stable(found, tower, scheme), trust.stable_frame(found, tower), 356),
        menu=widgets.export_menu("stable"),
    )


def _points(name: str, figure: Figure, frame: Frame | None, height: int, lines: bool = False) -> Component:
    """A figure by which heads are chosen; with a frame, one on which the selection is drawn."""
    config = widgets.GRAPH if figure["layout"].get("dragmode") == "select" else widgets.STILL
    graph = widgets.figure(name, height, figure, config)
    layers = [widgets.layer(frame)] if frame else []
    more = widgets.attributes(data_mark="lines") if lines else {}
    return html.Div([graph, *layers], className="rs-points" if frame else "rs-points plain", **more)


def _factors(scores: Mapping[str, HeadScores], tower: str) -> list[str]:
    """What can be compared: scores without a factor, and each factor that has any."""
    there = [one for one in scores.values() if tower in one.towers and not views.is_stability(one)]
    plain = [WHOLE] if any(one.factor is None for one in there) else []
    named = {one.factor for one in there if one.factor}
    ordered = [f for f in views.FACTORS if f in named] + sorted(named - set(views.FACTORS))
    return [*plain, *ordered] or [WHOLE]


def _more(run: Run) -> str:
    return f": compute another, for example with `robosteer rank --run {run.path}` or `robosteer factors`."


def _empty(screen: Screen) -> Component:
    return widgets.empty(
        "This run has no scores yet",
        "With the scores of two methods, this page shows whether they agree more than chance would.",
        html.P(widgets.code(f"robosteer rank --run {screen.run.path}")),
    )


PAGE = Page("/methods", "Methods", body, connect)
