"""Promises of devices: a policy of LeRobot's computes there what it computes on a CPU, and is stored as it would be.

There is no GPU in these tests: tests/elsewhere.py is one that PyTorch believes in.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import second_device
from lerobot.configs import policies
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import DeviceProcessorStep

from interp.capture import capture
from interp.demos import Demonstrations
from interp.patching import Pairs, patch_heads
from interp.policies import Observation, Policy, load_policy

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""float32 through networks whose activations are of order ten: on a CPU, attention has kernels of its own."""


@pytest.fixture
def device() -> Iterator[str]:
    with second_device() as name:  # LeRobot gives float64 to every device but MPS
        yield name


def test_a_policy_is_the_same_there(
    directories: dict[str, Path],
    family: str,
    policy: Policy,
    demos: Demonstrations,
    seen: list[Observation],
    device: str,
    tmp_path: Path,
) -> None:
    there = load_policy(directories[family], device)
    assert there.fingerprint == policy.fingerprint
    assert there.spec == policy.spec
    batch = there.batch(seen)
    assert {tensor.device.type for tensor in batch.values()} == {device}
    with torch.no_grad():
        chunk = there.sample(batch, there.noise(2, seed=3))
        here = policy.sample(policy.batch(seen), policy.noise(2, seed=3))
    assert chunk.device.type == device
    torch.testing.assert_close(chunk.cpu(), here, **CLOSE)
    few = demos.take([0, 1])
    runs = [capture(p, few, tmp_path / name, progress=False) for p, name in ((policy, "a"), (there, "b"))]
    for tower in policy.spec.towers:
        for token in runs[0].tokens(tower):
            np.testing.assert_allclose(*(run.activations(tower, token)[:] for run in runs), **CLOSE)
    pairs = Pairs.of_frames(policy, few, 2)
    scores = [patch_heads(p, pairs, towers=("expert",), resamples=0) for p in (policy, there)]
    np.testing.assert_allclose(*(each.tower("expert").value for each in scores), **CLOSE)


def test_what_is_saved_there_names_no_device_of_this_machine(
    directories: dict[str, Path], family: str, policy: Policy, device: str, tmp_path: Path
) -> None:
    """LeRobot would refuse a device that the robot lacks, or stay on the CPU that was named."""
    there = load_policy(directories[family], device)
    there.normalise_actions(torch.zeros(1, there.spec.action_dim).to(device))
    there.save(tmp_path / "there")
    policy.save(tmp_path / "here")
    for file in (tmp_path / "here").iterdir():
        if file.name != "model.safetensors":
            assert (tmp_path / "there" / file.name).read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "there/config.json").read_text())["device"] is None
    assert load_policy(tmp_path / "there").fingerprint == policy.fingerprint


def test_on_the_robot_lerobot_takes_the_best_device(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lerobot-record and lerobot-rollout run the policy, and what leads to it, where its configuration says."""
    monkeypatch.setattr(policies, "auto_select_torch_device", lambda: torch.device("meta"))
    policy.save(tmp_path / "merged")
    (tmp_path / "adapter").mkdir()
    policy.beside_adapter(tmp_path / "adapter")
    for directory in (tmp_path / "merged", tmp_path / "adapter"):
        config = PreTrainedConfig.from_pretrained(str(directory))
        assert config.device == "meta"
        pre, _ = make_pre_post_processors(
            config,
            pretrained_path=str(directory),
            preprocessor_overrides={"device_processor": {"device": config.device}},
        )
        assert {s.device for s in pre.steps if isinstance(s, DeviceProcessorStep)} == {"meta"}
        assert config.use_peft is (directory.name == "adapter")
    assert policy.module.config.device == "cpu"


def test_a_network_that_was_moved_takes_its_observations_along(
    directories: dict[str, Path], family: str, seen: list[Observation], device: str
) -> None:
    moved = load_policy(directories[family])
    with torch.no_grad():
        here = moved.sample(moved.batch(seen), moved.noise(2, seed=3))
        moved.module.to(device)
        there = moved.sample(moved.batch(seen), moved.noise(2, seed=3))
    assert there.device.type == device
    torch.testing.assert_close(there.cpu(), here, **CLOSE)
