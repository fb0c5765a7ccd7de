"""The random PI0 of random_policy.py as LeRobot and openpi would have written it: the same weights, other files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_policy import ACTION_DIM, CAMERAS, IMAGE_SIZE, STATE_DIM, build_policy
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PI0ForConditionalGeneration

from interp.policies.pi0_layouts import Layout, from_transformers

VISION = {"vlm_config": {"vision_config": {"num_attention_heads": 2}, "image_token_id": 3}}
"""What the weights of a small vision tower do not say, and the small tokenizer's own image token."""


def state_dict(directory: Path) -> dict[str, Tensor]:
    """As transformers loads it."""
    return PI0ForConditionalGeneration.from_pretrained(directory, local_files_only=True).state_dict()


def write_weights(directory: Path, tensors: dict[str, Tensor], layout: Layout) -> None:
    save_file(
        {from_transformers(name, layout): tensor.clone() for name, tensor in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    """An edit of `edit_weights`."""

    def edit(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return edit


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    """`edit` changes the file's tensors, or answers with others."""
    tensors = load_file(directory / "model.safetensors")
    tensors = edit(tensors) or tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_json(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **fields}))


def unsay(file: Path, *names: str) -> None:
    """Take fields out of a JSON file."""
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in names}))


def as_lerobot(source: Path, target: Path) -> Path:
    """Config, weights, pre-processor and statistics, as LeRobot's `save_pretrained` writes them."""
    target.mkdir()
    about = json.loads((source / "robosteer.json").read_text())
    write_weights(target, state_dict(source), "lerobot")
    image = {"type": "VISUAL", "shape": [3, 48, 64]}
    config = {
        "type": "pi0",
        "input_features": {
            **{f"observation.images.{camera}": image for camera in CAMERAS},
            "observation.state": {"type": "STATE", "shape": [STATE_DIM]},
            "observation.images.empty_camera_0": image,
        },
        "output_features": {"action": {"type": "ACTION", "shape": [ACTION_DIM]}},
        "chunk_size": 6,
        "n_action_steps": 6,
        "max_state_dim": STATE_DIM,
        "max_action_dim": 8,
        "num_inference_steps": 4,
        "min_period": 0.004,
        "max_period": 4.0,
        "image_resolution": [IMAGE_SIZE, IMAGE_SIZE],
        "tokenizer_max_length": 10,
        "dtype": "float32",
    }
    (target / "config.json").write_text(json.dumps(config))
    statistics = {
        f"{key}.{name}": torch.tensor(about["norm"][kind][name])
        for kind, key in (("state", "observation.state"), ("action", "action"))
        for name in ("mean", "std")
    }
    save_file(statistics, target / "norm.safetensors")
    steps = [
        {"registry_name": "pi0_new_line_processor", "config": {}},
        {"registry_name": "tokenizer_processor", "config": {"tokenizer_name": str(source)}},
        {
            "registry_name": "normalizer_processor",
            "config": {"eps": 1e-8, "norm_map": {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}},
            "state_file": "norm.safetensors",
        },
    ]
    (target / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    edit_json(target / "robosteer.json", network=VISION)
    return target


def as_openpi(source: Path, target: Path, converted: bool = True) -> Path:
    """Weights and assets as openpi's converter writes them, with statistics padded to 32; or as its trainer does."""
    target.mkdir()
    about = json.loads((source / "robosteer.json").read_text())
    write_weights(target, state_dict(source), "openpi")
    norm = {}
    for ours, theirs in (("state", "state"), ("action", "actions")):
        padded = {
            name: [*values, *[0.0] * (32 - len(values))] for name, values in about["norm"][ours].items()
        }
        norm[theirs] = {**padded, "q01": [0.0] * 32, "q99": [0.0] * 32}
    assets = target / "assets/physical-intelligence/tiny"
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": norm}))
    if converted:
        config = {
            "action_dim": 32,
            "action_horizon": 6,
            "paligemma_variant": "gemma_2b",
            "action_expert_variant": "gemma_300m",
            "precision": "float32",
        }
        (target / "config.json").write_text(json.dumps(config))
    # openpi fetches PaliGemma's tokenizer from elsewhere, and samples in ten steps.
    edit_json(
        target / "robosteer.json",
        cameras=list(CAMERAS),
        image_size=IMAGE_SIZE,
        max_tokens=10,
        tokenizer=str(source),
        network={**VISION, "num_inference_steps": 4, **({} if converted else {"chunk_size": 6})},
    )
    return target


def in_layout(layout: str, root: Path) -> Path:
    source = build_policy(root / "transformers")
    if layout == "transformers":
        return source
    return (as_lerobot if layout == "lerobot" else as_openpi)(source, root / layout)
