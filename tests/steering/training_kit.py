"""What the tests of finetuning share: a small recipe, heads of the random policy, and how to look at the result."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from interp.demos import Demonstrations
from interp.heads import Head
from interp.policies import Policy
from steering.finetune import Finetuned, finetune
from steering.headset import HeadSet
from steering.recipes import Recipe

HEADS = HeadSet((Head("expert", 0, 3), Head("expert", 2, 0)))
SMALL = Recipe.named("aligned", steps=6, batch=4, draws=2, warmup=2)
EXPERT = "paligemma_with_expert.gemma_expert.model.layers"  # in files, transformers keeps LeRobot's names


def run(
    policy: Policy, demos: Demonstrations, directory: Path, recipe: Recipe = SMALL, **options: Any
) -> Finetuned:
    options = {"heads": HEADS, "checkpoint_every": 2, "progress": False, **options}
    return finetune(policy, demos, recipe, directory, **options)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "policy" / "model.safetensors")


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "progress.jsonl").read_text().splitlines()]
