"""A random PI0, small enough to be built in a second, in the layout of a real one.

Its weights are random but its structure is not: three towers, one KV head, two cameras, padded language, a
head dimension that is not width // heads, and a word-level tokenizer.
"""

import json
from pathlib import Path

import numpy as np
import torch

from interp.policies import Observation

WORDS = ["pick", "up", "the", "red", "blue", "green", "cube", "bowl", "button", "put", "in", "press", "push"]
CAMERAS = ("front", "wrist")
STATE_DIM, ACTION_DIM, IMAGE_SIZE = 8, 7, 32


def build_policy(directory: Path, seed: int = 0, kv_heads: int = 1, heads: int = 4, layers: int = 3) -> Path:
    """Write a random policy directory: 3 layers x 4 heads x 8 in vlm and expert, 2 x 2 x 12 in vision."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PI0Config, PI0ForConditionalGeneration, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<unk>", "<image>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>"
    )
    gemma = {
        "model_type": "gemma",
        "hidden_size": 48,
        "num_hidden_layers": layers,
        "intermediate_size": 64,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "vocab_size": len(vocabulary),
        "initializer_range": 0.2,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": IMAGE_SIZE,
        "vision_use_head": False,
    }
    vlm = {
        "model_type": "paligemma",
        "image_token_id": vocabulary["<image>"],
        "projection_dim": gemma["hidden_size"],
        "text_config": gemma,
        "vision_config": vision,
    }
    config = PI0Config(
        vlm_config=vlm,
        dit_config=dict(gemma),
        chunk_size=6,
        max_state_dim=STATE_DIM,
        max_action_dim=8,
        num_inference_steps=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = PI0ForConditionalGeneration(config)
    module.save_pretrained(directory)
    fast.save_pretrained(directory)
    rng = np.random.default_rng(seed)
    norm = {
        name: {"mean": rng.normal(size=dim).tolist(), "std": rng.uniform(0.5, 2, size=dim).tolist()}
        for name, dim in (("state", STATE_DIM), ("action", ACTION_DIM))
    }
    settings = {
        "schema": 1,
        "cameras": list(CAMERAS),
        "image_size": IMAGE_SIZE,
        "state_dim": STATE_DIM,
        "action_dim": ACTION_DIM,
        "max_tokens": 10,
        "action_names": ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
        "state_names": ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"],
        "fps": 10,
        "execute": 2,
        "norm": norm,
    }
    (directory / "robosteer.json").write_text(json.dumps(settings))
    return directory


def build_half(directory: Path, projections: torch.dtype = torch.float32) -> Path:
    """The same in bfloat16; released policies keep the projections of state, action and time in float32."""
    from safetensors.torch import load_file, save_file

    weights = build_policy(directory) / "model.safetensors"
    tensors = {
        name: tensor.to(
            projections if name.startswith(("embed_action_time.", "action_out_proj.")) else torch.bfloat16
        )
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    return directory


def random_observations(n: int, seed: int = 0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    instructions = ["pick up the red cube", "press the button", "put the blue cube in the bowl"]
    return [
        Observation(
            images={
                camera: rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) for camera in CAMERAS
            },
            state=rng.normal(size=STATE_DIM).astype(np.float32),
            instruction=instructions[i % len(instructions)],
        )
        for i in range(n)
    ]
