"""What the advice promises: every sentence follows from the numbers, and from those alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
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
    assert (
        "on pick-cube `aligned` minus the base is 0 [-6, +6] points; these do better than `aligned`: `ffn-only` +60"
        in said
    )
    assert "the task's own do better by +24" in said  # 30 points on four tasks of five
    assert "do not matter, train more: `ffn-only` +12" in said  # 60 points on one task of five
    assert "each minus `aligned`; what that costs under other conditions was not measured." in said
    page = report(plan, entries, tmp_path)
    assert "pick-cube and push-cup-to-bowl: few arms that train nothing but heads" in page  # push-cup gained
    on_none = [
        replace(e, result=replace(e.result, episodes=base[e.result.task]))
        if e.result.task in ("pick-cube", "push-cup-to-bowl")
        else e
        for base in [{e.result.task: e.result.episodes for e in entries if e.arm == "base"}]
        for e in entries
    ]
    nowhere = "no arm that trains nothing but heads of the expert was shown to help there"
    assert nowhere in report(plan, on_none, tmp_path)
    untried = [e for e in entries if e.result.task != "push-cup-to-bowl"]
    page = report(plan, untried, tmp_path)
    assert nowhere not in page  # nothing is said of what was not run
    assert "the studies of few heads do not run them" in page


def test_harm_and_doubt_are_told_apart_from_help(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        base = {"marker-in-mug": 0.3, "pick-cube": 0.9}.get(task, 0.5)
        return base if arm == "base" or task not in ("marker-in-mug", "pick-cube") else 0.6

    plan = PLAN.only(studies=["success"], arms=["base", "aligned"])
    said = advice(read_records(write_results(tmp_path, plan, rate)))[0]
    assert said.startswith("Do not expect a gain: `aligned` moves 0 ")
    assert "it helps on marker-in-mug (+30 " in said
    assert "it harms pick-cube (-30 " in said
    assert "neither to help nor to harm on press-button-hard (0 " in said


def test_all_heads_are_no_more_than_heads(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "all-heads": 0.8}.get(arm, 0.6)

    plan = PLAN.only(studies=["success"], arms=["base", "aligned", "all-heads"], seeds=[0])
    said = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    assert "If parameters are free, train all heads" in said
    assert "more than heads" not in said
    assert "train more" not in said


def test_one_draw_of_random_heads_decides_nothing(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "aligned": 0.8}.get(arm, 0.5)

    said = []
    for seeds in ([0], [0, 1]):
        plan = PLAN.only(studies=["success"], arms=["base", "aligned", "random-k"], seeds=seeds)
        shutil.rmtree(tmp_path)
        said.append("\n".join(advice(read_records(write_results(tmp_path, plan, rate)))))
    assert "do not count on the choice: chosen minus random heads is +30 " in said[0]
    assert "1 seed, one draw of random heads)" in said[0]
    assert "With 12 heads, choose them: chosen heads beat random ones by +30 " in said[1]


@pytest.mark.parametrize(
    ("vlm", "said"),
    [
        (
            0.9,
            "Choose heads of the vlm, not of the expert alone: `aligned-vlm` minus `aligned` is +12 [+8, +15] points "
            "(n = 400, 5 tasks, 2 seeds), better on pick-cube (+60 [+41, +75]); training takes 1.5 times as long. "
            "Chosen minus random heads there: 0 ",
        ),
        (0.3, "Heads of the vlm do as well as the expert's: `aligned-vlm` minus `aligned` is 0 [-3, +3]"),
        (0.0, "Choose heads of the expert rather than of the vlm: `aligned-vlm` minus `aligned` is -6"),
    ],
)
def test_advice_says_which_tower(tmp_path: Path, vlm: float, said: str) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return vlm if arm.endswith("-vlm") and task == "pick-cube" else 0.3

    found = advice(read_records(write_results(tmp_path, PLAN.only(studies=["success"]), rate)))
    assert any(sentence.startswith(said) for sentence in found), found


@pytest.mark.parametrize(
    ("full", "said"),
    [
        (
            0.9,
            "If memory and time do not matter, train more: `full` +10 [+5, +16], each minus `aligned-both`; what that",
        ),
        (
            0.8,
            "Train no more than heads: the best arm that does, `full`, trains 34.4 times as many parameters as",
        ),
    ],
)
def test_more_than_heads_is_compared_with_the_best_heads(tmp_path: Path, full: float, said: str) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "aligned-both": 0.8, "full": full, "random-k-both": 0.9}.get(arm, 0.5)

    found = advice(read_records(write_results(tmp_path, PLAN.only(studies=["success"]), rate)))
    (one,) = (sentence for sentence in found if sentence.startswith(said))
    assert "random-k-both" not in one


def test_advice_says_at_which_length_few_heads_and_lora_part(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "lora-steps50": 0.4, "aligned-steps1000": 0.5}.get(arm, 0.7)

    plan = FULL.only(studies=["steps"], seeds=[0], n=40)
    said = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    assert "`aligned` minus `lora` depends on the steps of training: at 50 +30 " in said
    assert "(n = 120, 3 tasks, 1 seed), against the base `aligned` +40 " in said
    assert "; at 1000 -20 " in said
    assert "; not shown to differ at 100, 250, 500." in said
    alone = plan.only(arms=["base", "aligned-steps50", "lora-steps50"])
    shutil.rmtree(tmp_path)
    assert "depends on the steps" not in "\n".join(advice(read_records(write_results(tmp_path, alone, rate))))


def test_advice_says_from_how_many_demonstrations_the_choice_pays(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "random-k-demos1": 0.4, "lora-demos1": 0.3, "aligned-demos1": 0.6}.get(arm, 0.7)

    plan = FULL.only(studies=["demos"], seeds=[0, 1], n=40)
    said = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    for other, difference in (("random-k", "+20"), ("lora", "+30")):
        start = f"How `aligned` minus `{other}` depends on the number of demonstrations: at 1 {difference} "
        (one,) = (line for line in said.splitlines() if line.startswith(start))
        assert one.endswith("; not shown to differ at 5, 10, 20, 40.")


def test_forgetting_is_told_of_every_arm_that_was_tried_alike(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"lora": 0.4, "aligned": 0.78}.get(arm, 0.8) if suite.startswith("forgetting") else 0.5

    plan = PLAN.only(studies=["robustness"], arms=["base", "aligned", "lora", "full"], seeds=[0])
    entries = read_records(write_results(tmp_path, plan, rate))
    part = [e for e in entries if e.arm != "full" or e.result.suite in ("in-domain", "forgetting:pick")]
    (said,) = (line for line in advice(part) if line.startswith("Expect to lose pretraining tasks"))
    lost, kept = said.split("not shown to:")
    assert "`lora` -40 " in lost
    assert "`aligned` -3 " in kept or "`aligned` -2 " in kept
    assert "full" not in said  # on one task of four
    assert "`aligned` forgets less than `lora`" in "\n".join(advice(part))


@pytest.mark.parametrize(
    ("dark", "said"),
    [
        (0.3, "each minus `aligned`; but `full` -30 [-36, -23] under lighting."),
        (0.7, "each minus `aligned`; no loss against it was shown under lighting, form, distractors"),
    ],
)
def test_advice_says_what_more_than_heads_pays_elsewhere(tmp_path: Path, dark: float, said: str) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return {"base": 0.3, "aligned": 0.6}.get(arm, dark if suite == "lighting" else 0.8)

    plan = PLAN.only(studies=["robustness"], arms=["base", "aligned", "full"], seeds=[0])
    found = "\n".join(advice(read_records(write_results(tmp_path, plan, rate))))
    assert "If memory and time do not matter, train more: `full` +20" in found
    assert said in found


def test_random_heads_of_one_draw_stand_apart_from_what_was_shown(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return 0.8 if task == "pick-cube" and arm.endswith(("-vlm", "full")) else 0.3

    plan = PLAN.only(arms=["base", "aligned", "full", "random-k-vlm"], studies=["success"], seeds=[0])
    entries = read_records(write_results(tmp_path, plan, rate))
    start = "Where heads of the expert are not enough"
    (said,) = (line for line in advice(entries) if line.startswith(start))
    assert "these do better than `aligned`: `full` +50" in said
    assert "; and, of one draw of random heads, `random-k-vlm` +50" in said
    drawn = [e for e in entries if e.arm != "full"]
    assert start not in "\n".join(advice(drawn))  # luck alone is no advice


def test_where_tasks_differ_both_ways_nothing_does_as_well(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        better = {"pick-cube": 0.8, "cube-in-bowl": 0.2}
        return better.get(task, 0.5) if arm in ("aligned-vlm", "lora") else 0.5

    arms = ["base", "aligned", "aligned-vlm", "lora"]
    said = advice(read_records(write_results(tmp_path, PLAN.only(studies=["success"], arms=arms), rate)))
    for start, other in (
        (
            "Whether heads of the vlm or the expert's are better depends on the task",
            ", worse on cube-in-bowl (-30 ",
        ),
        (
            "Whether `aligned` or LoRA of the expert is better depends on the task",
            ", worse on pick-cube (-30 ",
        ),
    ):
        (line,) = (line for line in said if line.startswith(start))
        assert ", better on " in line
        assert other in line


def test_what_wins_by_reaching_farther_says_so_and_where(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return 0.9 if task == "pick-cube" and arm in ("aligned-both", "random-k-both") else 0.4

    arms = ["base", "aligned", "lora", "aligned-both", "random-k-both"]
    plan = PLAN.only(studies=["success"], arms=arms, seeds=[0])
    said = advice(read_records(write_results(tmp_path, plan, rate)))
    (line,) = (line for line in said if line.startswith("Prefer `aligned-both` to LoRA of the expert: "))
    assert ", better on pick-cube (+50 " in line
    assert (
        "`aligned-both` reaches the vlm, `lora` does not; random heads of both towers minus `lora`: +10 "
        in line
    )
    assert line.endswith("1 seed, one draw of random heads).")


def test_more_robust_is_said_of_all_that_the_paper_varies_together(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return 0.7 if (arm, suite) == ("aligned-both", "form") else 0.3

    arms = ["base", "aligned", "lora", "aligned-both", "lora-all-linear"]
    entries = read_records(write_results(tmp_path, PLAN.only(studies=["robustness"], arms=arms), rate))
    (line,) = (line for line in advice(entries) if line.startswith("Where light, objects or the task change"))
    assert "`aligned-both` does better than `lora-all-linear`: over lighting, form, " in line
    assert "together the difference is +10 " in line  # 40 points under one of four
    partial = [e for e in entries if e.result.suite != "distractors"]
    assert not any(line.startswith("Where light") for line in advice(partial))


def test_harm_is_counted_against_what_no_change_would_give(tmp_path: Path) -> None:
    def rate(arm: str, task: str, suite: str) -> float:
        return 0.2 if (arm, task) == ("aligned", "pick-cube") else 0.8

    plan = PLAN.only(studies=["success"], arms=["base", "aligned", "lora"])
    (said,) = (
        s for s in advice(read_records(write_results(tmp_path, plan, rate))) if s.startswith("Roll out")
    )
    assert "harmed pick-cube (`aligned` -60 " in said
    assert said.endswith(
        "(if finetuning changed nothing, 0.2 of 10 arms and tasks would be expected to fall that low)."
    )
