"""Promises about directories that are not what they should be: one line that says what is wrong, and what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lerobot_kit import build
from safetensors.torch import load_file, save_file

from interp.errors import UsageError
from interp.policies import Observation, Policy, load_policy


@pytest.fixture
def broken(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of SmolVLA's directory, to be spoilt."""
    return shutil.copytree(directories["smolvla"], tmp_path / "broken")


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        load_policy(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_truncated_file(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cannot load" in refusal(broken)


@pytest.mark.parametrize("family", ["smolvla", "pi0", "pi05", "xvla"])
def test_missing_keys_never_mean_random_weights(
    directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    path = shutil.copytree(directories[family], tmp_path / family)
    tensors = load_file(path / "model.safetensors")
    gone = next(name for name in tensors if "q_proj" in name)
    del tensors[gone]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    assert "1 missing keys" in (said := refusal(path))
    assert gone in said


def test_a_tensor_too_many(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.surprise"] = next(iter(tensors.values())).clone()
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert "1 unexpected keys in the weights, first model.surprise" in refusal(broken)


def test_a_wrong_dimension(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "max_action_dim": 9}))
    assert "mismatched keys in the weights" in refusal(broken)


def test_processors_that_are_missing(broken: Path) -> None:
    (broken / "policy_preprocessor.json").unlink()
    assert refusal(broken).endswith("it has no policy_preprocessor.json")


def test_deltas_to_which_lerobot_would_add_no_state(broken: Path) -> None:
    (broken / "robosteer.json").write_text(json.dumps({"delta_actions": [True] * 6}))
    assert "delta_actions is for pi0 in the core environment" in refusal(broken)
    (broken / "robosteer.json").write_text(json.dumps({"delta_actions": [False] * 6}))
    load_policy(broken)


@pytest.mark.parametrize(
    ("kind", "reason"), [("act", "never calls its output projection"), ("diffusion", "U-Net")]
)
def test_policies_without_reachable_heads(tmp_path: Path, kind: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"type": kind}))
    assert reason in refusal(tmp_path)


def test_an_unknown_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"type": "nonsense"}))
    assert "known of LeRobot are pi0, pi05, smolvla, xvla" in refusal(tmp_path)


def test_an_expert_of_fewer_layers(tmp_path: Path) -> None:
    assert "expert has 2 layers and its vlm 4" in refusal(
        build("smolvla", tmp_path / "thin", num_expert_layers=2)
    )


def test_a_camera_that_is_missing(policy: Policy, seen: list[Observation]) -> None:
    half = Observation({"front": seen[0].images["front"]}, seen[0].state, "")
    with pytest.raises(UsageError, match="lacks camera 'wrist'"):
        policy.batch([half])


def test_a_state_of_another_robot(policy: Policy, seen: list[Observation]) -> None:
    with pytest.raises(UsageError, match="state has 3 numbers: the policy needs 6"):
        policy.batch([Observation(seen[0].images, np.zeros(3, np.float32), "")])


def test_an_instruction_that_would_be_cut(smolvla: Policy, seen: list[Observation]) -> None:
    with pytest.raises(UsageError, match="tokens: the policy takes at most 14"):
        smolvla.batch([Observation(seen[0].images, seen[0].state, "pick " * 20)])


def test_a_prompt_that_the_state_makes_too_long(loaded: dict[str, Policy], seen: list[Observation]) -> None:
    """PI0.5 writes the state behind the instruction, and cut off would be what asks for an action."""
    words = "pick up the red cube and place it in the bowl " * 5  # 55 of 64 tokens: alone it would fit
    with pytest.raises(UsageError, match=r"makes a prompt of \d\d tokens: the policy takes at most 64"):
        loaded["pi05"].batch([Observation(seen[0].images, seen[0].state, words)])


def test_saving_over_what_is_no_policy(smolvla: Policy, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(UsageError, match="not a policy"):
        smolvla.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"
