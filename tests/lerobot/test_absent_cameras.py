"""Promises of cameras that a policy's configuration lists and the robot lacks: robosteer.json says which it has, and
the policy acts as LeRobot's own does on a robot without them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_kit import FAMILIES, HEIGHT, WIDTH, build, features
from lerobot_reference import LeRobot

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Observation, load_policy
from interp.policies.lerobot.statistics import with_statistics
from steering.export import export_job
from steering.finetune import finetune
from steering.recipes import Recipe


@pytest.fixture(scope="module", params=[*FAMILIES, "smolvla that masks"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a third camera, between the two that the robot has. Do not write into it."""
    family, _, masks = request.param.partition(" ")
    inputs, _ = features()
    front, wrist, state = inputs.items()
    third = "observation.images.side", PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
    changes = {"empty_cameras": 1} if masks else {}
    where = tmp_path_factory.mktemp("three") / family
    build(family, where, input_features=dict([front, third, wrist, state]), **changes)
    (where / "robosteer.json").write_text(json.dumps({"cameras": ["front", "wrist"]}))
    return where


def test_the_policy_acts_as_lerobots_does_without_them(directory: Path, seen: list[Observation]) -> None:
    policy, theirs = load_policy(directory), LeRobot(directory)
    assert policy.spec.cameras == ("front", "wrist")
    assert "image/side" not in policy.spec.spans
    for observation in seen:
        noise = policy.noise(1, seed=4)
        with torch.no_grad():
            ours = policy.sample(policy.batch([observation]), noise)[0]
            found = theirs.chunk(observation, policy, noise)
        # Masked tokens are left out here: the same sums in another order.
        torch.testing.assert_close(ours, found, atol=2e-5, rtol=1e-3)
        black = replace(observation, images={**observation.images, "side": 0 * observation.images["front"]})
        # An absent camera is not a black one.
        assert (theirs.chunk(black, policy, noise) - found).abs().max() > 1e-3


def test_what_is_saved_and_exported_has_the_same_cameras(
    directory: Path, demos: Demonstrations, dataset: Path, tmp_path: Path
) -> None:
    policy = load_policy(directory)
    policy.save(tmp_path / "saved")
    assert load_policy(tmp_path / "saved").fingerprint == policy.fingerprint
    with_statistics(directory, dataset, tmp_path / "normalised")
    assert load_policy(tmp_path / "normalised").spec.cameras == ("front", "wrist")
    if policy.spec.family == "lerobot/smolvla":
        recipe = Recipe.named("lora", steps=1, batch=2, draws=1)
        finetune(policy, demos, recipe, tmp_path / "job", progress=False)
        for form in ("merged", "peft"):
            export_job(tmp_path / "job", tmp_path / form, demos, form=form)
            config = json.loads((tmp_path / form / "config.json").read_text())
            assert "observation.images.side" in config["input_features"]
        assert load_policy(tmp_path / "merged").spec.cameras == ("front", "wrist")


def test_a_robot_of_fewer_cameras_has_another_policy(directory: Path, tmp_path: Path) -> None:
    """Captured runs and trainings of the one are not the other's."""
    of_two = load_policy(directory)
    of_two.save(tmp_path / "three")
    (tmp_path / "three/robosteer.json").unlink()
    of_three = load_policy(tmp_path / "three")
    assert of_three.spec.cameras == ("front", "side", "wrist")
    assert of_three.fingerprint != of_two.fingerprint


def test_without_the_file_the_error_names_it(
    directory: Path, seen: list[Observation], demos: Demonstrations, tmp_path: Path
) -> None:
    load_policy(directory).save(tmp_path / "three")
    (tmp_path / "three/robosteer.json").unlink()
    policy = load_policy(tmp_path / "three")
    advice = r'if the robot has no other, write \{"cameras": \["front", "wrist"\]\} into robosteer.json'
    with pytest.raises(UsageError, match=f"lacks camera 'side'.*{advice}"):
        policy.batch(seen)
    with pytest.raises(UsageError, match=f"lack camera 'side'.*{advice}"):
        demos.for_policy(policy.spec)


@pytest.mark.parametrize(
    ("cameras", "said"),
    [
        (["front", "hand"], r"'hand' is none of the policy's \(front, wrist\)"),
        ([], "at least one"),
        ("front", "must be a list of names"),
    ],
)
def test_what_the_file_gets_wrong(
    directories: dict[str, Path], tmp_path: Path, cameras: object, said: str
) -> None:
    load_policy(directories["smolvla"]).save(tmp_path / "policy")
    (tmp_path / "policy/robosteer.json").write_text(json.dumps({"cameras": cameras}))
    with pytest.raises(UsageError, match=said) as error:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(error.value)
