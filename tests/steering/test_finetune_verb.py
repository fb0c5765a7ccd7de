"""Promises of `robosteer finetune`: settings reach the recipe, averages come out, bad input is one line, status 2."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import robosteer
from interp.capture import capture
from interp.demos import Demonstrations
from interp.policies import load_policy
from interp.runs import Run
from interp.scores import HeadScores
from steering.headset import best_heads

QUICK = ("--set", "batch=4", "draws=2", "warmup=0", "--steps", "2")


@pytest.fixture
def run(tiny_policy_dir: Path, demos: Demonstrations, scores: HeadScores, tmp_path: Path) -> Run:
    """A run with scores and a selection, and the run of another task beside it."""
    policy = load_policy(tiny_policy_dir)
    made = []
    for name, data in (("mug", demos), ("bowl", demos.take([0, 1]))):
        run = capture(
            policy, data, tmp_path / "runs" / name, towers=("expert",), thumbnails=False, progress=False
        )
        run.save_scores(replace(scores, data=data.fingerprint))
        made.append(run)
    made[0].save_selection("chosen", best_heads(made[0].read_scores("knn"), 2, "expert").to_json())
    return made[0]


def finetune(run: Run, *words: object) -> int:
    return robosteer.main(["finetune", "--run", str(run.path), "--heads", "chosen", *map(str, words)])


def test_settings_reach_the_recipe_and_averages_come_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run.path.with_name("bowl")
    words = ("--recipe", "generic-k", "--others", other, *QUICK, "--lr", "0.01", "--retain", "0.5")
    assert finetune(run, *words) == 0
    job = run.path / "jobs" / "generic-k"
    recipe = json.loads((job / "recipe.json").read_text())["recipe"]
    assert (recipe["name"], recipe["batch"], recipe["draws"], recipe["lr"]) == ("generic-k", 4, 2, 0.01)
    average = run.path / "jobs" / "generic-k-retain-0.5" / "policy"
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"{job / 'policy'}: 1,536 parameters trained", str(average)]
    assert "expert query rows" in printed.err  # before the training, with the bar
    assert load_policy(average).spec.family == "pi0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "alined"), "unknown recipe 'alined'"),
        (("--recipe", "retain"), "recipe retain trains nothing"),
        (("--recipe", "generic-k"), "generic-k needs head scores of other tasks"),
        (("--set", "projections=q,v"), "cannot be trained for single heads: grouped-query attention shares"),
        (("--set", "rank=0", "form=low-rank"), "rank = 0; it must be above zero"),
        (("--set", "learning_rate=1"), "unknown recipe setting 'learning_rate'"),
        (("--set", "lr"), "--set lr: write NAME=VALUE, for example ema=0.99"),
        (("--lr", "nan"), "lr = nan; it must be a finite number"),
        (("--lr", "inf"), "lr = inf; it must be a finite number"),
        (("--set", "weight_decay=nan"), "weight_decay = nan; it must be a finite number"),
        (("--set", "augment_colour=nan"), "augment_colour = nan; it must be a finite number"),
        (("--set", "betas=0.9,nan"), "betas = (0.9, nan); it must be a finite number"),
        (("--set", "name=lora"), "a recipe's name is no setting of it: ask for --recipe lora"),
        (("--set", "self=1"), "unknown recipe setting 'self'"),
        (("--cache-mb", "nan"), "a cache of nan MB: it takes 0 (none) or more"),
        (("--cache-mb", "-1"), "a cache of -1.0 MB: it takes 0 (none) or more"),
        (("--checkpoint-every", "0"), "a checkpoint every 0 steps: it takes at least 1"),
        (("--retain", "0.5", "1.5"), "retain coefficient 1.5"),
        (("--set", "steps=1.5"), "recipe setting steps = 1.5: it must be a whole number"),
        (("--device", "gpu"), "device gpu: known are cpu, cuda, cuda:1, mps"),
        (
            ("--heads", "nobody"),
            "--heads nobody: no selection of the run (it has chosen), no file, and no heads",
        ),
        (("--heads", "expert.L0H3,expert.L0H9"), "expert.L0H9: layer 0 has 4 heads"),
        (("--name", "base"), "name of the job 'base': it is that of the base policy's results"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_job(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert finetune(run, *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not any((run.path / "jobs").glob("*"))


def test_heads_can_be_written_out(run: Run) -> None:
    assert finetune(run, *QUICK, "--heads", "expert.L0H3,expert.L2H0", "--name", "by-hand") == 0
    asked = json.loads((run.path / "jobs/by-hand/recipe.json").read_text())
    assert asked["heads"] == ["expert.L0H3", "expert.L2H0"]


def test_a_base_that_has_moved_is_averaged_with(run: Run, tiny_policy_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_policy_dir, tmp_path / "first")
    assert finetune(run, *QUICK, "--policy", tmp_path / "first") == 0
    (tmp_path / "first").rename(moved)
    assert finetune(run, *QUICK, "--policy", moved, "--retain", "0.5") == 0
    assert (run.path / "jobs/aligned-retain-0.5/policy").is_dir()


def test_a_loss_that_is_not_a_number_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(run, *QUICK, "--lr", "1e30", "--steps", "5", "--checkpoint-every", "1") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("robosteer finetune: ")]
    assert len(said) == 1
    assert "training stopped, step 1 is kept in" in said[0]
