"""tiny-pi0: transformers' `PI0ForConditionalGeneration` at a size that two CPU cores can pretrain and steer.

8 layers x 8 heads x 16 in both the vlm and the expert with one shared key/value head, as pi0 has 18 x 8 x 256; a SigLIP
of 3 layers x 4 heads on two 64 px cameras; a word-level tokenizer; chunks of 8 actions; 5 flow steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PI0Config, PI0ForConditionalGeneration, PreTrainedTokenizerFast

from testbed.tabletop import ACTION_NAMES, CAMERAS, RATE_HZ, STATE_NAMES
from testbed.tasks import vocabulary

IMAGE_SIZE, PATCH = 64, 8
IMAGE_TOKENS = len(CAMERAS) * (IMAGE_SIZE // PATCH) ** 2
MAX_TOKENS = 12
"""Language tokens a sample, `<bos>` and padding included."""
HORIZON, EXECUTE = 8, 2
SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
IMAGE_TOKEN = "<image>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the testbed's vocabulary; a sample begins with `<bos>`."""
    words = [*SPECIALS.values(), IMAGE_TOKEN, *vocabulary()]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=SPECIALS["unk_token"])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos = SPECIALS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, words.index(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIALS, extra_special_tokens=[IMAGE_TOKEN], padding_side="right"
    )


def build_model(seed: int = 0) -> PI0ForConditionalGeneration:
    """A freshly initialised tiny-pi0. Gemma's default init of 0.02 is too small for this width: 0.07 is used."""
    tokenizer = build_tokenizer()
    gemma = {
        "model_type": "gemma", "hidden_size": 128, "num_hidden_layers": 8, "intermediate_size": 384,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.07,
    }  # fmt: skip
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            "projection_dim": 128,
            "text_config": {**gemma, "vocab_size": len(tokenizer)},
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 96, "intermediate_size": 288, "patch_size": PATCH,
                "image_size": IMAGE_SIZE, "num_hidden_layers": 3, "num_attention_heads": 4, "vision_use_head": False,
            },
        },
        dit_config=gemma,
        chunk_size=HORIZON,
        max_state_dim=len(STATE_NAMES),
        max_action_dim=len(ACTION_NAMES),
        num_inference_steps=5,
    )  # fmt: skip
    torch.manual_seed(seed)
    return PI0ForConditionalGeneration(config)


def tokenize(tokenizer: Any, instructions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask` [sample, image + language tokens]: image tokens first, words padded behind."""
    words = tokenizer(
        list(instructions), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    images = torch.full((len(instructions), IMAGE_TOKENS), tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    ids = torch.cat([images, words.input_ids], 1)
    return ids, torch.cat([torch.ones_like(images), words.attention_mask], 1)


def save_policy(
    model: PI0ForConditionalGeneration,
    directory: Path,
    norm: Mapping[str, tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]],
    card: Mapping[str, Any],
) -> None:
    """Write a pi0 directory: transformers' layout, tokenizer and `robosteer.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    about = {
        "schema": 1,
        "cameras": list(CAMERAS),
        "image_size": IMAGE_SIZE,
        "state_dim": len(STATE_NAMES),
        "action_dim": len(ACTION_NAMES),
        "state_names": list(STATE_NAMES),
        "action_names": list(ACTION_NAMES),
        "max_tokens": MAX_TOKENS,
        "fps": RATE_HZ,
        "execute": EXECUTE,
        "norm": {k: {"mean": m.tolist(), "std": s.tolist()} for k, (m, s) in norm.items()},
        "pretraining": dict(card),
    }
    (directory / "robosteer.json").write_text(json.dumps(about, indent=1) + "\n")
