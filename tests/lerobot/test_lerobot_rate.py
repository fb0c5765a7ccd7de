"""Promises of the control rate of LeRobot's policies: their layout has no place for it, robosteer.json has."""

import json
from pathlib import Path

import pytest
from lerobot_kit import build

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import load_policy
from steering.export import export_job
from steering.finetune import finetune
from steering.recipes import Recipe


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    build("smolvla", tmp_path / "smolvla")
    return tmp_path / "smolvla"


def test_it_is_none_unless_said_and_then_kept(directory: Path, tmp_path: Path) -> None:
    silent = load_policy(directory)
    assert silent.spec.fps is None
    (directory / "robosteer.json").write_text('{"fps": 15}')
    policy = load_policy(directory)
    assert policy.spec.fps == 15
    assert policy.fingerprint == silent.fingerprint
    policy.save(tmp_path / "saved")
    assert load_policy(tmp_path / "saved").spec.fps == 15
    (directory / "robosteer.json").write_text('{"fps": "fast"}')
    with pytest.raises(UsageError, match='fps must be a positive number, not "fast"'):
        load_policy(directory)


def test_what_is_trained_and_exported_has_that_of_its_demonstrations(
    directory: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    (directory / "robosteer.json").write_text('{"fps": 30}')
    recipe = Recipe.named("lora", steps=1, batch=2, draws=1)
    with pytest.warns(UserWarning, match="acts at 30 Hz .* are of 10 Hz"):
        trained = finetune(load_policy(directory), demos, recipe, tmp_path / "job", progress=False)
    assert trained.policy.spec.fps == 10
    for form in ("merged", "peft"):
        done = export_job(tmp_path / "job", tmp_path / form, demos, form=form)
        assert json.loads((tmp_path / form / "robosteer.json").read_text())["fps"] == 10
        assert "lerobot-rollout --fps=10" in done.notes[-1]
