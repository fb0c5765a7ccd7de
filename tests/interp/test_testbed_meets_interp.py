"""The testbed writes policies and demonstrations, interp reads them, and neither shares code with the other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interp.capture import capture
from interp.demos import Demonstrations
from interp.knn import rank
from interp.policies import load_policy
from testbed.demos import record
from testbed.model import build_model, build_tokenizer, save_policy, tokenize
from testbed.tabletop import CAMERAS


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-pi0 before its pretraining."""
    directory = tmp_path_factory.mktemp("policies") / "fresh"
    norm = {"state": (np.linspace(-1, 1, 8), np.linspace(1, 2, 8)), "action": (np.zeros(7), np.ones(7))}
    save_policy(build_model(), directory, norm, {"steps": 0})
    return directory


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    path = record("pick", 3, tmp_path_factory.mktemp("demos") / "pick", workers=1, progress=False)
    return Demonstrations.open(path)


def test_the_policy_is_read_as_it_was_trained(policy_dir: Path, demos: Demonstrations) -> None:
    """Tokens, pixels and state reach the network as in pretraining, which prepares them by itself."""
    policy = load_policy(policy_dir)
    frames = [0, len(demos) - 1]
    batch = policy.batch([demos.observation(frame) for frame in frames])
    ids, mask = tokenize(build_tokenizer(), [demos.instruction(frame) for frame in frames])
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["attention_mask"], mask)
    images = np.stack([[demos.observation(frame).images[camera] for camera in CAMERAS] for frame in frames])
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(batch["pixel_values"], pixels)
    state = (demos.state[frames] - np.linspace(-1, 1, 8)) / np.linspace(1, 2, 8)
    torch.testing.assert_close(batch["state"], torch.tensor(state, dtype=torch.float32))
    assert policy.spec.cameras == CAMERAS
    assert {name: (s.layers, s.heads) for name, s in policy.spec.towers.items()} == {
        "vision": (3, 4),
        "vlm": (8, 8),
        "expert": (8, 8),
    }


def test_demonstrations_can_be_captured_and_ranked(
    policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run = capture(load_policy(policy_dir), demos, tmp_path / "run", progress=False)
    scores = rank(run, towers=("vision", "vlm", "expert"), permutations=2)
    assert [len(scores.ranked(tower)) for tower in ("vision", "vlm", "expert")] == [12, 56, 64]
