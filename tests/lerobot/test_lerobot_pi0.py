"""Promises of transformers' pi0 exported for LeRobot: LeRobot's own code loads it, serves it, and acts as it does.

The export needs transformers 5, so intree_pi0.py runs in the core environment; what loads it here is LeRobot.
"""

import json
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import lerobot.processor
import numpy as np
import patched_gemma
import pytest
import torch
from core_environment import run_in_core
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot_kit import as_lerobot_sees
from lerobot_reference import LeRobot
from patched_gemma import OWN_GEMMA
from policy_server import Server, ask, instruct, running
from safetensors.torch import load_file, load_model
from torch import Tensor

from interp.policies import Observation, load_policy
from interp.policies.pi0_layouts import TWIN

EMBEDS_TIME = import_module(f"lerobot.policies.{'common.vla_utils' if OWN_GEMMA else 'pi0.modeling_pi0'}")
"""Where LeRobot embeds the flow time."""
CLOSE = 1e-5
"""Of the largest action: LeRobot computes angles of up to 1571 of the flow time in float64, transformers in float32."""
SAME = 2e-6
"""Of the largest action, where LeRobot computes them in float32 too: rounding between its code and transformers'."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base-lerobot, lerobot (finetuned), adapter, bare-lerobot, unlike, and what transformers' pi0 does."""
    patched_gemma.install()
    root = tmp_path_factory.mktemp("intree")
    run_in_core("intree_pi0.py", root)
    return root


@pytest.fixture(scope="module")
def expected(exported: Path) -> dict[str, Any]:
    with np.load(exported / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def frames(expected: dict[str, Any], kind: str = "frames") -> list[Observation]:
    n = len(expected["noise"]) if kind == "frames" else 1
    return [
        Observation(
            {camera: expected[f"{kind}/{at}/{camera}"] for camera in ("front", "wrist")},
            expected["state"][at],
            str(expected["instruction"][at]),
        )
        for at in range(n)
    ]


def noise(expected: dict[str, Any], at: int) -> Tensor:
    return torch.from_numpy(expected["noise"][at : at + 1])


def assert_acts(found: Tensor, chunk: np.ndarray, within: float = CLOSE) -> None:
    torch.testing.assert_close(
        found, torch.from_numpy(chunk), rtol=0, atol=within * float(np.abs(chunk).max())
    )


@pytest.mark.parametrize(
    ("directory", "chunks"), [("base-lerobot", "base"), ("lerobot", "tuned"), ("bare-lerobot", "bare")]
)
def test_lerobot_acts_as_the_policy(
    exported: Path,
    expected: dict[str, Any],
    directory: str,
    chunks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finetuned or not, trained with a new line after the instruction or without. Base and finetuned differ."""
    theirs = LeRobot(exported / directory)
    for within in (CLOSE, SAME):
        for at, observation in enumerate(frames(expected)):
            assert_acts(theirs.chunk(observation, None, noise(expected, at)), expected[chunks][at], within)  # type: ignore[arg-type]
        monkeypatch.setattr(EMBEDS_TIME, "get_safe_dtype", lambda dtype, device: torch.float32)
    assert np.abs(expected["base"] - expected["tuned"]).max() > 100 * CLOSE * np.abs(expected["base"]).max()


def test_a_policy_that_acts_in_deltas_has_the_state_added(exported: Path, expected: dict[str, Any]) -> None:
    """By LeRobot from 0.5.1 on; older ones refuse the settings rather than move the robot wrongly."""
    if not hasattr(lerobot.processor, "RelativeActionsProcessorStep"):
        with pytest.raises(Exception, match="use_relative_actions"):
            LeRobot(exported / "deltas-lerobot")
        return
    theirs = LeRobot(exported / "deltas-lerobot")
    for at, observation in enumerate(frames(expected)):
        found = theirs.chunk(observation, None, noise(expected, at))  # type: ignore[arg-type]
        assert_acts(found, expected["deltas"][at])
    states = expected["state"][:, :5] * [1, 0, 1, 1, 0]
    np.testing.assert_allclose(expected["deltas"] - states[:, None], expected["base"], atol=1e-5)
    policy = load_policy(exported / "deltas-lerobot")  # in LeRobot's environment
    with torch.no_grad():
        seen, drawn = frames(expected), torch.cat([noise(expected, at) for at in range(3)])
        ours = policy.sample(policy.batch(seen), drawn)
    for at in range(3):
        assert_acts(ours[at], expected["deltas"][at])


def test_every_tensor_is_in_its_place(exported: Path) -> None:
    """LeRobot's PI0 answers with random weights when names do not fit, and only prints it."""
    module = PI0Policy.from_pretrained(str(exported / "lerobot"))
    stored, own = load_file(exported / "lerobot" / "model.safetensors"), module.state_dict()
    (twin,) = own.keys() - stored.keys()
    assert twin.endswith("language_model.embed_tokens.weight")  # tied to lm_head
    assert stored.keys() <= own.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())
    assert torch.equal(own[twin], stored["model.paligemma_with_expert.paligemma.lm_head.weight"])


def test_the_released_network_has_lerobots_names_and_shapes(exported: Path) -> None:
    """LeRobot builds what its names of variants say; of 3.5 billion parameters, so without memory for them."""
    about = json.loads((exported / "released.json").read_text())
    vlm, expert = about["variants"]
    config = PI0Config(device="cpu", paligemma_variant=vlm, action_expert_variant=expert)
    config.device = "meta"
    with patched_gemma.released_size(), torch.device("meta"):
        theirs = PI0Policy(config)
    shapes = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
    stored, twin = TWIN["lerobot"]
    assert shapes.pop(twin) == shapes[stored]
    assert about["shapes"] == shapes
    assert sum(math.prod(shape) for shape in shapes.values()) == 3_501_372_176


def test_the_files_are_those_that_lerobot_saves(exported: Path, tmp_path: Path) -> None:
    """LeRobot saves again what it has loaded: the same processors, statistics, weights and settings come out."""
    theirs = LeRobot(exported / "lerobot")
    for part in (theirs.policy, theirs.pre, theirs.post):
        part.save_pretrained(tmp_path / "again")
    ours, again = exported / "lerobot", tmp_path / "again"
    assert {file.name for file in again.iterdir()} <= {file.name for file in ours.iterdir()}
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads((ours / name).read_text()) == json.loads((again / name).read_text())
    for file in again.glob("*.safetensors"):
        one, other = load_file(ours / file.name), load_file(file)
        if OWN_GEMMA and file.name == "model.safetensors":  # which stores the words twice
            stored, twin = TWIN["lerobot"]
            assert torch.equal(other.pop(twin), one[stored])
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    settings, saved = (json.loads((each / "config.json").read_text()) for each in (ours, again))
    assert settings.pop("device") is None  # LeRobot chooses
    assert {name: saved[name] for name in settings} == settings


def test_openpis_weights_load_as_openpi_loads_them(exported: Path, expected: dict[str, Any]) -> None:
    """With safetensors' `load_model`, strictly, into LeRobot's copy of openpi's PI0Pytorch."""
    theirs = LeRobot(exported / "base-lerobot")
    if OWN_GEMMA:  # openpi's ties the words, as LeRobot's copy of it did before 0.5
        paligemma = theirs.policy.model.paligemma_with_expert.paligemma
        paligemma.model.language_model.embed_tokens.weight = paligemma.lm_head.weight
    load_model(theirs.policy.model, exported / "openpi" / "model.safetensors")
    stats = json.loads((exported / "openpi/assets/me/robot/norm_stats.json").read_text())["norm_stats"]
    state, actions = ({name: np.array(v) for name, v in stats[kind].items()} for kind in ("state", "actions"))
    for at, observation in enumerate(frames(expected)):
        processed = theirs.pre(as_lerobot_sees(observation))
        # openpi/transforms.py, Normalize and Unnormalize
        normalised = (observation.state - state["mean"]) / (state["std"] + 1e-6)
        processed["observation.state"] = torch.from_numpy(normalised).float()[None]
        chunk = theirs.normalised(processed, noise(expected, at))[0]
        real = chunk.numpy() * (actions["std"] + 1e-6) + actions["mean"]
        assert_acts(torch.from_numpy(real).float(), expected["tuned"][at])


def test_cameras_of_another_size_go_through_lerobots_resizing(
    exported: Path, expected: dict[str, Any]
) -> None:
    """A policy trained on LeRobot's resizing acts the same on them."""
    (observation,) = frames(expected, "larger")
    found = LeRobot(exported / "lerobot").chunk(observation, None, noise(expected, 0))  # type: ignore[arg-type]
    assert_acts(found, expected["larger"][0])


def make(directory: Path, dataset: Path) -> Any:
    """As lerobot-train and lerobot-eval load a policy."""
    config = PreTrainedConfig.from_pretrained(str(directory))
    config.pretrained_path = directory
    return make_policy(config, ds_meta=LeRobotDatasetMetadata("local/tiny", root=dataset)).eval()


@pytest.mark.parametrize("directory", ["lerobot", "adapter"])
def test_make_policy_loads_the_policy_and_the_adapter(
    exported: Path, expected: dict[str, Any], dataset: Path, directory: str
) -> None:
    """The adapter is put on the exported base by PEFT, under LeRobot's names."""
    theirs = LeRobot(exported / "base-lerobot").running(make(exported / directory, dataset))
    for at, observation in enumerate(frames(expected)):
        assert_acts(theirs.chunk(observation, None, noise(expected, at)), expected["tuned"][at])  # type: ignore[arg-type]


@pytest.mark.parametrize("directory", ["lerobot", "adapter"])
def test_what_the_card_says_runs(exported: Path, dataset: Path, directory: str) -> None:
    card = (exported / directory / "README.md").read_text()
    code = (
        card.partition("```python\n")[2]
        .partition("```")[0]
        .replace("this/directory", str(exported / directory))
    )
    known: dict[str, Any] = {"dataset": LeRobotDataset("local/tiny", root=dataset)}
    exec(code, known)
    assert known["policy"].config.type == "pi0"


def test_no_tensor_of_the_adapter_is_left_over(exported: Path, dataset: Path) -> None:
    adapted = make(exported / "adapter", dataset)
    stored, own = load_file(exported / "adapter" / "adapter_model.safetensors"), adapted.state_dict()
    for name, tensor in stored.items():
        head, _, last = name.rpartition(".")
        inside = f"{head}.default.{last}" if ".lora_" in name else f"{head}.modules_to_save.default.{last}"
        assert torch.equal(own[inside], tensor)
    trained = {name for name in own if ".lora_" in name or ".modules_to_save." in name}
    assert len(trained) == len(stored)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as found:
        yield found


def test_the_policy_server_serves_it(exported: Path, expected: dict[str, Any], server: Server) -> None:
    observation = frames(expected)[0]
    chunk = expected["tuned"][0]
    instruct(server, "pi0", exported / "lerobot", observation, len(chunk))
    assert_acts(ask(server, observation, noise(expected, 0)), chunk)


def test_robosteer_steers_it_in_lerobots_environment(exported: Path, expected: dict[str, Any]) -> None:
    policy = load_policy(exported / "lerobot")
    assert policy.spec.family == "lerobot/pi0"
    with torch.no_grad():
        found = policy.sample(policy.batch(frames(expected)[:1]), noise(expected, 0))
    assert_acts(found[0], expected["tuned"][0])


def test_a_network_that_lerobot_does_not_build_is_refused_by_it(exported: Path) -> None:
    """Rather than run with random weights, which is what LeRobot does under a name that it knows."""
    with pytest.raises(Exception, match="PI0Config") as raised:
        PI0Policy.from_pretrained(str(exported / "unlike"))
    assert "Invalid paligemma_variant: gemma-48x3x64x8x1x16" in str(raised.value.__cause__)
    card = json.loads((exported / "unlike" / "card.json").read_text())
    assert "LeRobot cannot build this network" in card["notes"][0]
