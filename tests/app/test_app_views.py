"""What the dashboard shows is what the scores say: ranks, leaders, chance, ranges, words. Computed here by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from app_kit import DATA, POLICY, TINY, make_run, make_scores

from app import headtable, maps, reading, theme, views
from app.pages import overview
from interp.heads import Head
from interp.runs import Run
from interp.scores import HeadScores, Null, TowerScores


def scores_of(
    value: Any, low: Any = None, high: Any = None, *, higher: bool = False, **more: Any
) -> HeadScores:
    grids = [None if g is None else np.array(g, dtype=float) for g in (value, low, high)]
    tower = TowerScores(*grids, more.pop("null", None), more.pop("dead", ()))  # type: ignore[arg-type]
    text = {"method": "knn", "label": "k-NN", "units": "error", "n": {"episodes": 3}, **more}
    return HeadScores(higher_is_better=higher, towers={"expert": tower}, policy=POLICY, data=DATA, **text)


VALUE = [[0.5, 0.2, np.nan], [0.3, 0.9, 0.21]]
LOW = [[0.45, 0.15, np.nan], [0.22, 0.8, 0.19]]
HIGH = [[0.55, 0.25, np.nan], [0.38, 1.0, 0.23]]


def panel(scores: HeadScores) -> views.Panel:
    return views.view({"knn": scores}).panels[0]


def test_rank_one_is_best_whatever_the_sign() -> None:
    assert panel(scores_of(VALUE)).rank.tolist() == [[4, 1, 0], [3, 5, 2]]
    assert panel(scores_of(VALUE, higher=True)).rank.tolist() == [[2, 5, 0], [3, 1, 4]]


def test_heads_with_the_same_score_have_the_same_standing() -> None:
    """A stability file: 60 of 1024 heads were ever among the best, two of them always; 964 never."""
    value = np.zeros(1024)
    value[100:160] = np.linspace(0.1, 1.0, 60)
    value[900] = 1.0
    value[100] = 0.0
    files = {"knn-stability": scores_of(value.reshape(32, 32), higher=True, method="knn-stability")}
    view = views.view(files, scale="rank")
    rows = {row["id"]: row["rank"] for row in views.rows(view)}
    assert (rows["expert.L0H0"], rows["expert.L31H31"]) == (542.5, 542.5)  # the mean of 61 to 1024
    assert (rows["expert.L4H31"], rows["expert.L28H4"]) == (1.5, 1.5)
    colours = view.colours(view.panels[0]).ravel()
    assert len(set(colours[value == 0])) == 1
    first, last, best = (
        headtable.standings(Head.parse(f"expert.{head}"), headtable.columns(files))[0]
        for head in ("L0H0", "L31H31", "L28H4")
    )
    assert first.among == last.among == "tied 61–1024 of 1024"
    assert best.among == "tied 1–2 of 1024"
    assert first.beaten == pytest.approx((963 / 2) / 1023)  # nobody is below it, 963 are level
    text = reading.paragraphs(view)[1]
    assert text == (
        "**L4H31** leads with 1, in a tie with L28H4. No intervals were computed: its lead is not tested."
    )


def test_leaders_are_the_heads_whose_intervals_reach_the_best_ones() -> None:
    # best: L0H1, 0.15 to 0.25; reached by L1H2 (from 0.19) and L1H0 (from 0.22), not by L0H0 (from 0.45)
    assert [str(h) for h in panel(scores_of(VALUE, LOW, HIGH)).leaders] == [
        "expert.L0H1",
        "expert.L1H2",
        "expert.L1H0",
    ]
    # best: L1H1, 0.8 to 1.0; nothing else ends above 0.8
    assert [str(h) for h in panel(scores_of(VALUE, LOW, HIGH, higher=True)).leaders] == ["expert.L1H1"]


def test_beating_chance_takes_the_whole_interval() -> None:
    null = Null(mean=0.5, low=0.3, high=0.7)
    lower = panel(scores_of(VALUE, LOW, HIGH, null=null)).beats_chance
    assert lower is not None
    assert lower.tolist() == [[False, True, False], [False, False, True]]  # L1H0 ends at 0.38, above 0.3
    higher = panel(scores_of(VALUE, LOW, HIGH, null=null, higher=True)).beats_chance
    assert higher is not None
    assert higher.tolist() == [[False, False, False], [False, True, False]]
    assert panel(scores_of(VALUE, null=null)).beats_chance is None  # without intervals nobody knows


def test_rows_come_best_first_and_leave_out_heads_without_score() -> None:
    rows = views.rows(views.view({"knn": scores_of(VALUE, LOW, HIGH)}))
    assert [row["id"] for row in rows] == [
        "expert.L0H1",
        "expert.L1H2",
        "expert.L1H0",
        "expert.L0H0",
        "expert.L1H1",
    ]
    assert rows[0] == {
        "id": "expert.L0H1",
        "tower": "expert",
        "layer": 0,
        "head": 1,
        "score": 0.2,
        "low": 0.15,
        "high": 0.25,
        "rank": 1,
    }


def test_factors_share_one_table_and_one_range() -> None:
    factors = ("physical", "visual")
    files = {f"m.{f}": scores_of(np.array(VALUE) + i, method="m", factor=f) for i, f in enumerate(factors)}
    groups = views.methods({**files, "knn": scores_of(VALUE)})
    assert {name: set(group) for name, group in groups.items()} == {
        "m": {"m.visual", "m.physical"},
        "knn": {"knn"},
    }
    assert next(iter(groups)) == "m"  # which heads matter for what comes first
    view = views.view(groups["m"])
    assert view.keys == ("visual", "physical")  # the order in which the field says them
    assert [view.range(panel) for panel in view.panels] == [pytest.approx((0.2, 1.9))] * 2
    first = views.rows(view, "visual")[0]
    assert (first["score"], first["score_visual"], first["score_physical"]) == pytest.approx((1.2, 1.2, 0.2))


def test_scales_are_one_for_all_or_one_each_or_ranks() -> None:
    files = {
        f"m.{f}": scores_of(np.array(VALUE) + i, method="m", factor=f) for i, f in enumerate(views.FACTORS)
    }
    ranges = {scale: [] for scale in views.SCALES}  # type: ignore[var-annotated]
    for scale in views.SCALES:
        view = views.view(files, scale=scale)
        assert view.scale == scale
        ranges[scale] = [view.range(panel) for panel in view.panels]
    assert ranges["shared"] == [pytest.approx((0.2, 2.9))] * 3
    assert ranges["panel"] == [pytest.approx((0.2 + i, 0.9 + i)) for i in range(3)]
    assert ranges["rank"] == [(1, 5)] * 3
    ranks = view.colours(view.panels[0])
    assert ranks[0, 1] == 1
    assert np.isnan(ranks[0, 2])  # dead: no rank
    assert not view.better_up(view.panels[0])


def test_methods_without_factors_are_seen_side_by_side_by_rank() -> None:
    files = {"knn": scores_of(VALUE), "ablation": scores_of(VALUE, higher=True, method="zero-ablation")}
    files["knn-stability"] = scores_of(VALUE, method="knn-stability")
    groups = views.methods(files)
    assert list(groups) == [views.ALL_METHODS, "knn", "ablation", "knn-stability"]
    view = views.view(groups[views.ALL_METHODS])
    assert (view.by, view.scale, view.keys) == ("method", "rank", ("knn", "ablation"))
    assert views.view(groups[views.ALL_METHODS], scale="shared").scale == "rank"  # their units differ
    rows = views.rows(view, "ablation")
    assert [row["score"] for row in rows] == [0.9, 0.5, 0.3, 0.21, 0.2]  # led by ablation: higher is better
    assert rows[0]["score_knn"] == 0.9
    text = reading.paragraphs(view)
    assert text[0] == "**2 methods** over 5 expert heads, each by its own measure."


def test_specialists_need_their_whole_interval_above_the_other_factors() -> None:
    null = Null(mean=0, low=-0.05, high=0.05)

    def factor(name: str, values: list[float], half: float) -> HeadScores:
        v = np.array([values])
        return scores_of(v, v - half, v + half, higher=True, factor=name, method="m", null=null)

    files = {
        "visual": factor("visual", [0.9, 0.5, 0.04, 0.3], 0.05),
        "physical": factor("physical", [0.2, 0.45, 0.0, 0.6], 0.05),
    }
    view = views.view(files)
    first, second = view.panels
    # L0H1 overlaps with its other factor, L0H2 does not beat chance
    assert [str(h) for h in reading.specialists(first, [second]) or []] == ["expert.L0H0"]
    assert [str(h) for h in reading.specialists(second, [first]) or []] == ["expert.L0H3"]
    assert "L0H0 for visual; L0H3 for physical" in reading.paragraphs(view)[-1]
    bare = views.view(
        {
            "visual": scores_of([[1, 2]], higher=True, factor="visual"),
            "physical": scores_of([[2, 1]], higher=True, factor="physical"),
        }
    )
    assert "nobody knows" in reading.paragraphs(bare)[-1]


@pytest.mark.parametrize("bounds", [None, np.full((1, 3), np.nan)])
def test_a_factor_without_a_score_does_not_compete(bounds: Any) -> None:
    def factor(name: str, value: list[float]) -> HeadScores:
        v = np.array([value])
        return scores_of(v, v - 0.02, v + 0.02, higher=True, factor=name, method="m")

    silent = scores_of(
        np.full((1, 3), np.nan), bounds, bounds, higher=True, factor="visual", method="m", label="Patching"
    )
    files = {
        "visual": silent,
        "linguistic": factor("linguistic", [0.6, 0.1, 0.0]),
        "physical": factor("physical", [0.1, 0.7, 0.0]),
    }
    view = views.view(files)
    text = reading.paragraphs(view)
    assert text[0].startswith("**Patching** over 3 expert heads")
    assert text[1] == "**Visual:** No head has a score."
    assert (
        text[-1]
        == "**One factor above the others** (whole interval): L0H0 for linguistic; L0H1 for physical."
    )
    assert view.lead(None).key == "linguistic"  # the table has rows
    assert view.lead("visual").key == "visual"  # unless asked
    assert reading.caption(view.panels[0]) == "1 × 3 · no head has a score"
    alone = reading.paragraphs(views.view({"visual": silent, "physical": files["physical"]}))
    assert len(alone) == 3  # nothing to compare


def test_a_note_of_the_scores_is_read_out() -> None:
    noted = scores_of(
        [[np.nan, np.nan]], higher=True, factor="linguistic", settings={"note": "prompt-blind: no effect"}
    )
    text = reading.paragraphs(views.view({"m.linguistic": noted}))[1]
    assert text == "Prompt-blind: no effect. No head has a score."


@pytest.mark.parametrize("scale", ["shared", "panel", "rank"])
def test_the_intervals_that_a_table_draws_fit_their_column(tmp_path: Path, scale: str) -> None:
    scores = make_scores(higher=True)  # vision, vlm and expert
    lows, highs = zip(*((t.low, t.high) for t in scores.towers.values()), strict=True)
    ends = min(np.nanmin(g) for g in lows), max(np.nanmax(g) for g in highs)
    run = make_run(tmp_path / "first")
    drawn = overview._drawn(run, views.view({"knn": scores}, "all", scale), None, "light")
    (column,) = (c for c in drawn["columns"] if c.get("cellRenderer") == "Interval")
    shown = column["cellRendererParams"]["scale"]
    assert (shown["low"], shown["high"]) == ends
    of_file = headtable.columns({"knn": scores})[0].scale()
    assert (of_file["low"], of_file["high"]) == ends


def test_wishes_of_a_url_that_cannot_be_met_fall_back() -> None:
    group = {"knn": make_scores()}
    assert views.view(group, "nonsense").tower == "all"
    assert [p.tower for p in views.view(group, "expert").panels] == ["expert"]
    assert [p.tower for p in views.view(group).panels] == list(TINY)
    assert views.view(group, scale="nonsense").scale == "shared"


@pytest.mark.parametrize(("low", "high"), [(0.41, 0.98), (0, 1), (-3e-5, 2e-5), (17.2, 912.0)])
def test_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    ticks = views.ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert low <= min(ticks)
    assert max(ticks) <= high
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    digit = f"{steps[0]:e}"[0:4]
    assert digit in ("1.00", "2.00", "5.00")


def test_reading_says_how_sure() -> None:
    null = Null(mean=0.5, low=0.3, high=0.7, best=0.28)
    sure = reading.paragraphs(views.view({"knn": scores_of(VALUE, LOW, HIGH, null=null)}))
    assert sure[0] == "**k-NN** over 5 expert heads; lower is better."
    assert sure[1] == (
        "**L0H1** leads with 0.2 (95 % 0.15 to 0.25), in a tie with L1H2 and L1H0. "
        "2 of 5 heads beat chance (0.5)."
    )
    lucky = Null(mean=0.5, low=0.3, high=0.7, best=0.1)
    assert "luckiest" in reading.paragraphs(views.view({"knn": scores_of(VALUE, LOW, HIGH, null=lucky)}))[1]
    hopeless = Null(mean=0.1, low=0.0, high=0.2)
    assert (
        "do not choose"
        in reading.paragraphs(views.view({"knn": scores_of(VALUE, LOW, HIGH, null=hopeless)}))[1]
    )
    assert "not tested" in reading.paragraphs(views.view({"knn": scores_of(VALUE)}))[1]


def test_reading_names_a_few_of_a_large_tie() -> None:
    value = [[0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17]]
    wide = scores_of(value, np.array(value) - 0.1, np.array(value) + 0.1)
    text = reading.paragraphs(views.view({"knn": wide}))[1]
    assert "in a tie with L0H1, L0H2, L0H3 and 4 more." in text


def test_a_run_is_named_after_its_task_or_its_instructions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    assert reading.title(run) == "marker-in-mug"
    data = {
        "fingerprint": DATA,
        "tasks": ["pick the cube", "take the cube"],
        "frames": 30,
        "episodes": [{}, {}],
    }
    other = Run(run.path, {**run.info, "data": data})
    assert reading.title(other) == "“pick the cube” and 1 more"
    assert reading.facts(other) == ["policy tiny-pi0", f"fingerprint {POLICY}", "2 episodes, 30 frames"]


def test_maps_are_valid_figures_with_the_traces_that_the_browser_counts_on() -> None:
    view = views.view({"knn": make_scores()})
    vlm = next(p for p in view.panels if p.tower == "vlm")
    for scheme in theme.SCHEMES:
        figure = maps.head_map(vlm, view, scheme)
        assert len(figure["data"]) == len(maps.TRACES)
        go.Figure(figure)  # Plotly refuses unknown properties and values
    traces = dict(zip(maps.TRACES, figure["data"], strict=True))
    assert traces["cells"]["z"][3] == [None] * 4  # dead: no colour, hatched, not selectable by box
    assert sorted(zip(traces["dead"]["y"], traces["dead"]["x"], strict=True)) == [(3, h) for h in range(4)]
    assert traces["hatch"]["x"]
    assert maps.map_frame(vlm).box == (
        -0.5,
        -0.5,
        3.5,
        3.5,
    )  # the selection is drawn in the axes' own coordinates
    go.Figure(maps.ranked(view.panels, "dark"))
    for panel in view.panels:  # one scale for all maps of a view
        axis = maps.head_map(panel, view, "light")["layout"]["coloraxis"]
        assert (axis["cmin"], axis["cmax"]) == view.range(view.panels[0])


def test_text_can_be_read_and_scales_rise_in_both_schemes() -> None:
    for scheme in theme.SCHEMES.values():
        for colour in (scheme.text, scheme.muted, scheme.accent, scheme.good, scheme.bad):
            assert contrast(colour, scheme.surface) >= 4.5, colour  # WCAG AA
        assert contrast(scheme.selected, scheme.surface) >= 3
        light = [luminance(colour) for colour in scheme.worst_to_best]
        steps = np.diff(light)
        assert (steps > 0).all() or (
            steps < 0
        ).all()  # lightness alone orders the scale: any colour vision reads it


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
