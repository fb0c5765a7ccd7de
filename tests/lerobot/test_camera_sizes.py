"""Promises of cameras whose images have not the sizes of config.json: LeRobot's policy server stretches them to those
sizes, so an export names the cameras' own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_kit import FAMILIES, HEIGHT, HORIZON, WIDTH, build, features
from policy_server import ask, instruct, running

from interp.policies import Observation, load_policy
from steering.export import export

BASE = {"base": {"source": "random", "fingerprint": "smolvla-base"}}


@pytest.fixture(params=FAMILIES)
def squares(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A policy whose config.json has square images, as smolvla_base's."""
    inputs, _ = features()
    square = PolicyFeature(FeatureType.VISUAL, (3, 16, 16))
    given = {name: square if "images" in name else feature for name, feature in inputs.items()}
    return build(request.param, tmp_path / request.param, input_features=given)


def test_the_policy_server_serves_an_export_as_it_was_trained(
    squares: Path, seen: list[Observation], tmp_path: Path
) -> None:
    policy = load_policy(squares)
    if squares.name == "smolvla":
        notes = export(policy, tmp_path / "out", seen, BASE).notes
    else:  # as export does; in a fresh process, PI0's classes would have their real size
        policy.save(tmp_path / "out")
        notes = policy.fit_cameras(tmp_path / "out", seen)
    shapes = {
        name: feature["shape"]
        for name, feature in json.loads((tmp_path / "out/config.json").read_text())["input_features"].items()
    }
    assert shapes["observation.images.front"] == shapes["observation.images.wrist"] == [3, HEIGHT, WIDTH]
    assert shapes["observation.state"] == [6]
    assert any(f"front {HEIGHT} x {WIDTH}, wrist" in note for note in notes)
    if squares.name == "xvla":  # LeRobot 0.4 does not serve it
        return
    noise = policy.noise(1, seed=7)
    with torch.no_grad():
        ours = policy.sample(policy.batch(seen[:1]), noise)[0]
    with running(tmp_path) as server:
        instruct(server, squares.name, tmp_path / "out", seen[0], HORIZON)
        torch.testing.assert_close(ask(server, seen[0], noise), ours, atol=2e-5, rtol=1e-3)
        instruct(server, squares.name, squares, seen[0], HORIZON)
        assert (ask(server, seen[0], noise) - ours).abs().max() > 1e-3


def test_sizes_that_are_right_stay_and_are_no_news(
    directories: dict[str, Path], seen: list[Observation], tmp_path: Path
) -> None:
    policy = load_policy(directories["smolvla"])
    done = export(policy, tmp_path / "out", seen, BASE)
    assert not any("sizes" in note for note in done.notes)
    assert done.fingerprint == policy.fingerprint


def test_a_network_without_a_letterbox_keeps_its_square(tmp_path: Path, seen: list[Observation]) -> None:
    """X-VLA's, if it is not told to resize: its config.json is all that says what it sees."""
    inputs, _ = features()
    square = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
    given = {name: square if "images" in name else feature for name, feature in inputs.items()}
    source = build("xvla", tmp_path / "xvla", input_features=given, resize_imgs_with_padding=None)
    policy = load_policy(source)
    image = np.zeros((32, 32, 3), np.uint8)
    fitting = [replace(each, images=dict.fromkeys(each.images, image)) for each in seen]
    policy.save(tmp_path / "saved")
    assert policy.fit_cameras(tmp_path / "saved", seen) == ()
    assert load_policy(tmp_path / "saved").fingerprint == policy.fingerprint
    assert policy.batch(fitting)["pixel_values"].shape[-2:] == (32, 32)
