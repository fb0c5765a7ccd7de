"""Promises of result files: the documented form, honest derived numbers, and only like compared with like."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UsageError
from steering.results import Result, load_result, paired_difference, result_path, save_result
from steering.rollouts import Episode, Evaluation


def result(outcomes: str, name: str = "aligned", **changes: Any) -> Result:
    """`+` is a success, `-` a failure; seeds count from 100."""
    episodes = tuple(
        Episode(100 + i, mark == "+", 10 + i, None if mark == "+" else "dropped")
        for i, mark in enumerate(outcomes)
    )
    return Result(
        **{"name": name, "arm": name, "task": "pick-cube", "policy": "pi0-1", "episodes": episodes, **changes}
    )


def test_a_result_file_has_the_documented_form(tmp_path: Path) -> None:
    base = result("----", name="base")
    tuned = result(
        "+++-",
        trainable_parameters={"expert query rows": 768},
        seconds={"train": 41.5, "evaluate": 63.0},
        peak_memory_mb=611.0,
        heads=("expert.L0H3",),
        settings={"seed0": 100, "variation": None},
        created="2026-01-01T00:00:00Z",
    ).against(base)
    assert json.loads(save_result(tmp_path / "results" / "aligned.json", tuned).read_text()) == {
        "schema": 1,
        "name": "aligned",
        "task": "pick-cube",
        "arm": "aligned",
        "policy": "pi0-1",
        "episodes": [
            {"seed": 100, "success": True, "steps": 10, "failure": None},
            {"seed": 101, "success": True, "steps": 11, "failure": None},
            {"seed": 102, "success": True, "steps": 12, "failure": None},
            {"seed": 103, "success": False, "steps": 13, "failure": "dropped"},
        ],
        "n": 4,
        "successes": 3,
        "success_rate": 0.75,
        "wilson": [pytest.approx(0.3006, abs=1e-4), pytest.approx(0.9544, abs=1e-4)],  # Wilson for 3 of 4
        "paired": {
            "against": "base",
            "difference": 0.75,
            "low": pytest.approx(0.0852, abs=1e-4),
            "high": 1.0,
        },
        "trainable_parameters": {"expert query rows": 768},
        "seconds": {"train": 41.5, "evaluate": 63.0},
        "peak_memory_mb": 611.0,
        "heads": ["expert.L0H3"],
        "settings": {"seed0": 100, "variation": None},
        "created": "2026-01-01T00:00:00Z",
        "suite": "in-domain",
        "factor": None,
    }


def test_a_file_from_before_there_were_suites_is_in_domain(tmp_path: Path) -> None:
    path = save_result(tmp_path / "r.json", result("+-", suite="lighting", factor="visual"))
    record = json.loads(path.read_text())
    assert (load_result(path).suite, load_result(path).factor) == ("lighting", "visual")
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("suite", "factor")}))
    assert (load_result(path).suite, load_result(path).factor) == ("in-domain", None)


def test_results_lie_where_readers_look_for_them() -> None:
    assert result_path("results", "aligned") == Path("results/aligned.json")
    assert result_path("results", "aligned", "unseen:pick-mug") == Path(
        "results/aligned--unseen-pick-mug.json"
    )
    with pytest.raises(UsageError, match="name of the result"):
        result_path("results", "../aligned")


def test_results_of_one_condition_are_paired_whatever_they_are_for() -> None:
    """The base policy forgets nothing: its pretraining tasks serve every task that something was adapted to."""
    base = result("--++", name="base", task="put", settings={"rolled_out": "pick"}, suite="forgetting:pick")
    tuned = result("-+++", task="press", settings={"rolled_out": "pick"}, suite="forgetting:pick")
    assert paired_difference(tuned, base).value == 0.25
    with pytest.raises(UsageError, match="other_object"):
        paired_difference(result("+", settings={"other_object": True}), result("+"))


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = result("+-+").against(result("---", name="base"))
    assert load_result(save_result(tmp_path / "r.json", saved)) == saved


def test_derived_numbers_in_a_file_are_not_believed(tmp_path: Path) -> None:
    path = save_result(tmp_path / "r.json", result("+-+-"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "successes": 4, "success_rate": 1.0, "wilson": [1.0, 1.0]}))
    assert load_result(path).success_rate.value == 0.5


def test_only_the_same_episodes_are_paired() -> None:
    with pytest.raises(UsageError, match=r"ran seeds 100-102 \(3\), base 100-103 \(4\)"):
        paired_difference(result("+++"), result("++++", name="base"))
    with pytest.raises(UsageError, match="task press, base has pick-cube"):
        paired_difference(result("+", task="press"), result("+", name="base"))
    with pytest.raises(UsageError, match="variation"):
        paired_difference(result("+", settings={"variation": {"light": 0.5}}), result("+", name="base"))


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for content, message in (
        ("{", "is not JSON"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1, "episodes": [{"seed": 1}]}', "not a result file"),
        ('{"schema": 1, "episodes": [], "name": "x", "arm": "x", "task": "t", "policy": "p"}', "no episodes"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            load_result(path)


def test_a_result_gathers_evaluation_and_training() -> None:
    episodes = (Episode(0, True, 9), Episode(1, False, 60, "time ran out"))
    evaluation = Evaluation("pick-cube", "pi0-tuned", episodes, 12.3456, {"seed0": 0, "variation": None})
    training = {
        "policy": "pi0-tuned",
        "recipe": {"name": "aligned"},
        "heads": ["expert.L0H3"],
        "seed": 5,
        "data": "demos-1",
        "trainable_parameters": {"expert query rows": 768},
        "seconds": 41.5,
        "processor_seconds": 40.25,
        "peak_memory_mb": 611.0,
    }
    tuned = Result.of(evaluation, name="aligned-s5", arm="aligned", training=training)
    assert tuned.seconds == {"train": 41.5, "train_processor": 40.25, "evaluate": 12.346}
    assert tuned.settings == {
        "seed0": 0,
        "variation": None,
        "recipe": {"name": "aligned"},
        "seed": 5,
        "data": "demos-1",
    }
    assert (tuned.heads, tuned.peak_memory_mb) == (("expert.L0H3",), 611.0)
    base = Result.of(evaluation, name="base", arm="base")
    assert (base.heads, base.trainable_parameters, base.seconds["train"]) == (None, {}, 0.0)
