"""Compare says what the rollouts say: rates, intervals and differences, under every suite, against any baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from app_kit import POLICY, Tab, make_result, make_run
from compare_kit import compared, half, pinned, wilson_roots

from app import create_app, films, outcomes, rates
from app.pages import compare
from app.pages.page import Screen
from interp.errors import UsageError
from interp.runs import Run
from steering.looks import LOOKS
from steering.results import load_result, save_result


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "runs" / "first")


def test_the_baseline_comes_first_and_what_is_not_sure_is_said(run: Run) -> None:
    base = make_result("base", [True] * 30 + [False] * 70)
    for arm, successes in (("lora", 33), ("aligned", 70)):
        run.save_result(
            arm, make_result(arm, [True] * successes + [False] * (100 - successes), base).to_json()
        )
    run.save_result("base", base.to_json())
    (run.path / "results" / "half.json").write_text('{"schema": 1, "na')
    results, problems = outcomes.read(run)
    assert len(results) == 3
    assert "half.json" in problems[0]
    comparison = outcomes.compared(results)
    (group,) = outcomes.grouped(comparison)
    assert [(row.label, row.baseline) for row in group.rows] == [
        ("base", True),
        ("aligned", False),
        ("lora", False),
    ]
    rows = outcomes.table(comparison)
    rates_of = [(row["arm"], row["success"], row["n"]) for row in rows]
    assert rates_of == [("base", 0.3, 100), ("aligned", 0.7, 100), ("lora", 0.33, 100)]
    (line,) = outcomes.reading(comparison)
    assert line.startswith("**marker-in-mug**, baseline 30 % of 100: aligned +40 points (95 % +")
    aligned, lora = line.split("; ")
    assert "not distinguishable" not in aligned
    # with 3 of 100 turned, a resample without any is no rarity: 0.97^100 = 4.8 %
    assert "lora +3 points" in lora
    assert "not distinguishable" in lora


def test_any_arm_can_be_the_baseline(run: Run) -> None:
    for arm, successes in (("base", 5), ("aligned", 15), ("lora", 10)):
        half(run, arm, successes)
    gaps = {row["arm"]: row["difference"] for row in outcomes.table(compared(run))}
    assert gaps == {"base": None, "aligned": pytest.approx(0.5), "lora": pytest.approx(0.25)}
    gaps = {row["arm"]: row["difference"] for row in outcomes.table(compared(run, "lora"))}
    assert gaps == {"lora": None, "aligned": pytest.approx(0.25), "base": pytest.approx(-0.25)}
    assert compared(run, "gone").against == "base"  # a link may ask for an arm that is not there
    assert compared(make_run(run.path.parent / "empty")) is None


def test_a_training_as_the_baseline_stands_for_its_arm(run: Run) -> None:
    half(run, "base", 5)
    for seed, successes in enumerate((12, 16, 14)):
        half(run, "aligned", successes, seed=seed)
    results, _ = outcomes.read(run)
    for wish in ("aligned", "aligned-s1"):  # links of before trainings were joined name one of them
        comparison = outcomes.compared(results, wish)
        assert comparison.against == "aligned"
        (group,) = outcomes.grouped(comparison)
        assert [(row.label, row.baseline) for row in group.rows] == [("aligned", True), ("base", False)]
        assert group.rows[1].cell.difference.value == pytest.approx(-0.45)
    select = compare.body(Screen(run, {"against": "aligned-s2"}, "light"))["compare-against"]
    assert (select.value, select.data) == ("aligned", ["aligned", "base"])


def test_a_base_by_another_name_is_the_baseline_under_its_own(run: Run) -> None:
    half(run, "base", 5)
    (path,) = run.results.values()
    save_result(path, replace(load_result(path), name="pi0-base"))
    half(run, "aligned", 15)
    comparison = compared(run)
    assert comparison.against == "pi0-base"
    assert [row.baseline for row in outcomes.grouped(comparison)[0].rows] == [True, False]


def test_what_cannot_be_paired_is_left_out_with_a_note_and_the_rest_is_shown(run: Run) -> None:
    for suite in ("in-domain", "lighting"):
        half(run, "base", 5, suite=suite)
        half(run, "aligned", 15, seed=0, suite=suite)
        half(run, "lora", 10, seed=0, suite=suite)
    half(run, "aligned", 15, seed=1)
    half(run, "aligned", 15, seed=1, suite="lighting", first=500)
    comparison = compared(run)
    left = [note for note in comparison.notes if "left out" in note]
    assert left == [
        "aligned on marker-in-mug (lighting): left out, as its 2 runs share no episode: evaluate all on the same seeds"
    ]
    assert [(cell.arm, cell.suite) for cell in comparison.cells if cell.suite == "lighting"] == [
        ("base", "lighting"),
        ("lora", "lighting"),
    ]
    client = create_app(run.path.parent).server.test_client()
    said = pinned(client, run, "base")
    assert "left out" in said["compare-notes"]
    assert "suites-figure" in said["compare-suites"]
    half(run, "lora", 10, seed=1, first=500)  # in-domain, too
    assert {cell.arm for cell in outcomes.compared(outcomes.read(run)[0], suites=False).cells} == {
        "base",
        "aligned",
    }


def test_notes_are_of_all_suites_and_of_the_baseline_that_is_pinned(run: Run) -> None:
    half(run, "base", 5)
    half(run, "base", 5, suite="lighting", n=10)
    half(run, "aligned", 15, seed=0)
    half(run, "aligned", 15, seed=0, suite="lighting", policy=f"{POLICY}-before")
    half(run, "lora", 15, suite="lighting")
    client = create_app(run.path.parent).server.test_client()
    said = pinned(client, run, "base")["compare-notes"]
    assert "its results are of 2 policies" in said
    assert "aligned, lora on marker-in-mug (lighting): the baseline ran 10 of its 20 episodes" in said
    said = pinned(client, run, "aligned")["compare-notes"]
    assert "its results are of 2 policies" in said
    assert "the baseline ran" not in said  # it ran all ten of base's and all of lora's
    for file in (run.path / "results").iterdir():
        file.unlink()
    said = pinned(client, run, "base")
    assert "no results any more" in said["compare-notes"]
    assert said["compare-suites"] == "[]"  # nothing is being worked out any longer


def test_suites_stand_under_what_they_change_and_lose_what_they_lose(run: Run) -> None:
    for arm, usual, dark, moved, forgot in (("base", 10, 8, 6, 16), ("aligned", 16, 12, 4, 6)):
        half(run, arm, usual)
        half(run, arm, dark, suite="lighting")
        half(run, arm, moved, suite="pose-shift")
        half(run, arm, forgot, suite="forgetting:pick")
    comparison = compared(run)
    kinds = [("visual", ["lighting"]), ("physical", ["pose-shift"]), ("pretraining", ["forgetting:pick"])]
    assert outcomes.trials(comparison) == kinds
    lines = outcomes.reading(comparison)
    assert lines[1].startswith("**Visual changes** (1 suite): base 40 %; aligned 60 %, +20 points")
    assert lines[3].startswith("**Pretraining tasks** (1 suite): base 80 %; aligned 30 %, −50 points")
    rows = rates.suite_rows(comparison)
    assert [text for _, text in rows.labels] == ["in-domain", "lighting", "pose-shift", "forgetting:pick"]
    figure = rates.under_suites(comparison, "light", paired=True)
    (aligned,) = (trace for trace in figure["data"] if trace["name"] == "aligned")
    assert aligned["x"] == pytest.approx([30, 20, -10, -50])
    quick = outcomes.compared(outcomes.read(run)[0], suites=False)
    assert {cell.suite for cell in quick.cells} == {"in-domain"}


def test_only_settings_that_differ_are_listed(run: Run) -> None:
    half(run, "base", 5, settings={"execute": 4})
    half(
        run,
        "aligned",
        5,
        settings={"execute": 4, "recipe": {"lr": 0.002, "steps": 250}},
        heads=("expert.L3H2",),
    )
    half(run, "full", 5, settings={"execute": 4, "recipe": {"lr": 0.0003, "steps": 250}})
    arms, rows = outcomes.differing(outcomes.read(run)[0].values())
    listed = {name: dict(zip(arms, values, strict=True)) for name, values in rows}
    assert listed["recipe lr"] == {"base": "–", "aligned": "0.002", "full": "0.0003"}
    assert listed["heads"]["aligned"] == "1: expert.L3H2"
    assert "execute" not in listed
    assert "recipe steps" not in listed  # the same for all that were trained


def test_films_are_found_by_name_and_nothing_else_is(run: Run) -> None:
    folder = run.path / "videos" / "aligned"
    folder.mkdir(parents=True)
    (folder / "marker-in-mug-0.gif").write_bytes(b"GIF89a")
    (folder / ".half.gif").write_bytes(b"")
    (folder / "notes.json").write_text("{}")
    (run.path / "videos" / "out.gif").symlink_to(run.path / "run.json")
    assert films.films_of(run) == ["aligned/marker-in-mug-0.gif"]
    assert films.film(run, "aligned/marker-in-mug-0.gif").read_bytes() == b"GIF89a"
    for name in ("../run.json", "aligned/notes.json", "aligned/../../run.json", "/etc/passwd"):
        with pytest.raises(UsageError, match="no film"):
            films.film(run, name)
    with create_app(run.path.parent).server.test_client() as client:
        assert client.get("/raw/first/videos/aligned/marker-in-mug-0.gif").data == b"GIF89a"
        assert client.get("/raw/first/videos/..%2frun.json").status_code == 404
        assert client.get("/raw/first/videos/aligned/notes.json").status_code == 404


def test_films_of_one_episode_stand_together_with_how_it_ended(run: Run) -> None:
    half(run, "base", 5)
    half(run, "aligned", 5)
    names = ["aligned-seed7.gif", "base-seed0.gif", "aligned-seed0.gif", "by-hand.gif", "base-seed7.gif"]
    results, _ = outcomes.read(run)
    first, second, other = films.scenes(names, results, arms=["base", "aligned"])
    assert [film.name for film in first.films] == ["base-seed0.gif", "aligned-seed0.gif"]
    assert [film.success for film in (*first.films, *second.films)] == [True, True, False, False]
    assert first.films[0].ended == "success after 30 steps"
    assert "episode 7" in second.title
    assert [film.name for film in other.films] == ["by-hand.gif"]


@pytest.mark.browser
def test_before_and_after_in_the_browser(tab: Tab, site: Any) -> None:
    run = make_run(site.folder / "compared")
    half(run, "base", 30, 100)
    half(run, "aligned", 70, 100, trainable_parameters={"query rows": 24_576}, seconds={"train": 61.0})
    half(run, "base", 10, 100, suite="lighting")
    half(run, "aligned", 50, 100, suite="lighting")
    (run.path / "results" / "half.json").write_text('{"schema": 1, "na')
    tab.open(f"/compare?run={run.name}", ready="#suites-figure .js-plotly-plot .points")
    text = tab.page.inner_text("#page")
    for said in ("30/100", "70/100", "24,576", "aligned +40 points", "Visual changes", "half.json"):
        assert said in text, said
    low, high = tab.page.evaluate(
        "document.querySelector('#success-figure .js-plotly-plot').data.find(t => t.name === 'aligned').customdata[0]"
    )
    assert (low, high) == pytest.approx(wilson_roots(70, 100), abs=1e-3)

    tab.choose("#compare-against", "aligned")
    tab.page.wait_for_function("location.search.includes('against=aligned')")
    tab.page.wait_for_function(
        "document.getElementById('compare-reading').innerText.includes('base −40 points')"
    )
    tab.page.reload()  # the pinned baseline is in the address
    tab.page.wait_for_selector("#suites-figure .js-plotly-plot .points")
    assert "base −40 points" in tab.page.inner_text("#compare-reading")

    tab.page.click("#results-export")
    with tab.page.expect_download() as waiting:
        tab.page.click("text=Numbers, JSON >> visible=true")
    taken = json.loads(Path(waiting.value.path()).read_text())
    cells = {(row["arm"], row["suite"]): row["success"] for row in taken["rows"]}
    usual = {("base", "in-domain"): 0.3, ("aligned", "in-domain"): 0.7}
    assert cells == {**usual, ("base", "lighting"): 0.1, ("aligned", "lighting"): 0.5}
    tab.page.click("#scheme-toggle")
    tab.page.wait_for_function(
        "[...document.querySelectorAll('.js-plotly-plot')].every(g => g._fullLayout.paper_bgcolor === '#161e27')"
    )
    aligned = "document.querySelector('#success-figure .js-plotly-plot').data.find(t => t.name === 'aligned')"
    assert tab.page.evaluate(f"{aligned}.marker.color") == LOOKS["aligned"].dark
