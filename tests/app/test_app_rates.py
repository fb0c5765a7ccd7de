"""The figures of Compare: valid, the same arm the same everywhere, and each says on how much it rests."""

from __future__ import annotations

import json
from pathlib import Path

import plotly.graph_objects as go
import pytest
from app_kit import make_run
from compare_kit import compared, half, pinned, wilson_roots
from plotly.utils import PlotlyJSONEncoder

from app import costs, create_app, outcomes, rates, theme
from app.pages import compare
from app.pages.page import Screen
from interp.runs import Run
from steering.looks import LOOKS


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "runs" / "first")


def test_figures_are_valid_keep_an_arms_colour_and_draw_no_line_through_words(run: Run) -> None:
    for arm, parameters, seconds in (("base", 0, 0.0), ("aligned", 49_152, 61.0), ("full", 3_331_879, 140.0)):
        trained = {"all": parameters} if parameters else {}
        half(run, arm, 10, trainable_parameters=trained, seconds={"train": seconds})
        half(run, arm, 8, suite="lighting")
    comparison = compared(run)
    groups = outcomes.grouped(comparison)
    for scheme in theme.SCHEMES:
        figures = [
            rates.success(comparison, groups, scheme),
            rates.difference(comparison, groups, scheme),
            rates.under_suites(comparison, scheme),
            rates.under_suites(comparison, scheme, paired=True),
            costs.cost(comparison, "parameters", scheme),
            costs.cost(comparison, "seconds", scheme),
        ]
        for figure in figures:
            go.Figure(figure)  # Plotly refuses unknown properties and values
            assert [trace["name"] for trace in figure["data"]] == ["base", "aligned", "full"]
            seen = {
                trace["name"]: (trace["marker"]["color"], trace["marker"]["symbol"])
                for trace in figure["data"]
            }
            looks = {arm: (getattr(LOOKS[arm], scheme), LOOKS[arm].symbol) for arm in seen}
            assert seen == looks  # the same arm the same everywhere
            paint = {path[1]: token for path, token in figure["layout"]["meta"]["paint"] if path[0] == "data"}
            for i, name in enumerate(seen):  # and in the other scheme, where the browser repaints it
                place = int(paint[i].removeprefix("looks."))
                assert theme.client()["dark"]["looks"][place] == LOOKS[name].dark
    difference = figures[1]["layout"]
    (heading,) = (note["y"] for note in difference["annotations"] if "marker-in-mug" in note["text"])
    assert all(not shape["y0"] <= heading <= shape["y1"] for shape in difference["shapes"])
    assert difference["xaxis"]["range"][0] < 0 < difference["xaxis"]["range"][1]  # zero is never the edge
    by_parameters = {trace["name"]: trace["x"] for trace in figures[4]["data"]}
    assert by_parameters["aligned"] == [49_152]
    assert by_parameters["base"][0] < 49_152  # nothing to train has no logarithm: it stands before the axis
    assert figures[4]["layout"]["xaxis"]["ticktext"][0] == "none"


def test_it_is_said_on_how_many_trainings_a_number_rests(run: Run) -> None:
    for suite in ("in-domain", "lighting"):
        half(run, "base", 5, suite=suite)
        for seed in range(3):
            half(run, "aligned", 12 + seed, seed=seed, suite=suite)
        half(run, "lora", 10, seed=0, suite=suite)
    comparison = compared(run)
    groups = outcomes.grouped(comparison)
    assert outcomes.reading(comparison)[-1] == (
        "**Trainings**: aligned 3 seeds; lora one training run (its luck is in no interval)."
    )
    rows = {row["arm"]: row for row in outcomes.table(comparison) if row["suite"] == "in-domain"}
    assert {arm: (row["n"], row["seeds"]) for arm, row in rows.items()} == {
        "base": (20, None),
        "aligned": (20, 3),
        "lora": (20, 1),
    }
    success = rates.success(comparison, groups, "light")
    beside = [note["text"] for note in success["layout"]["annotations"] if "<b>" not in note["text"]]
    assert beside == ["5/20", "39/60 · 3 seeds", "10/20 · 1 seed"]
    for figure in (
        success,
        rates.difference(comparison, groups, "light"),
        rates.under_suites(comparison, "light"),
        rates.under_suites(comparison, "light", paired=True),
        costs.cost(comparison, "parameters", "light"),
    ):
        hover = {trace["name"]: trace["text"][0] for trace in figure["data"] if trace["text"]}
        assert "n = 20 × 3 seeds" in hover["aligned"]
        assert "one training run<br>(its luck is in no interval)" in hover["lora"]
        assert all("%{text}" in trace["hovertemplate"] for trace in figure["data"])
    captions = pinned(create_app(run.path.parent).server.test_client(), run, "base")
    assert "n = 20 episodes × 1 to 3 seeds" in captions["compare-tasks"]
    assert "n = 20 episodes × 1 to 3 seeds" in captions["compare-suites"]


def test_what_is_paired_on_fewer_episodes_or_not_at_all_says_so(run: Run) -> None:
    half(run, "base", 5, n=10)
    half(run, "aligned", 12)
    half(run, "lora", 12, suite="lighting")
    half(run, "aligned", 12, suite="lighting")
    comparison = compared(run)
    (row,) = (r for r in outcomes.table(comparison) if r["arm"] == "aligned" and r["suite"] == "in-domain")
    assert (row["n"], row["paired"]) == (20, 10)
    figure = rates.difference(comparison, outcomes.grouped(comparison), "light")
    assert "on 10 of 20" in [note["text"] for note in figure["layout"]["annotations"]]
    (aligned,) = (trace for trace in figure["data"] if trace["name"] == "aligned")
    assert "paired on 10 of 20" in aligned["text"][0]
    figure = rates.under_suites(comparison, "light", paired=True)
    assert "not paired:<br>2 arms" in [note["text"] for note in figure["layout"]["annotations"]]
    (line,) = (line for line in outcomes.reading(comparison) if "Visual" in line)
    assert line == "**Visual changes** (1 suite): aligned 60 %, not paired; lora 60 %, not paired."


def test_the_numbers_behind_a_figure_say_what_they_are(run: Run) -> None:
    half(run, "base", 5, n=10)
    for suite in ("in-domain", "lighting"):
        for seed in range(2):
            half(run, "aligned", 12, seed=seed, suite=suite)
    comparison = compared(run)
    groups = outcomes.grouped(comparison)
    low, high = wilson_roots(5, 10)
    taken = rates.success(comparison, groups, "light")["layout"]["meta"]["rows"]
    assert taken[0] == {
        "task": "marker-in-mug", "suite": "in-domain", "arm": "base", "n": 10, "seeds": None,
        "success_percent": 50, "low": pytest.approx(low, abs=1e-3), "high": pytest.approx(high, abs=1e-3),
    }  # fmt: skip
    (gap,) = rates.difference(comparison, groups, "light")["layout"]["meta"]["rows"]
    where = {"arm": "aligned", "against": "base", "n": 20, "paired": 10, "seeds": 2}
    assert where.items() <= gap.items()
    assert gap["points"] == 50  # of the ten first, all that base ran, aligned wins all and base five
    assert gap["low"] < 50 < gap["high"]
    taken = rates.under_suites(comparison, "light", paired=True)["layout"]["meta"]["rows"]
    by_suite = {row["suite"]: row for row in taken}
    assert by_suite["in-domain"]["points"] == 50
    apart = {
        "arm": "aligned",
        "tries": "visual",
        "tasks": 1,
        "n": 20,
        "seeds": 2,
        "paired": 0,
        "points": None,
    }
    assert apart.items() <= by_suite["lighting"].items()


def test_time_is_the_processors_where_all_counted_it_and_says_which(run: Run) -> None:
    half(run, "base", 5)
    for seed, busy in enumerate((50.0, 60.0)):
        half(run, "aligned", 12, seed=seed, seconds={"train": 4 * busy, "train_processor": busy})
    half(run, "lora", 12, seed=0, seconds={"train": 90.0, "train_processor": 70.0})
    figure = costs.cost(compared(run), "seconds", "light")
    assert figure["layout"]["xaxis"]["title"]["text"] == "processor seconds of one training"
    drawn = {trace["name"]: trace for trace in figure["data"]}
    assert {name: trace["x"] for name, trace in drawn.items()} == {"base": [0], "aligned": [55], "lora": [70]}
    assert (drawn["aligned"]["error_x"]["arrayminus"], drawn["aligned"]["error_x"]["array"]) == ([5], [5])
    assert drawn["aligned"]["text"][0].startswith("50 to 60 processor seconds<br>")
    (row,) = (row for row in outcomes.table(compared(run)) if row["arm"] == "aligned")
    assert (row["train_processor_seconds_least"], row["train_wall_seconds_most"]) == (50, 240)

    half(run, "lora", 12, seed=0, seconds={"train": 90.0})  # from before it was counted
    figure = costs.cost(compared(run), "seconds", "light")
    assert figure["layout"]["xaxis"]["title"]["text"] == "wall seconds of one training"
    drawn = {trace["name"]: trace for trace in figure["data"]}
    assert {name: trace["x"] for name, trace in drawn.items()} == {
        "base": [0],
        "aligned": [220],
        "lora": [90],
    }
    page = compare.body(Screen(run, {}, "light"))
    assert "wall seconds, which other jobs lengthen" in json.dumps(page, cls=PlotlyJSONEncoder)


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (49_152, 49_152, [50_000]),  # a single price still has a number near it
        (20_000, 300_000, [10_000, 20_000, 50_000, 100_000, 200_000, 500_000]),
        (1_000, 3_000_000, [1_000, 10_000, 100_000, 1_000_000, 10_000_000]),
    ],
)
def test_prices_have_numbers_on_their_axis(least: float, most: float, expected: list[float]) -> None:
    assert costs.log_ticks(least, most) == expected
