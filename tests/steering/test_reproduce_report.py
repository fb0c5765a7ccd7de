"""What the report promises: it says what was found, and what is missing, the same bytes each time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from reproduce_kit import KNOWN_PLAN, known, write_results

from interp.errors import UsageError
from steering.reproduce import claims, figures, maps, published
from steering.reproduce.advice import advice
from steering.reproduce.choice import choice_contrasts
from steering.reproduce.claims import NO_DATA
from steering.reproduce.coverage import coverage
from steering.reproduce.plan import TRIED, Plan
from steering.reproduce.publish import END, START, publish, renew
from steering.reproduce.records import read_records
from steering.reproduce.report import report
from steering.results import IN_DOMAIN, Entry
from steering.stats import Interval
from testbed.tasks import TARGETS


def test_choices_of_heads_are_compared_and_what_they_exclude_is_said(entries: list[Entry]) -> None:
    made = {(c.arm, c.other, len(c.tasks)): c for c in choice_contrasts(entries)}
    assert made["aligned", "random-k", 5].finding(published.MARGIN) == "the same"
    assert made["aligned-patching-k4", "random-k-k4", 3].finding(published.MARGIN) == "better"
    assert made["aligned-patching-k4", "aligned-k4", 3].difference.value == pytest.approx(0.3)


def test_advice_follows_the_numbers(entries: list[Entry]) -> None:
    said = "\n".join(advice(entries))
    assert "Finetune few heads: `aligned` gains +30" in said
    assert "With 12 heads it does not matter which" in said
    assert "Choose by `aligned-patching-k4` +30" in said
    assert "Prefer `aligned` to LoRA of the expert: `aligned` minus `lora` is +20" in said
    assert "`retain` forgets less than `aligned`" in said
    assert "other tasks chose" not in said
    assert "Where heads" not in said
    better = [replace(e, arm="random-k") if e.arm == "lora" else e for e in entries if e.arm != "random-k"]
    assert "With 12 heads, choose them: chosen heads beat random ones by +20" in "\n".join(advice(better))


def test_coverage_counts_cells_of_the_plan(entries: list[Entry]) -> None:
    done = {c.study: c for c in coverage(KNOWN_PLAN, entries)}
    assert (done["success"].done, done["success"].planned) == (155, 15 * 5 * 2 + 5)
    assert done["success"].seeds == (0, 1)
    alone = [e for e in entries if e.result.suite == IN_DOMAIN or e.result.settings.get("seed") != 1]
    beyond = {c.study: c for c in coverage(KNOWN_PLAN, alone)}["robustness"]
    assert beyond.seeds == (0,)  # in-domain, the second seed is of study success
    of_a_task = [suite for suite in TRIED if ":" not in suite]  # the base has the others once
    of_base = 5 * len(of_a_task) + len(TRIED) - len(of_a_task)
    assert beyond.planned == done["robustness"].done == 15 * 5 * 2 * len(TRIED) + of_base
    assert beyond.done == 15 * 5 * len(TRIED) + of_base
    first = [e for e in entries if e.result.settings.get("seed") != 1]
    assert {c.study: c for c in coverage(KNOWN_PLAN, first)}["success"].done == 80
    assert all(
        c.done == 0 for c in coverage(replace(KNOWN_PLAN, n=41), entries)
    )  # too few rollouts are not done


def test_partial_results_give_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    part = KNOWN_PLAN.only(studies=["success"], arms=["base", "aligned", "random-k"], seeds=[0])
    page = report(KNOWN_PLAN, read_records(write_results(tmp_path, part, known)), tmp_path)
    assert f"| aligned - lora | +16.5 (pi0) and +7 (pi0.5) |  |  | **{NO_DATA}** |" in page
    assert "arms that do on every task: in-domain 0 of 2" in page
    assert "15 of 155" in page
    base = KNOWN_PLAN.only(arms=["base"])
    shutil.rmtree(tmp_path)
    page = report(KNOWN_PLAN, read_records(write_results(tmp_path, base, known)), tmp_path)
    assert page.count(f"**{NO_DATA}**") == len(claims.claims([], tmp_path))
    assert "Study `methods`: not run yet." in page


@pytest.mark.parametrize(
    ("arms", "keeps"),
    [
        (["aligned", "lora"], lambda e: True),  # no base: no difference to it, and all the rest
        (["aligned-k4", "random-k-k4"], lambda e: True),  # ablations alone
        (["base", "aligned", "lora"], lambda e: e.result.suite != IN_DOMAIN),
        (["base"], lambda e: e.result.suite.startswith("forgetting:")),
    ],
)
def test_a_report_is_of_what_there_is_whatever_is_missing(
    arms: list[str], keeps: Callable[[Entry], bool], tmp_path: Path
) -> None:
    part = KNOWN_PLAN.only(arms=arms, seeds=[0], n=20)
    entries = [e for e in read_records(write_results(tmp_path, part, known)) if keeps(e)]
    page = report(KNOWN_PLAN, entries, tmp_path)
    success = page.split("## Success\n\n")[1].split("\n\n## ")[0]
    main = {e.arm for e in entries if e.result.suite == IN_DOMAIN} & set(claims.MAIN_NAMES)
    assert (success == "Not run yet.") == (not main)
    assert all(f"| {arm} |" in success for arm in main)
    assert ("| aligned - lora, lighting | +22.5 | -20 " in page) == (
        {"aligned", "lora"} <= {e.arm for e in entries}
    )


def test_a_readme_without_a_base_has_its_figure_and_without_results_keeps_it(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for arms, drawn in ((["aligned", "lora"], True), (["aligned-k4"], False)):
        readme.write_text(f"{START}\nold\n{END}\n")
        results = write_results(tmp_path / str(drawn), KNOWN_PLAN.only(arms=arms, seeds=[0], n=20), known)
        files = publish(KNOWN_PLAN, results, tmp_path / "REPORT.md", readme)
        assert [file.name for file in files] == ["REPORT.md", "README.md", *["adaptation.svg"] * drawn]
        assert ("Not run yet." in readme.read_text()) == (not drawn)


def test_an_arm_that_was_not_tried_everywhere_is_named_and_not_averaged(tmp_path: Path) -> None:
    plan = KNOWN_PLAN.only(studies=["robustness"], arms=["base", "aligned", "full"], seeds=[0])
    entries = read_records(write_results(tmp_path, plan, known))
    tried = report(plan, entries, tmp_path).split("## Under perturbation")[1].split("\n## ")[0]
    assert "| full |" in tried
    assert "Not tried" not in tried
    part = [e for e in entries if (e.arm, e.result.task, e.result.suite) != ("full", "pick-cube", "lighting")]
    tried = report(plan, part, tmp_path).split("## Under perturbation")[1].split("\n## ")[0]
    assert "| full |" not in tried
    assert "Not tried under all of it yet: full." in tried


def _leftmost(drawing: Path) -> float:
    """Where the text that begins farthest to the left begins, in the drawing's units."""
    groups = [g for g in ElementTree.parse(drawing).iter() if g.get("id", "").startswith("text_")]
    places = [
        re.search(r"translate\((-?[\d.]+)", g.get("transform", "")) for group in groups for g in group.iter()
    ]
    return min(float(place[1]) for place in places if place)


def test_the_same_results_give_the_same_bytes_wherever_and_whenever(results: Path, tmp_path: Path) -> None:
    written = []
    for place in ("here", "there"):
        shutil.copytree(results, tmp_path / place / "results")
        readme = tmp_path / place / "README.md"
        readme.write_text(f"# Title\n{START}\nold\n{END}\nrest\n")
        files = publish(KNOWN_PLAN, tmp_path / place / "results", tmp_path / place / "REPORT.md", readme)
        assert [file.name for file in files] == ["REPORT.md", "README.md", "adaptation.svg"]
        written.append([file.read_bytes() for file in files])
        assert _leftmost(files[-1]) >= 0  # nothing is cut off
        assert not any(str(tmp_path).encode() in content for content in written[-1])
    assert written[0] == written[1]
    text = written[0][1].decode()
    assert text.startswith(f"# Title\n{START}\n| arm |")
    assert text.endswith(f"\n{END}\nrest\n")


def test_a_readme_without_marks_and_missing_results_are_told_before_anything_is_written(
    results: Path, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\nno end\n")
    with pytest.raises(UsageError, match="needs the marks"):
        publish(KNOWN_PLAN, results, tmp_path / "REPORT.md", readme)
    with pytest.raises(UsageError, match="needs the marks"):
        renew(tmp_path / "none.md", "table")
    with pytest.raises(UsageError, match="holds no results"):
        publish(KNOWN_PLAN, tmp_path / "nothing", tmp_path / "REPORT.md")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_figures_are_the_same_bytes_with_fonts_in_them(tmp_path: Path) -> None:
    def draw() -> figures.Figure:
        with figures.style():
            figure = figures.new()
            figures.dots(
                figure.subplots(), ["a row"], {"base": [figures.Dot(0, Interval(0.5, 0.4, 0.6))]}, label="%"
            )
        return figure

    first, second = (figures.save(draw(), name, tmp_path) for name in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    drawing, page = (path.read_bytes() for path in first)
    assert b"<text" not in drawing  # letters are outlines
    assert b"/FontFile2" in page


def test_maps_that_are_there_are_not_made_again(results: Path, tmp_path: Path) -> None:
    plan: Plan = KNOWN_PLAN
    assert list(maps.missing(plan, results)) == []
    assert len(list(maps.missing(plan, tmp_path))) == len(TARGETS) * (len(maps.METHODS) + 1)
    shutil.copytree(results / "scores", tmp_path / "scores")
    maps.path(tmp_path, "pick-cube", "stability-vlm").unlink()
    assert list(maps.missing(plan, tmp_path)) == [("pick-cube", "knn")]
    with pytest.raises(UsageError, match="make it with `robosteer reproduce --scores`"):
        maps.read_map(tmp_path, "pick-cube", "stability-vlm")
    assert maps.read_profile(tmp_path, "pick-cube").share.shape == (120, 3)
