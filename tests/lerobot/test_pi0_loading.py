"""Promises of a pi0 that LeRobot saved and transformers' PI0 loads: the tensors have the names that loading expects,
and the chunk is LeRobot's. The second needs both environments: LeRobot's runs this, the core's runs core_pi0.py.
"""

import json
from pathlib import Path

import torch
from core_environment import run_in_core
from lerobot_kit import as_lerobot_sees, build, observations
from lerobot_reference import LeRobot
from patched_gemma import OWN_GEMMA
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.policies.pi0_layouts import TWIN, layout_of, to_transformers

KEYS = Path(__file__).parent / "pi0_keys.json"


def stored_shapes(directory: Path) -> dict[str, list[int]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def test_the_table_of_names_is_lerobots(directories: dict[str, Path]) -> None:
    """pi0_keys.json is what the core environment's tests know of LeRobot's class."""
    shapes = stored_shapes(directories["pi0"])
    if OWN_GEMMA:  # which no longer ties the words: both are stored
        given, other = TWIN["lerobot"]
        assert shapes.pop(other) == shapes[given]
    assert shapes == json.loads(KEYS.read_text())


def test_every_tensor_of_lerobots_network_has_one_place(directories: dict[str, Path]) -> None:
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy

    names = set(LeRobot(directories["pi0"]).policy.state_dict())
    assert PI0Policy.name == "pi0"
    given, other = TWIN["lerobot"]
    assert {given, other} <= names
    assert layout_of(names) == "lerobot"
    ours = [to_transformers(name) for name in names - {other}]
    assert None not in ours
    assert len(set(ours)) == len(names) - 1


def _noise() -> Tensor:
    return torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(3))


def _as_the_branch_casts(theirs: LeRobot) -> None:
    """LeRobot 0.4's branch of transformers casts after vision's first layers; patched_gemma.py leaves vision be."""
    vision = theirs.policy.model.paligemma_with_expert.paligemma.model.vision_tower.vision_model
    vision.embeddings.register_forward_hook(lambda module, args, out: out.to(torch.bfloat16))


def _lerobots(directory: Path, noise: Tensor, half: bool) -> dict[str, Tensor]:
    theirs = LeRobot(directory)
    if half and not OWN_GEMMA:
        _as_the_branch_casts(theirs)
    rows = [
        theirs.normalised(theirs.pre(as_lerobot_sees(seen)), noise[at : at + 1])
        for at, seen in enumerate(observations(len(noise)))
    ]
    return {
        "normalised": torch.cat(rows).float(),
        "real": torch.cat([theirs.post(row) for row in rows]).float(),
    }


def _ours(directory: Path, noise: Tensor, tmp_path: Path) -> dict[str, Tensor]:
    """By the core environment, which is told the one number that small weights do not say."""
    vision = {"vlm_config": {"vision_config": {"num_attention_heads": 4}}}
    (directory / "robosteer.json").write_text(json.dumps({"network": vision}))
    asked = {"noise": noise}
    for at, seen in enumerate(observations(len(noise))):
        asked |= {f"{at}.{camera}": torch.tensor(image) for camera, image in seen.images.items()}
        asked[f"{at}.state"] = torch.tensor(seen.state)
        asked[f"{at}.task"] = torch.tensor(list(seen.instruction.encode()), dtype=torch.uint8)
    save_file(asked, tmp_path / "asked.safetensors")
    files = [str(directory), str(tmp_path / "asked.safetensors"), str(tmp_path / "answer.safetensors")]
    run_in_core("core_pi0.py", *files)
    return load_file(tmp_path / "answer.safetensors")


def test_chunks_of_transformers_pi0_are_lerobots(tmp_path: Path) -> None:
    """Images that need resizing, tokens, statistics, flow: from the same observations to the same actions."""
    directory, noise = build("pi0", tmp_path / "pi0"), _noise()
    theirs, ours = _lerobots(directory, noise, half=False), _ours(directory, noise, tmp_path)
    for kind, chunk in theirs.items():
        # Float32 sums in another order, over four flow steps of a network made sensitive.
        torch.testing.assert_close(ours[f"float64.{kind}"], chunk, atol=2e-5, rtol=2e-5)
        # transformers embeds the flow time in float32: angles up to 1571 are then off by 1e-4.
        torch.testing.assert_close(ours[f"float32.{kind}"], chunk, atol=5e-4, rtol=5e-4)


def test_half_precision_is_no_further_from_lerobots_than_its_rounding(tmp_path: Path) -> None:
    """Towers in bfloat16; vision's first layers, norms and projections in float32, as LeRobot saves and computes it."""
    half, noise = build("pi0", tmp_path / "half", dtype="bfloat16"), _noise()
    theirs, ours = _lerobots(half, noise, half=True)["normalised"], _ours(half, noise, tmp_path)
    full = build("pi0", tmp_path / "full")
    tensors = {name: tensor.float() for name, tensor in load_file(half / "model.safetensors").items()}
    save_file(tensors, full / "model.safetensors", metadata={"format": "pt"})
    rounding = (_lerobots(full, noise, half=False)["normalised"] - theirs).abs().mean()
    # Two ways of rounding differ by what each is off from the exact answer.
    assert 0 < (ours["float64.normalised"] - theirs).abs().mean() < 2 * rounding
