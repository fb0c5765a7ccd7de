"""What a training step costs: few heads against LoRA on everything. `python benchmarks/training.py`

Arms, all on the same frames and (noise, time) draws, each in a process of its own (for memory):

    aligned       low-rank slices (rank 4) of 16 live heads of the action expert; prefixes computed once
    aligned-full  the same heads, full slices
    all-heads     low-rank slices of every live expert head: the same freezing without a choice
    lora          PEFT LoRA, rank 16, on all linear layers of vlm and expert, as one would write it: vision, vlm and
                  expert run at every step, the prefix repeated for every draw (the published kind of baseline)
    lora-stored   the same LoRA in our loop, which computes what enters the vlm once and shares the prefix among draws

Policies: tiny-pi0 on its demonstrations, and a random PI0 of about 100 M parameters on random frames. A step is
forward, backward, clipping and AdamW. Seconds are the median over steps of the process's CPU time on one thread: on a
busy machine wall time says more about the neighbours. Memory is the largest resident size of the process from its
start, and the part above what it had with libraries and weights loaded.

Writes benchmarks/results/training.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks/results/training.json"
HEADS = 16
LORA = {"lora_targets": "all-linear", "lora_rank": 16}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "aligned": ("aligned", {"form": "low-rank", "rank": 4}),
    "aligned-full": ("aligned", {"form": "full"}),
    "all-heads": ("all-heads", {"form": "low-rank", "rank": 4}),
    "lora": ("lora", LORA),
    "lora-stored": ("lora", LORA),
}
SIZES = {"tiny-pi0": {"batch": 32, "draws": 4}, "large": {"batch": 4, "draws": 4}}
EPISODES = {"tiny-pi0": 20, "large": 2}  # the large policy's prefixes take a third of a second a frame
TARGETS = {"seconds": 5.0, "parameters": 22.0, "memory": 0.6}
"""lora over aligned: at least this much slower, more; aligned over lora: at most this share of the peak memory."""


def measure(size: str, directory: str, demos_path: str, arm: str, steps: int) -> dict[str, Any]:
    """One arm, in this process."""
    import torch

    from interp.demos import Demonstrations
    from interp.policies import load_policy
    from steering.draws import Draw
    from steering.finetune import flow_loss
    from steering.frames import TrainingFrames
    from steering.headset import random_heads
    from steering.memory import PeakMemory
    from steering.recipes import Recipe, adapt, trainable

    torch.set_num_threads(1)
    policy, demos = load_policy(directory), Demonstrations.open(demos_path).take(range(EPISODES[size]))
    with PeakMemory() as loaded:
        pass
    name, settings = ARMS[arm]
    recipe = Recipe.named(name, **settings, **SIZES[size])
    heads = random_heads(policy.spec, HEADS, "expert", seed=0)
    with PeakMemory() as peak:
        adaptation = adapt(policy, recipe, heads)
        parameters = trainable(policy)
        optimiser = torch.optim.AdamW(parameters.values(), lr=recipe.lr, betas=recipe.betas)
        began = time.process_time()
        frames = TrainingFrames(policy, demos, recipe, cache_mb=0 if arm == "lora" else 4096, show=False)
        preparing = time.process_time() - began
        cpu, wall, losses = [], [], []
        for step in range(steps):
            cpu.append(-time.process_time())
            wall.append(-time.perf_counter())
            draw = Draw.at(step, 0, len(frames), recipe, policy.spec)
            examples = frames.take(draw)
            if arm == "lora":
                examples = replace(examples, prefix=examples.prefix.repeat(recipe.draws))
            loss = flow_loss(policy, examples, draw)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
            optimiser.step()
            cpu[-1] += time.process_time()
            wall[-1] += time.perf_counter()
            losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    return {
        "parameters": sum(adaptation.groups.values()),
        "groups": dict(adaptation.groups),
        "seconds": float(np.median(cpu)),
        "fastest": min(cpu),
        "wall_seconds": float(np.median(wall)),
        "preparing_seconds": preparing,
        "steps": steps,
        "peak_mb": peak.megabytes,
        "above_loaded_mb": peak.megabytes - loaded.megabytes,
        "stored_mb": frames.megabytes if frames.cached else 0.0,
        "first_loss": losses[0],
        "policy_parameters": sum(p.numel() for p in policy.module.parameters())
        - sum(p.numel() for p in parameters.values()),
        "frames": len(frames),
    }


def build_large(directory: Path) -> None:
    """A random PI0 of pi0's proportions: the vlm twice as wide as the expert, one K/V head, most weights in FFNs."""
    import torch
    from transformers import PI0Config, PI0ForConditionalGeneration

    from testbed.model import IMAGE_TOKEN, build_tokenizer, save_policy

    tokenizer = build_tokenizer()
    layers, heads = 9, {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64}
    common = {"model_type": "gemma", "num_hidden_layers": layers, "vocab_size": len(tokenizer), **heads}
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 384, "intermediate_size": 1536, "patch_size": 8,
        "image_size": 64, "num_hidden_layers": 6, "num_attention_heads": 6, "vision_use_head": False,
    }  # fmt: skip
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            "projection_dim": 640,
            "text_config": {**common, "hidden_size": 640, "intermediate_size": 4096},
            "vision_config": vision,
        },
        dit_config={**common, "hidden_size": 320, "intermediate_size": 1280},
        chunk_size=8,
        max_state_dim=8,
        max_action_dim=7,
        num_inference_steps=5,
    )
    torch.manual_seed(0)
    module = PI0ForConditionalGeneration(config)
    norm = {k: (np.zeros(d), np.ones(d)) for k, d in (("state", 8), ("action", 7))}
    save_policy(module, directory, norm, {})


def in_a_fresh_process(*words: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--measure", *words]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        sys.exit(child.stderr)
    return dict(json.loads(child.stdout.splitlines()[-1]))


def ratios(arms: dict[str, Any]) -> dict[str, float]:
    ours, lora = arms["aligned"], arms["lora"]
    return {
        "seconds": lora["seconds"] / ours["seconds"],
        "parameters": lora["parameters"] / ours["parameters"],
        "memory": ours["peak_mb"] / lora["peak_mb"],
        "memory_above_loaded": ours["above_loaded_mb"] / lora["above_loaded_mb"],
        "seconds_of_lora_stored": arms["lora-stored"]["seconds"] / ours["seconds"],
        "seconds_of_all_heads": arms["all-heads"]["seconds"] / ours["seconds"],
        "parameters_of_all_heads": arms["all-heads"]["parameters"] / ours["parameters"],
        "memory_of_all_heads": ours["peak_mb"] / arms["all-heads"]["peak_mb"],
    }


def table(found: dict[str, Any]) -> str:
    lines = []
    for size, about in found["policies"].items():
        lines += [
            f"{size}: {about['policy_parameters'] / 1e6:.1f} M parameters, batch {SIZES[size]['batch']} x "
            f"{SIZES[size]['draws']} draws",
            "",
            "| arm | trainable | s a step (CPU) | peak MB | of it above loaded | once, s | stored MB |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {arm} | {m['parameters']:,} | {m['seconds']:.3f} | {m['peak_mb']:.0f} | {m['above_loaded_mb']:.0f} "
            f"| {m['preparing_seconds']:.1f} | {m['stored_mb']:.0f} |"
            for arm, m in about["arms"].items()
        ]
        r = about["ratios"]
        lines += [
            "",
            f"aligned against lora: {r['seconds']:.1f}x faster (target {TARGETS['seconds']:g}x), "
            f"{r['parameters']:.1f}x fewer parameters ({TARGETS['parameters']:g}x), {r['memory']:.2f}x the peak "
            f"memory ({TARGETS['memory']}x; {r['memory_above_loaded']:.2f}x of what the work adds). "
            f"Against lora-stored {r['seconds_of_lora_stored']:.1f}x, against all-heads "
            f"{r['seconds_of_all_heads']:.2f}x faster, {r['parameters_of_all_heads']:.0f}x fewer parameters.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument(
        "--steps", type=int, default=9, help="steps an arm on tiny-pi0; a third on the large policy"
    )
    parser.add_argument("--task", default="cube-in-bowl")
    parser.add_argument("--measure", nargs=5, metavar="WORD", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        *words, steps = arguments.measure
        print(json.dumps(measure(*words, int(steps))))
        return

    from interp.runs import read_json, write_json
    from testbed import TINY_PI0
    from testbed.demos import record

    found: dict[str, Any] = read_json(OUT) if OUT.is_file() else {"policies": {}}
    found |= {
        "command": "python benchmarks/training.py",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "heads": HEADS,
    }
    with tempfile.TemporaryDirectory() as scratch:
        for size in arguments.sizes:
            policy, demos = Path(TINY_PI0), Path(scratch, "demos")
            if not demos.exists():
                record(arguments.task, max(EPISODES.values()), demos, workers=1, progress=False)
            if size == "large":
                policy = Path(scratch, "large")
                build_large(policy)
            steps = arguments.steps if size == "tiny-pi0" else max(3, arguments.steps // 3)
            arms = {}
            for arm in ARMS:
                arms[arm] = in_a_fresh_process(size, str(policy), str(demos), arm, str(steps))
                print(json.dumps({"size": size, "arm": arm, **arms[arm]}), flush=True)
            found["policies"][size] = {
                "policy_parameters": arms["aligned"]["policy_parameters"],
                **SIZES[size],
                "arms": arms,
                "ratios": ratios(arms),
            }
            OUT.parent.mkdir(exist_ok=True)
            write_json(OUT, found)
    print(table(found))


if __name__ == "__main__":
    main()
