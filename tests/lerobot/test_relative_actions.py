"""Promises of policies that LeRobot trained on actions relative to the state (LeRobot 0.5 and newer): what LeRobot's
own code does to one observation is done to every row of a batch, each with its own state."""

import json
from pathlib import Path

import lerobot.processor
import numpy as np
import pytest
import torch
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


def test_a_copy_normalises_by_relative_actions(
    directory: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever meta/stats.json says: of every whole chunk less its own start, by numpy."""
    new = tmp_path / "new"
    assert robosteer.main(["demos", "normalise", str(dataset), str(new), "--policy", str(directory)]) == 0
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
