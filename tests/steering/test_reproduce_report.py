"""What the report promises: verdicts follow from intervals, known effects are found, what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from reproduce_kit import write_results, write_scores

from interp.errors import UsageError
from interp.factors.profile import Profile
from interp.heads import Head
from steering.reproduce import claims, figures, maps, overlap, published, timing
from steering.reproduce.advice import advice
from steering.reproduce.choice import choice_contrasts
from steering.reproduce.claims import (
    FEW_LED,
    FEW_TIMED,
    NO_DATA,
    NOT_EXCLUDED,
    NOT_SHOWN,
    ONE_TRAINING,
    OPPOSITE,
    REPRODUCES,
    Claim,
    verdict,
)
from steering.reproduce.contrast import Contrast, contrast, finding
from steering.reproduce.coverage import coverage
from steering.reproduce.plan import FULL, TRIED, Plan
from steering.reproduce.publish import END, START, publish, renew
from steering.reproduce.records import read_records
from steering.reproduce.report import in_short, report
from steering.results import IN_DOMAIN, Entry
from steering.stats import Interval
from testbed.tasks import TARGETS

PLAN = FULL.only(studies=["success", "methods", "robustness"], seeds=[0, 1], n=40)


def known(arm: str, task: str, suite: str) -> float:
    """Chosen heads beat LoRA by 20 points, and by 10 if it is everywhere; under lighting they lose by 20; all choices
    of heads are alike, but at 4 heads those by patching are 30 better; all finetuning forgets 40 points, `retain` only
    20."""
    if suite.startswith("forgetting:"):
        return {"base": 0.9, "retain": 0.7}.get(arm, 0.5)
    if suite == "lighting":
        return {"base": 0.3, "lora": 0.5}.get(arm, 0.3)
    return {"base": 0.3, "lora": 0.4, "lora-all-linear": 0.5, "aligned-patching-k4": 0.9}.get(arm, 0.6)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scores(write_results(tmp_path_factory.mktemp("results"), PLAN, known), TARGETS)


@pytest.fixture(scope="module")
def entries(results: Path) -> list[Entry]:
    return read_records(results)


@pytest.fixture(scope="module")
def found(entries: list[Entry], results: Path) -> dict[str, Claim]:
    return {f"{c.says} | {c.compared}": c for c in claims.claims(entries, results)}


def the(found: dict[str, Claim], *words: str) -> Claim:
    (one,) = (c for key, c in found.items() if all(f"{word} " in f"{key} " for word in words))
    return one


@pytest.mark.parametrize(
    ("low", "high", "better", "as_good", "is_found"),
    [
        (0.01, 0.30, REPRODUCES, REPRODUCES, "better"),
        (-0.30, -0.01, OPPOSITE, OPPOSITE, "worse"),
        (-0.04, -0.01, OPPOSITE, REPRODUCES, "worse"),  # worse for sure, but by less than matters
        (-0.04, 0.04, NOT_SHOWN, REPRODUCES, "the same"),
        (-0.10, 0.04, NOT_SHOWN, NOT_EXCLUDED, "open"),
        (-0.04, 0.10, NOT_SHOWN, REPRODUCES, "open"),
        (0.0, 0.0, NOT_SHOWN, REPRODUCES, "the same"),
    ],
)
def test_a_verdict_is_read_from_the_interval(
    low: float, high: float, better: str, as_good: str, is_found: str
) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert verdict(interval, "better", margin=0.05) == better
    assert verdict(interval, "as good", margin=0.05) == as_good
    assert finding(interval, 0.05) == is_found


def test_a_few_episodes_that_agree_exclude_nothing() -> None:
    """With no failure in n trials, failures of up to 3 / n are not excluded: seven points need 43 episodes."""
    agreed = Contrast("a", "b", "in-domain", ("pick-cube",), (2, 2), 42, Interval(0.0, 0.0, 0.0))
    assert agreed.finding(0.07) == "open"
    assert replace(agreed, n=43).finding(0.07) == "the same"


def test_one_training_of_each_excludes_nothing(entries: list[Entry]) -> None:
    """Two trainings that differ in nothing but their seed are points apart, and no interval of one of each knows it."""
    alike = Contrast("a", "b", "in-domain", TARGETS, (1, 3), 1100, Interval(0.0, -0.02, 0.02))
    assert alike.finding(0.07) == "open"
    assert replace(alike, runs=(2, 3)).finding(0.07) == "the same"
    assert replace(alike, difference=Interval(0.3, 0.2, 0.4)).finding(0.07) == "better"
    first = [e for e in entries if e.result.settings.get("seed") != 1]
    (claim,) = (c for c in claims.claims(first, Path()) if c.compared == "aligned-k4 - aligned-ablation-k4")
    assert claim.verdict == ONE_TRAINING


def test_a_second_seed_on_one_task_is_none_on_the_others(entries: list[Entry]) -> None:
    """Nor are its random heads a second draw."""
    some = [e for e in entries if e.result.settings.get("seed") != 1 or e.result.task == TARGETS[0]]
    made = contrast(some, "aligned", "random-k")
    assert made is not None
    assert made.size == f"{6 * 40} (5 tasks x 1 to 2 seeds)"
    assert made.one_draw
    assert made.finding(published.MARGIN) == "open"
    assert "arms that do on every task: in-domain 0 of " in report(PLAN, some, Path())


def test_the_margin_is_the_smaller_advantage_that_the_paper_claims() -> None:
    assert pytest.approx(0.165) == published.advantage("pi0")
    assert pytest.approx(0.07) == published.MARGIN


def test_effects_that_are_there_are_found_with_their_size(found: dict[str, Claim]) -> None:
    beats = the(found, "beats LoRA", "aligned - lora")
    assert beats.verdict == REPRODUCES
    assert beats.effect is not None
    assert beats.effect.value == pytest.approx(0.2)
    assert beats.n == f"{5 * 2 * 40} (5 tasks x 2 seeds)"
    everywhere = the(found, "beats LoRA", "aligned-vlm - lora-all-linear").effect
    assert everywhere is not None
    assert everywhere.value == pytest.approx(0.1)
    lighting = the(found, "aligned - lora, lighting")
    assert lighting.verdict == OPPOSITE
    assert lighting.effect is not None
    assert lighting.effect.value == pytest.approx(-0.2)
    for pair in ("aligned - lora", "aligned-both - lora-all-linear", "paper - lora-all-linear"):
        assert the(found, f"{pair}, form").verdict == REPRODUCES
    assert the(found, "heads chosen on the other tasks do worse").verdict == NOT_SHOWN
    assert the(found, "as good: as by causal mediation").verdict == REPRODUCES
    assert the(found, "as good: as by patching").verdict == OPPOSITE
    assert the(found, "fewer parameters", "| lora / aligned").verdict == REPRODUCES
    assert the(found, "fewer parameters", "| lora / paper").verdict == OPPOSITE
    assert the(found, "fewer parameters", "lora-all-linear / paper").verdict == REPRODUCES
    assert the(found, "trains faster", "saved by aligned,").verdict == FEW_TIMED


def test_a_difference_of_reach_is_no_claim_of_the_papers(found: dict[str, Claim]) -> None:
    """Random heads of the vlm do as well there, and a LoRA of the same reach wins nothing from them."""
    theirs = [c for c in found.values() if c.claim == "finetuning the chosen heads beats LoRA"]
    assert [c.compared for c in theirs] == [
        "aligned - lora",
        "aligned-both - lora-all-linear",
        "aligned-vlm - lora-all-linear",
        "paper - lora-all-linear",
    ]
    reach = [c for c in found.values() if c.claim == "reaching the vlm beats LoRA of the expert"]
    arms = ("aligned-both", "random-k-both", "paper")
    assert [c.compared.partition(", ")[0] for c in reach] == [
        f"{arm} - lora" for arm in arms for _ in range(2)
    ]
    assert all(c.verdict == REPRODUCES for c in reach)
    assert all(c.theirs for c in theirs)
    assert not any(c.theirs for c in reach)
    (line,) = (line for line in in_short(list(found.values())) if "Reaching the vlm" in line)
    assert line.startswith(
        "**Reaching the vlm beats LoRA of the expert** (no claim of the paper): holds in 6 of 6"
    )


def test_what_one_task_decides_is_not_shown_without_it(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return 0.9 if task == "pick-cube" and arm == "paper" else 0.4

    plan = PLAN.only(studies=["success"], arms=["base", "lora", "paper"], seeds=[0])
    found = claims.claims(read_records(write_results(tmp_path, plan, rate)), tmp_path)
    verdicts = {c.compared: c.verdict for c in found if not c.theirs and c.verdict != NO_DATA}
    assert verdicts == {"paper - lora": REPRODUCES, "paper - lora, without pick-cube": NOT_SHOWN}
    (said,) = (line for line in in_short(found) if line.startswith("**Reaching the vlm"))
    assert "holds in 1 of 4 (paper - lora: +10 " in said
    assert "], one training of each); not shown in 1 of 4 (paper - lora, without pick-cube: 0 [" in said


def test_all_that_the_paper_varies_is_one_comparison_and_a_part_of_it_is_not(
    found: dict[str, Claim], entries: list[Entry]
) -> None:
    together = the(found, "aligned - lora, all 4")
    assert together.effect is not None
    assert together.effect.value == pytest.approx((3 * 0.2 - 0.2) / 4)
    assert together.n == f"{4 * 5 * 2 * 40} (5 tasks x 2 seeds)"
    alone = the(found, "aligned - lora, form").effect
    assert alone is not None
    assert together.effect.high - together.effect.low < alone.high - alone.low
    partial = [e for e in entries if (e.arm, e.result.suite) != ("lora", "form")]
    (missing,) = (c for c in claims.claims(partial, Path()) if c.compared == "aligned - lora, all 4")
    assert missing.verdict == claims.NO_DATA


def test_heads_are_the_tasks_unless_they_are_shared_beyond_chance(entries: list[Entry]) -> None:
    same = [
        replace(e, result=replace(e.result, heads=tuple(f"expert.L0H{i}" for i in range(8))))
        if e.arm == "aligned"
        else e
        for e in entries
    ]
    claim = next(c for c in claims.claims(same, Path()) if "no more of them than chance" in c.says)
    assert claim.verdict == OPPOSITE
    assert claim.effect is not None
    assert claim.effect.value == 8
    drawn = next(c for c in claims.claims(entries, Path()) if "no more of them than chance" in c.says)
    assert drawn.verdict == NOT_EXCLUDED  # as many as chance gives: no proof of none
    apart = [
        replace(
            e,
            result=replace(
                e.result, heads=tuple(f"expert.L{TARGETS.index(e.result.task)}H{i}" for i in range(8))
            ),
        )
        if e.arm == "aligned"
        else e
        for e in entries
    ]
    claim = next(c for c in claims.claims(apart, Path()) if "no more of them than chance" in c.says)
    assert claim.verdict == REPRODUCES


def test_overlap_of_tasks_is_compared_with_that_of_two_halves_of_one(
    entries: list[Entry], tmp_path: Path
) -> None:
    """Made-up sets of twelve of 64 share about two: fewer than halves that share nine, more than some of one."""

    def shares(mean: float, tasks: Sequence[str] = TARGETS) -> Claim:
        write_scores(tmp_path, TARGETS)
        for task in tasks:
            file = maps.path(tmp_path, task, "stability-expert")
            often = json.loads(file.read_text())
            often["settings"]["agreement"]["expert"]["shared"]["mean"] = mean
            file.write_text(json.dumps(often))
        return next(c for c in claims.claims(entries, tmp_path) if "two halves of one" in c.says)

    assert shares(9.0).verdict == REPRODUCES
    assert shares(9.0, TARGETS[1:]).verdict == NOT_EXCLUDED  # the written 0.6 of one task
    assert shares(1.0).verdict == OPPOSITE
    maps.path(tmp_path, TARGETS[0], "stability-expert").unlink()
    (missing,) = (c for c in claims.claims(entries, tmp_path) if "two halves of one" in c.says)
    assert missing.verdict == NO_DATA


def test_trainings_of_one_seed_are_one_observation_of_time(entries: list[Entry]) -> None:
    """They ran together, under one load: three seeds that differ by more than a training does decide."""

    def saved(load: dict[int, float]) -> Claim:
        """`lora` takes a sixth longer, but for what the load of a seed does to it."""
        timed = []
        for seed, slowed in load.items():
            for e in entries:
                if e.arm in ("aligned", "lora") and e.result.settings["seed"] == 0:
                    took = 60.0 if e.arm == "aligned" else 70.0 * slowed
                    result = replace(
                        e.result,
                        seconds={"train_processor": took},
                        settings={**e.result.settings, "seed": seed},
                    )
                    timed.append(replace(e, result=result))
        return next(c for c in claims.claims(timed, Path()) if "saved by aligned," in c.compared)

    assert saved({0: 1.0, 1: 1.0}).verdict == FEW_TIMED
    assert saved({0: 1.0, 1: 1.01, 2: 1.0}).verdict == REPRODUCES
    uneven = saved({0: 1.0, 1: 1.2, 2: 0.9})
    assert uneven.verdict == NOT_SHOWN
    assert uneven.n == "15 trainings of each, 3 seeds"
    assert next(c for c in claims.claims([], Path()) if "saved by" in c.compared).verdict == NO_DATA


def test_a_mean_of_ratios_has_students_interval() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        covered += 1.2 in timing.mean_of_logs(1.2 * np.exp(rng.normal(0, 0.1, 5)))
    assert 0.93 < covered / 1000 < 0.97
    assert timing.mean_of_logs([2.0]).high == np.inf


def test_comparisons_of_one_claim_are_counted_as_one(entries: list[Entry]) -> None:
    found = claims.claims(entries, Path())
    said = in_short(found)
    assert len(said) == len({c.claim for c in found}) < len(found)
    (faster,) = (
        line for line in said if line.startswith("**It trains faster than LoRA**: not shown in 3 of 3")
    )
    assert "saved by aligned, of lora's, fewer than 3 seeds were timed" in faster


def test_chance_of_a_mean_overlap_is_what_drawing_sets_gives() -> None:
    rng = np.random.default_rng(1)
    means = []
    for _ in range(2000):
        sets = [set(rng.choice(30, 6, replace=False).tolist()) for _ in range(4)]
        means.append(np.mean([len(a & b) for a, b in combinations(sets, 2)]))
    by_chance = overlap.chance_of_mean([6] * 4, 30)
    assert by_chance.value == pytest.approx(36 / 30)
    assert by_chance.low == pytest.approx(
        np.quantile(means, 0.025), abs=0.17
    )  # one step of a mean over 6 pairs
    assert by_chance.high == pytest.approx(np.quantile(means, 0.975), abs=0.17)


def test_a_role_needs_an_interval_above_all_others() -> None:
    share = np.array([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]])
    low, high = np.clip(share - 0.1, 0, 1), np.clip(share + 0.1, 0, 1)
    heads = tuple(Head("expert", 0, i) for i in range(3))
    profile = Profile(heads, ("visual", "linguistic", "physical"), share, low, high, np.ones(3))
    assert claims.roles(profile).tolist() == [0, -1, 2]


def test_heads_have_roles_if_most_of_them_have_one_on_every_task(
    entries: list[Entry], tmp_path: Path
) -> None:
    """A tenth of the heads is not what chance gives, nor is it the heads."""

    def claim(led: dict[str, float]) -> Claim:
        write_scores(tmp_path, TARGETS)
        for task, share in led.items():
            file = maps.path(tmp_path, task, "profile")
            kept = json.loads(file.read_text())
            heads = len(kept["heads"])
            with_role = np.arange(heads) < round(share * heads)
            kept["low"] = [[0.7, 0.0, 0.0] if has else [0.2, 0.2, 0.2] for has in with_role]
            kept["high"] = [[0.9, 0.2, 0.2] if has else [0.4, 0.4, 0.4] for has in with_role]
            file.write_text(json.dumps(kept))
        return claims.claims(entries, tmp_path)[-1]

    few = claim(dict.fromkeys(TARGETS, 0.1))
    assert few.verdict == FEW_LED
    assert "chance" not in few.verdict
    assert claim(dict.fromkeys(TARGETS, 0.6)).verdict == REPRODUCES
    assert claim({**dict.fromkeys(TARGETS, 0.6), TARGETS[0]: 0.4}).verdict == FEW_LED


def test_only_seeds_and_tasks_that_both_arms_have_are_compared(entries: list[Entry]) -> None:
    partial = [
        e
        for e in entries
        if e.arm != "lora" or (e.result.settings["seed"] == 0 and e.result.task in TARGETS[:2])
    ]
    made = contrast(partial, "aligned", "lora")
    assert made is not None
    assert made.tasks == tuple(t for t in TARGETS if t in TARGETS[:2])
    assert (made.runs, made.n) == ((1, 1), 2 * 40)
    assert contrast(partial, "aligned", "nobody") is None


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
    done = {c.study: c for c in coverage(PLAN, entries)}
    assert (done["success"].done, done["success"].planned) == (155, 15 * 5 * 2 + 5)
    assert done["success"].seeds == (0, 1)
    alone = [e for e in entries if e.result.suite == IN_DOMAIN or e.result.settings.get("seed") != 1]
    beyond = {c.study: c for c in coverage(PLAN, alone)}["robustness"]
    assert beyond.seeds == (0,)  # in-domain, the second seed is of study success
    of_a_task = [suite for suite in TRIED if ":" not in suite]  # the base has the others once
    of_base = 5 * len(of_a_task) + len(TRIED) - len(of_a_task)
    assert beyond.planned == done["robustness"].done == 15 * 5 * 2 * len(TRIED) + of_base
    assert beyond.done == 15 * 5 * len(TRIED) + of_base
    first = [e for e in entries if e.result.settings.get("seed") != 1]
    assert {c.study: c for c in coverage(PLAN, first)}["success"].done == 80
    assert all(c.done == 0 for c in coverage(replace(PLAN, n=41), entries))  # too few rollouts are not done


def test_partial_results_give_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    part = PLAN.only(studies=["success"], arms=["base", "aligned", "random-k"], seeds=[0])
    page = report(PLAN, read_records(write_results(tmp_path, part, known)), tmp_path)
    assert f"| aligned - lora | +16.5 (pi0) and +7 (pi0.5) |  |  | **{NO_DATA}** |" in page
    assert "arms that do on every task: in-domain 0 of 2" in page
    assert "15 of 155" in page
    base = PLAN.only(arms=["base"])
    shutil.rmtree(tmp_path)
    page = report(PLAN, read_records(write_results(tmp_path, base, known)), tmp_path)
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
    part = PLAN.only(arms=arms, seeds=[0], n=20)
    entries = [e for e in read_records(write_results(tmp_path, part, known)) if keeps(e)]
    page = report(PLAN, entries, tmp_path)
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
        results = write_results(tmp_path / str(drawn), PLAN.only(arms=arms, seeds=[0], n=20), known)
        files = publish(PLAN, results, tmp_path / "REPORT.md", readme)
        assert [file.name for file in files] == ["REPORT.md", "README.md", *["adaptation.svg"] * drawn]
        assert ("Not run yet." in readme.read_text()) == (not drawn)


def test_an_arm_that_was_not_tried_everywhere_is_named_and_not_averaged(tmp_path: Path) -> None:
    plan = PLAN.only(studies=["robustness"], arms=["base", "aligned", "full"], seeds=[0])
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
        files = publish(PLAN, tmp_path / place / "results", tmp_path / place / "REPORT.md", readme)
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
        publish(PLAN, results, tmp_path / "REPORT.md", readme)
    with pytest.raises(UsageError, match="needs the marks"):
        renew(tmp_path / "none.md", "table")
    with pytest.raises(UsageError, match="holds no results"):
        publish(PLAN, tmp_path / "nothing", tmp_path / "REPORT.md")
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
    plan: Plan = PLAN
    assert list(maps.missing(plan, results)) == []
    assert len(list(maps.missing(plan, tmp_path))) == len(TARGETS) * (len(maps.METHODS) + 1)
    shutil.copytree(results / "scores", tmp_path / "scores")
    maps.path(tmp_path, "pick-cube", "stability-vlm").unlink()
    assert list(maps.missing(plan, tmp_path)) == [("pick-cube", "knn")]
    with pytest.raises(UsageError, match="make it with `robosteer reproduce --scores`"):
        maps.read_map(tmp_path, "pick-cube", "stability-vlm")
    assert maps.read_profile(tmp_path, "pick-cube").share.shape == (120, 3)
