"""Promises about what numbers are normalised by: never by nothing, and by a data set's own if one asks for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_kit import build
from lerobot_reference import LeRobot
from safetensors.torch import load_file, save_file

import robosteer
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import load_policy

Tensors = dict[str, torch.Tensor]


def prefixed(stats: Tensors) -> Tensors:
    """As the released smolvla_base has them: the actions of three data sets, and no state."""
    robots = ("so100", "so100-blue", "so100-red")
    named = {name: tensor for name, tensor in stats.items() if name.startswith("action.")}
    return {f"{robot}.buffer.{name}": tensor.clone() for robot in robots for name, tensor in named.items()}


def without(start: str) -> Callable[[Tensors], Tensors]:
    return lambda stats: {name: tensor for name, tensor in stats.items() if not name.startswith(start)}


def spoil(directory: Path, change: Callable[[Tensors], Tensors], only: str = "policy_") -> Path:
    """Change the statistics of a policy's processors."""
    files = [file for file in directory.glob(f"{only}*.safetensors") if "normalizer" in file.name]
    assert files
    for file in files:
        save_file(change(load_file(file)), file)
    return directory


@pytest.fixture
def copy(directories: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(directories["smolvla"], tmp_path / "copy")


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        load_policy(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


STATE, ACTION = "observation.state.mean, observation.state.std", "action.mean, action.std"


def test_statistics_of_other_names_are_not_taken_for_none(copy: Path) -> None:
    assert refusal(spoil(copy, prefixed)) == (
        f"policy {copy}: no statistics {STATE}, {ACTION} to normalise by, only those of so100-blue.buffer.action, "
        "so100-red.buffer.action, so100.buffer.action: raw numbers would pass; "
        f"`robosteer demos normalise DEMOS NEW --policy {copy}` writes a copy with those of your data set"
    )


@pytest.mark.parametrize(
    ("change", "only", "says"),
    [
        (
            without("observation.state"),
            "policy_",
            f"no statistics {STATE} to normalise by, only those of action:",
        ),
        (
            without("action"),
            "policy_",
            f"no statistics {ACTION} to normalise by, only those of observation.state:",
        ),
        (without("action"), "policy_preprocessor", f"no statistics {ACTION} to normalise by"),
        (without("action"), "policy_postprocessor", f"no statistics {ACTION} to normalise by"),
        (without("action.std"), "policy_", "no statistics action.std to normalise by"),
        (without(""), "policy_", f"no statistics {STATE}, {ACTION} to normalise by, only those of nothing"),
    ],
)
def test_one_that_is_missing_is_enough(
    copy: Path, change: Callable[[Tensors], Tensors], only: str, says: str
) -> None:
    assert says in refusal(spoil(copy, change, only))


def test_what_is_not_normalised_needs_no_statistics(tmp_path: Path) -> None:
    raw = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "MEAN_STD"}
    path = build("smolvla", tmp_path / "raw", normalization_mapping=raw)
    policy = load_policy(spoil(path, without("observation.state")))
    assert policy.spec.family == "lerobot/smolvla"


def test_a_copy_normalises_by_the_demonstrations(
    directories: dict[str, Path],
    family: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the modes and the words of the old statistics: of the data set's numbers, by numpy."""
    base = spoil(shutil.copytree(directories[family], tmp_path / "base"), prefixed)
    untouched = {file.name: file.read_bytes() for file in base.iterdir()}
    status = robosteer.main(
        ["demos", "normalise", str(dataset), str(tmp_path / "new"), "--policy", str(base)]
    )
    assert (status, capsys.readouterr().err) == (0, "")
    assert {file.name: file.read_bytes() for file in base.iterdir()} == untouched

    policy, demos = load_policy(tmp_path / "new"), Demonstrations.open(dataset)
    normalised = policy.normalise_actions(torch.tensor(demos.action)).double().numpy()
    if family == "pi05":  # the 1st and 99th percentile become -1 and 1
        told = json.loads((dataset / "meta/stats.json").read_text())["action"]
        low, high = np.array(told["q01"]), np.array(told["q99"])
        np.testing.assert_allclose(normalised, 2 * (demos.action - low) / (high - low) - 1, atol=1e-4)
    else:
        np.testing.assert_allclose(normalised.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(normalised.std(axis=0), 1, rtol=1e-4)
    if family in ("smolvla", "pi0"):
        state = policy.batch(list(demos.observations(range(len(demos)))))["state"][:, : policy.spec.state_dim]
        np.testing.assert_allclose(state.mean(dim=0), 0, atol=1e-5)
        np.testing.assert_allclose(state.double().numpy().std(axis=0), 1, rtol=1e-4)
    weights = [load_file(path / "model.safetensors") for path in (base, tmp_path / "new")]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    # LeRobot itself finds in it what we do.
    observation, noise = demos.observation(0), policy.noise(1, seed=1)
    with torch.no_grad():
        ours = policy.sample(policy.batch([observation]), noise)[0]
    torch.testing.assert_close(
        LeRobot(tmp_path / "new").chunk(observation, policy, noise), ours, rtol=1e-3, atol=1e-4
    )


def test_mistakes_are_one_line(
    copy: Path,
    directories: dict[str, Path],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: object) -> str:
        assert robosteer.main(["demos", "normalise", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    new = tmp_path / "new"
    assert f"{copy} exists: give a new directory" in said(dataset, copy, "--policy", copy)
    assert "no LeRobot policy: it has no policy_preprocessor.json" in said(
        dataset, new, "--policy", "tiny-pi0"
    )
    lame = shutil.copytree(dataset, tmp_path / "demos")
    stats = json.loads((lame / "meta/stats.json").read_text())
    few = {name: {k: v for k, v in each.items() if k[0] != "q"} for name, each in stats.items()}
    (lame / "meta/stats.json").write_text(json.dumps(few))
    assert (
        "meta/stats.json has no observation.state.q01, observation.state.q99, action.q01, action.q99"
        in said(lame, new, "--policy", directories["pi05"])
    )
    few["action"] = {name: [*values, 0.0] for name, values in few["action"].items()}
    (lame / "meta/stats.json").write_text(json.dumps(few))
    assert "action has 6 numbers, the policy's has 5" in said(lame, new, "--policy", copy)
    (lame / "meta/stats.json").write_text("{}")
    assert "meta/stats.json is broken: KeyError: 'observation.state'" in said(lame, new, "--policy", copy)
    (lame / "meta/stats.json").unlink()
    assert "meta/stats.json is missing" in said(lame, new, "--policy", copy)
    assert not new.exists()
