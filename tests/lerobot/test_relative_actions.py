"""Promises of policies that LeRobot trained on actions relative to the state (LeRobot 0.5 and newer): what LeRobot's
own code does to one observation is done to every row of a batch, each with its own state."""

import json
import shutil
from pathlib import Path
from typing import Any

import lerobot.processor
import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from lerobot_kit import ACTION_DIM, build, observations
from lerobot_reference import LeRobot

import robosteer
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import load_policy

if not hasattr(lerobot.processor, "RelativeActionsProcessorStep"):
    pytest.skip("LeRobot before 0.5 has no relative actions", allow_module_level=True)

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
NAMES = ["pan", "lift", "elbow", "roll", "gripper.pos"]
RELATIVE = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])  # whose name has `gripper` in it stays as it is


@pytest.fixture(params=["pi0", "pi05"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return build(
        request.param, tmp_path / request.param, use_relative_actions=True, action_feature_names=NAMES
    )


def test_every_row_of_a_batch_is_relative_to_its_own_state(directory: Path) -> None:
    policy, theirs, seen = load_policy(directory), LeRobot(directory), observations(3)
    noise = policy.noise(3, 0)
    with torch.no_grad():
        chunks = policy.sample(policy.batch(seen), noise)
        twice = policy.sample(policy.batch(seen[:1]), noise[:2])  # two draws of one observation
    for row, observation in enumerate(seen):
        torch.testing.assert_close(
            chunks[row], theirs.chunk(observation, policy, noise[row : row + 1]), **CLOSE
        )
    torch.testing.assert_close(twice[0], chunks[0], **CLOSE)
    states = torch.stack([torch.tensor(each.state[:ACTION_DIM]) for each in seen])
    assert (states[0] - states[2]).abs().max() > 0.1  # or nothing would have been shown


def test_training_sees_what_lerobots_does(directory: Path) -> None:
    policy, theirs, seen = load_policy(directory), LeRobot(directory), observations(2)
    actions = torch.randn(2, policy.spec.horizon, ACTION_DIM, generator=torch.Generator().manual_seed(2))
    states = torch.stack([torch.tensor(each.state) for each in seen])
    normalised = policy.normalise_actions(actions, states)
    torch.testing.assert_close(policy.unnormalise_actions(normalised, states), actions, **CLOSE)
    noise, time = policy.noise(2, seed=4), torch.tensor([0.4, 0.4])
    with torch.no_grad():
        ours = policy.loss(policy.batch(seen), normalised, noise, time).mean((1, 2))
    for row, observation in enumerate(seen):
        expected = theirs.loss(
            observation, policy, actions[row : row + 1], noise[row : row + 1], time[row : row + 1]
        )
        torch.testing.assert_close(ours[row], expected, **CLOSE)


def test_actions_without_the_state_that_they_start_from_are_refused(directory: Path) -> None:
    policy = load_policy(directory)
    for change in (policy.normalise_actions, policy.unnormalise_actions):
        with pytest.raises(UsageError, match="acts in deltas"):
            change(torch.zeros(2, 8, ACTION_DIM))


def test_relative_and_absolute_are_two_policies(directory: Path, tmp_path: Path) -> None:
    policy = load_policy(directory)
    plain = load_policy(build(directory.name, tmp_path / "plain"))
    assert policy.fingerprint != plain.fingerprint
    policy.save(tmp_path / "saved")
    again, noise, seen = load_policy(tmp_path / "saved"), policy.noise(2, 1), observations(2)
    assert again.fingerprint == policy.fingerprint
    with torch.no_grad():
        assert torch.equal(*(p.sample(p.batch(seen), noise) for p in (policy, again)))
    state = torch.tensor(seen[0].state[None])
    moved = policy.unnormalise_actions(torch.zeros(1, ACTION_DIM), state)
    torch.testing.assert_close(
        moved - plain.unnormalise_actions(torch.zeros(1, ACTION_DIM)), state[:, :ACTION_DIM] * RELATIVE
    )


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def named(dataset: Path, to: Path, names: list[str] | None) -> Path:
    """A copy of the data whose actions are called that."""
    shutil.copytree(dataset, to)
    features = json.loads((to / "meta/info.json").read_text())["features"]
    edited(to / "meta/info.json", features=features | {"action": features["action"] | {"names": names}})
    return to


RELATIVE_STEP = {"enabled": True, "exclude_joints": ["gripper"], "action_names": NAMES}
BASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str] | None]] = {
    "without names": ({"use_relative_actions": True}, {}, NAMES),
    "switched on in config.json alone": ({}, {"use_relative_actions": True}, NAMES),
    "of another robot": ({"use_relative_actions": True, "action_feature_names": NAMES[::-1]}, {}, NAMES),
    "with the only names": ({"use_relative_actions": True, "action_feature_names": NAMES}, {}, None),
}
"""What a base is built with, what is then changed in its config.json, and the names in the data."""


@pytest.mark.parametrize("family", ["pi0", "pi05"])
@pytest.mark.parametrize("kind", BASES)
def test_a_copy_is_relative_as_lerobot_train_would_have_it(
    family: str, kind: str, dataset: Path, tmp_path: Path
) -> None:
    built, changed, names = BASES[kind]
    demos, new = named(dataset, tmp_path / "demos", names), tmp_path / "new"
    base = build(family, tmp_path / "base", **built)
    edited(base / "config.json", **changed)
    assert robosteer.main(["demos", "normalise", str(demos), str(new), "--policy", str(base)]) == 0

    # Of what lerobot-train does, that which names actions.
    config = PreTrainedConfig.from_pretrained(str(base))
    config.pretrained_path, config.device = base, "cpu"
    make_policy(config, ds_meta=LeRobotDatasetMetadata("local/tiny", root=demos))
    assert config.action_feature_names == NAMES
    assert json.loads((new / "config.json").read_text())["action_feature_names"] == NAMES
    saved = {
        step["registry_name"]: step["config"]
        for part in ("pre", "post")
        for step in json.loads((new / f"policy_{part}processor.json").read_text())["steps"]
    }
    assert saved["relative_actions_processor"] == RELATIVE_STEP
    assert saved["absolute_actions_processor"] == {"enabled": True}

    policy, seen = load_policy(new), Demonstrations.open(demos).observation(0)
    noise = policy.noise(1, seed=1)
    with torch.no_grad():
        chunk = policy.sample(policy.batch([seen]), noise)[0]
    torch.testing.assert_close(LeRobot(new).chunk(seen, policy, noise), chunk, **CLOSE)


def test_actions_without_any_name_get_some(dataset: Path, tmp_path: Path) -> None:
    """Or LeRobot's inference takes the robot's, and the gripper would be absolute that was trained as relative."""
    base = build("pi0", tmp_path / "base", use_relative_actions=True)
    demos, new = named(dataset, tmp_path / "demos", None), tmp_path / "new"
    assert robosteer.main(["demos", "normalise", str(demos), str(new), "--policy", str(base)]) == 0
    steps = json.loads((new / "policy_preprocessor.json").read_text())["steps"]
    (step,) = (each["config"] for each in steps if each["registry_name"] == "relative_actions_processor")
    assert step["action_names"] == [f"action_{at}" for at in range(ACTION_DIM)]
    assert step["action_names"] == json.loads((new / "config.json").read_text())["action_feature_names"]


@pytest.mark.parametrize(
    ("built", "changed", "says"),
    [
        (
            {},
            {"use_relative_actions": True},
            "use_relative_actions is true and RelativeActionsProcessorStep is off",
        ),
        (
            {"use_relative_actions": True},
            {"use_relative_actions": False},
            "use_relative_actions is false and RelativeActionsProcessorStep is on",
        ),
        (
            {"use_relative_actions": True},
            {"action_feature_names": NAMES},
            "gripper.pos is absolute by config.json and relative by RelativeActionsProcessorStep",
        ),
        (
            {"use_relative_actions": True, "action_feature_names": NAMES},
            {"relative_exclude_joints": ["lift", "gripper"]},
            "lift is absolute by config.json and relative by RelativeActionsProcessorStep",
        ),
    ],
)
def test_a_config_that_says_otherwise_than_its_processors_is_refused(
    built: dict[str, Any], changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    base = build("pi05", tmp_path / "base", **built)
    load_policy(base)
    edited(base / "config.json", **changed)
    with pytest.raises(UsageError) as raised:
        load_policy(base)
    assert str(raised.value) == (
        f"policy {base}: config.json and its processors disagree about relative actions: {says}; set config.json as "
        f"the policy was trained, then `robosteer demos normalise DEMOS NEW --policy {base}` writes a copy in which "
        "they agree"
    )


def test_a_copy_normalises_by_relative_actions(directory: Path, dataset: Path, tmp_path: Path) -> None:
    """Whatever meta/stats.json says: of every whole chunk less its own start, by numpy."""
    demos_at, new = named(dataset, tmp_path / "demos", NAMES), tmp_path / "new"
    assert robosteer.main(["demos", "normalise", str(demos_at), str(new), "--policy", str(directory)]) == 0
    policy, demos = load_policy(new), Demonstrations.open(dataset)
    chunks, starts, first = [], [], 0
    for episode in demos.episodes:
        for frame in range(first, first + len(episode) - policy.spec.horizon + 1):
            chunks.append(demos.action[frame : frame + policy.spec.horizon])
            starts.append(demos.state[frame])
        first += len(episode)
    actions, states = (torch.tensor(np.stack(each)).float() for each in (chunks, starts))
    relative = actions - states[:, None, :ACTION_DIM] * RELATIVE
    normalised = policy.normalise_actions(actions, states).double()
    assert (relative - actions).abs().mean() > 0.1  # or absolute statistics would do
    flat = normalised.flatten(0, 1)
    if directory.name == "pi05":
        # The 1st and 99th percentile become -1 and 1; LeRobot's come from a histogram.
        for at, share in ((-1.0, 0.01), (1.0, 0.99)):
            found = flat.quantile(share, dim=0)
            torch.testing.assert_close(found, torch.full_like(found, at), atol=0.1, rtol=0)
    else:
        torch.testing.assert_close(flat.mean(dim=0), torch.zeros_like(flat[0]), atol=1e-3, rtol=0)
        torch.testing.assert_close(flat.std(dim=0, correction=0), torch.ones_like(flat[0]), atol=1e-2, rtol=0)


def test_episodes_shorter_than_a_chunk_are_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build("pi0", tmp_path / "base", use_relative_actions=True, action_feature_names=NAMES)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"chunk_size": 500}))
    assert (
        robosteer.main(["demos", "normalise", str(dataset), str(tmp_path / "new"), "--policy", str(base)])
        == 2
    )
    assert "no episode has the 500 frames of one chunk" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
