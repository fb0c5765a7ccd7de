"""What the claims promise: verdicts follow from intervals, and effects that are known are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from reproduce_kit import KNOWN_PLAN, write_results, write_scores

from interp.factors.profile import Profile
from interp.heads import Head
from steering.reproduce import claims, maps, overlap, published, timing
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
from steering.reproduce.records import read_records
from steering.reproduce.report import in_short, report
from steering.results import Entry
from steering.stats import Interval
from testbed.tasks import TARGETS


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
    assert "arms that do on every task: in-domain 0 of " in report(KNOWN_PLAN, some, Path())


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

    plan = KNOWN_PLAN.only(studies=["success"], arms=["base", "lora", "paper"], seeds=[0])
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
