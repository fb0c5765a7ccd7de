"""What the advice promises: every sentence follows from the numbers, and from those alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reproduce_kit import write_results

from steering.reproduce.advice import advice
from steering.reproduce.plan import FULL
from steering.reproduce.records import read_records
from steering.reproduce.report import report

PLAN = FULL.only(studies=["success", "robustness"], seeds=[0, 1], n=40)


def test_advice_says_where_more_than_heads_is_needed_and_whose_heads_not_to_take(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        if task == "pick-cube":
            return 0.9 if arm == "ffn-only" else 0.3
        return {"base": 0.3, "generic-k": 0.4}.get(arm, 0.7)

    plan = PLAN.only(studies=["success"], seeds=[0])
    entries = read_records(write_results(tmp_path, plan, rate))
    said = "\n".join(advice(entries))
    assert "on pick-cube `aligned` moves +0 [+0, +0]; against it, `ffn-only` +60" in said
    assert "the task's own do better by +24" in said  # 30 points on four tasks of five
    assert "do not matter, train more: `ffn-only` +12" in said  # 60 points on one task of five
    assert "each less `aligned`; what that costs under other conditions was not measured." in said
    page = report(plan, entries, tmp_path)
    assert "pick-cube and push-cup-to-bowl: few arms that train nothing but heads" in page  # push-cup gained
    on_none = [e for e in entries if e.arm in ("base", "ffn-only") or e.result.task != "push-cup-to-bowl"]
    assert "no arm that trains nothing but heads of the expert helps there" in report(plan, on_none, tmp_path)


@pytest.mark.parametrize(
    ("vlm", "said"),
    [
        (
            0.9,
            "Choose heads of the vlm, not of the expert alone: `aligned-vlm` less `aligned` is +12 [+9, +15] points "
            "(n = 200, 5 tasks), better on pick-cube (+60 [+45, +75]); a training takes 1.5 times as long. Chosen less "
            "random ones there: +0 ",
        ),
        (0.3, "Heads of the vlm do as well as the expert's: `aligned-vlm` less `aligned` is +0 [+0, +0]"),
        (0.0, "Choose heads of the expert rather than of the vlm: `aligned-vlm` less `aligned` is -6"),
    ],
)
def test_advice_says_which_tower(tmp_path: Path, vlm: float, said: str) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return vlm if arm.endswith("-vlm") and task == "pick-cube" else 0.3

    plan = PLAN.only(studies=["success"], seeds=[0])
    found = advice(read_records(write_results(tmp_path, plan, rate)))
    assert any(sentence.startswith(said) for sentence in found), found


@pytest.mark.parametrize(
    ("full", "said"),
    [
        (
            0.9,
            "If memory and time do not matter, train more: `full` +10 [+6, +14], each less `aligned-both`; what that",
        ),
        (
            0.8,
            "Train no more than heads: the best that does, `full` +0 [+0, +0] against `aligned-both`, has 34.4 times",
        ),
    ],
)
def test_more_than_heads_is_compared_with_the_best_heads(tmp_path: Path, full: float, said: str) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "aligned-both": 0.8, "full": full, "random-k-both": 0.9}.get(arm, 0.5)

    plan = PLAN.only(studies=["success"], seeds=[0])
    found = advice(read_records(write_results(tmp_path, plan, rate)))
    (one,) = (sentence for sentence in found if sentence.startswith(said))
    assert "random-k-both" not in one


def test_advice_says_at_which_length_few_heads_and_lora_part(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "lora-steps50": 0.4, "aligned-steps1000": 0.5}.get(arm, 0.7)

    plan = FULL.only(studies=["steps"], seeds=[0], n=40)
    said = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    assert "`aligned` less `lora` is +30" in said
    assert "at 50, -20" in said
    assert "at 1000 (of 50, 100, 250, 500, 1000; at most 120 rollouts each, 3 tasks)" in said
    alike = plan.only(arms=["base", "aligned-steps100", "lora-steps100"])
    shutil.rmtree(tmp_path)
    assert "the length" not in "\n".join(advice(read_records(write_results(tmp_path, alike, rate))))


def test_advice_says_from_how_many_demonstrations_the_choice_pays(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "random-k-demos1": 0.4, "lora-demos1": 0.3, "aligned-demos1": 0.6}.get(arm, 0.7)

    plan = FULL.only(studies=["demos"], seeds=[0], n=40)
    said = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    assert (
        "Whether the choice of heads pays, the number of demonstrations decides: `aligned` less `random-k` is +20"
        in said
    )
    assert "`aligned` less `lora` is +30" in said
    assert said.count("at 1 (of 1, 5, 10, 20, 40; at most 120 rollouts each, 3 tasks)") == 2


@pytest.mark.parametrize(
    ("dark", "said"),
    [
        (0.3, "each less `aligned`; but `full` -30 [-36, -24] under lighting."),
        (0.7, "each less `aligned`; no loss against it was shown under lighting, form, distractors"),
    ],
)
def test_advice_says_what_more_than_heads_pays_elsewhere(tmp_path: Path, dark: float, said: str) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "aligned": 0.6}.get(arm, dark if suite == "lighting" else 0.8)

    plan = PLAN.only(studies=["robustness"], arms=["base", "aligned", "full"], seeds=[0])
    found = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    assert "If memory and time do not matter, train more: `full` +20" in found
    assert said in found
