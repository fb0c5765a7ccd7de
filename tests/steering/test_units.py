"""Promises about demonstrations in other units than a policy was trained in: it is said before hours of training."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot_writer import random_episodes, write_dataset
from pi0_directories import edit_json
from training_kit import SMALL, run

import robosteer
from interp.capture import capture
from interp.data.copying import source_of
from interp.data.recordings import write_dataset as write_ours
from interp.demos import Demonstrations
from interp.policies import Policy, load_policy
from interp.units import far_from_training, unlike_training

MASK = [True, True, True, True, True, True, False]


@pytest.fixture
def demos(tmp_path: Path) -> Demonstrations:
    """In the units of the random policy's statistics."""
    return Demonstrations.open(write_dataset(tmp_path / "demos", random_episodes((5, 4))))


def in_degrees(demos: Demonstrations, dims: list[int]) -> Demonstrations:
    action = demos.action.copy()
    action[:, dims] = np.rad2deg(action[:, dims] + 1)
    return replace(demos, action=action)


def test_what_is_as_it_was_in_training_passes(policy: Policy, demos: Demonstrations) -> None:
    assert not list(unlike_training(policy, demos))


def test_a_joint_in_degrees_is_named(policy: Policy, demos: Demonstrations) -> None:
    (line,) = unlike_training(policy, in_degrees(demos, [2]))
    assert line.startswith("action dz (")
    assert "standard deviations from what the policy was trained on: other units" in line


def test_a_state_is_far_in_the_units_that_the_policy_normalises_by(
    policy: Policy, tiny_policy_dir: Path, tmp_path: Path
) -> None:
    """Ten standard deviations; a policy without statistics (mean 0, std 1, added 0) says nothing."""
    raw = shutil.copytree(tiny_policy_dir, tmp_path / "raw")
    norm = json.loads((raw / "robosteer.json").read_text())["norm"]
    mean, std = (np.array(norm["state"][name]) for name in ("mean", "std"))
    assert not far_from_training(policy, mean + 9.9 * std)
    state = mean.copy()
    state[[1, 4]] += [10.1 * std[1], -20 * std[4]]
    assert [(each.name, each.value) for each in far_from_training(policy, state)] == [
        ("ry", state[4]),
        ("y", state[1]),
    ]
    assert [each.distance for each in far_from_training(policy, state)] == pytest.approx(
        [-20, 10.1], rel=1e-4
    )
    norm["state"] = {"mean": [0.0] * 8, "std": [1.0] * 8, "floor": 0.0}
    edit_json(raw / "robosteer.json", norm=norm)
    assert not far_from_training(load_policy(raw), np.full(8, 57.3))


def test_an_outlier_is_none(policy: Policy, demos: Demonstrations) -> None:
    action = demos.action.copy()
    action[:4, 1] = 1e6  # 4 of 9 frames
    assert not list(unlike_training(policy, replace(demos, action=action)))


def test_deltas_that_nobody_spoke_of_are_noticed(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    """Absolute positions for a policy whose statistics are of deltas; with the mask they are what it knows."""
    state = np.full_like(demos.state, 30)
    action = demos.action + np.where(MASK, 30, 0).astype(np.float32)
    absolute = replace(demos, state=state, action=action)
    assert len(list(unlike_training(load_policy(tiny_policy_dir), absolute))) == 6
    told = shutil.copytree(tiny_policy_dir, tmp_path / "told")
    edit_json(told / "robosteer.json", delta_actions=MASK)
    assert not list(unlike_training(load_policy(told), absolute))


def test_capture_and_finetune_warn_once_and_go_on(
    policy: Policy, demos: Demonstrations, tmp_path: Path
) -> None:
    degrees = in_degrees(demos, [2, 5])
    told = r"action dz .* \(2 dimensions do\)"
    with pytest.warns(UserWarning, match=told):
        capture(policy, degrees, tmp_path / "run", towers=["expert"], thumbnails=False, progress=False)
    with pytest.warns(UserWarning, match=told):
        run(policy, degrees, tmp_path / "job", replace(SMALL, steps=2, warmup=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(policy, demos, tmp_path / "fine", towers=["expert"], thumbnails=False, progress=False)


def test_a_verb_warns_in_one_line_and_leaves_warnings_as_they_were(
    tiny_policy_dir: Path, tmp_path: Path
) -> None:
    episodes = random_episodes((5,))
    for episode in episodes:
        episode["action"] = np.rad2deg(np.asarray(episode["action"]) + 1).astype(np.float32)
    path = write_dataset(tmp_path / "degrees", episodes)
    words = [
        "capture",
        "--policy",
        str(tiny_policy_dir),
        "--demos",
        str(path),
        "--run",
        str(tmp_path / "run"),
    ]
    usual = warnings.formatwarning
    assert robosteer.main(words) == 0
    assert warnings.formatwarning is usual
    done = subprocess.run(
        [sys.executable, "-m", "robosteer", *words[:-1], str(tmp_path / "again")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    (line,) = (line for line in done.stderr.splitlines() if "standard deviations" in line)
    assert line.startswith("robosteer: warning: action dx (")


def test_validate_counts_it_as_a_problem(
    tiny_policy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = random_episodes((5,))
    for episode in episodes:
        episode["action"] = np.rad2deg(np.asarray(episode["action"]) + 1).astype(np.float32)
    written = Demonstrations.open(write_dataset(tmp_path / "written", episodes))
    path = tmp_path / "degrees"
    write_ours(source_of(written), path, progress=False)  # with statistics
    assert robosteer.main(["demos", "validate", str(path)]) == 0
    capsys.readouterr()
    assert robosteer.main(["demos", "validate", str(path), "--policy", str(tiny_policy_dir)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all("standard deviations from what the policy was trained on" in line for line in lines)
