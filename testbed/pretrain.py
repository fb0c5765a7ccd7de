"""Pretrain tiny-pi0: `python -m testbed.pretrain`. Resumable; at most three hours on two cores.

Loss = flow matching (Black et al. 2024, pi0, arXiv 2410.24164) + 0.5 position + 3 referring segmentation. The last two
are read from the vlm's last hidden states by linear heads that are not part of the shipped model: every image token
predicts its share of target, goal and hand, and their mean predicts where target and goal are. Without this grounding
the policy never learns to use the instruction at this size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AttentionInterface, PI0ForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from testbed import TINY_PI0
from testbed.model import HORIZON, IMAGE_TOKENS, build_model, build_tokenizer, save_policy, tokenize
from testbed.pretraining_data import generate

WIDTH, PLACES, PARTS = 128, 5, 3
MIN_STD = 0.01
"""Floor of the normalisation's standard deviation, for axes that the expert never moves."""


@dataclass(frozen=True)
class Settings:
    """All that the result depends on."""

    episodes: int = 5400
    steps: int = 5500
    decay_steps: int = 1500
    """The rate is constant until this many steps before the end, then falls linearly to a fiftieth: so a run can be
    prolonged from any checkpoint before its decay."""
    batch: int = 32
    draws: int = 4
    """(noise, time) draws a prefix."""
    peak_rate: float = 1.0e-3
    warmup: int = 200
    position_weight: float = 0.5
    segmentation_weight: float = 3.0
    ema: float = 0.999
    bfloat16: bool = True
    """Autocast matrix products; parameters and optimiser stay float32."""
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step (counted from 0): warm-up, constant, linear decay."""
        left = (self.steps - step) / self.decay_steps
        return self.peak_rate * max(min(1.0, (step + 1) / self.warmup, left), 0.02)

    def trajectory(self) -> dict[str, Any]:
        """The settings that steps before the decay depend on: what a checkpoint must share to be continued."""
        return {k: v for k, v in asdict(self).items() if k not in ("steps", "decay_steps")}


def batched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as two plain matrix products, all query heads of a shared key/value head stacked into one.

    Same values as `sdpa`; on a CPU with bfloat16 instructions a whole training step takes half as long, since torch's
    flash kernel is slow for heads of 16.
    """
    batch, heads, length, width = query.shape
    stacked = query.reshape(batch * key.shape[1], -1, width)
    scores = torch.bmm(stacked, key.flatten(0, 1).transpose(1, 2)).float() * scaling
    if attention_mask is not None:
        blocked = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill_(~attention_mask, -1e9)
        scores = (scores.view(batch, heads, length, -1) + blocked).view_as(scores)
    out = torch.bmm(torch.softmax(scores, -1).to(value.dtype), value.flatten(0, 1))
    return out.view(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register("batched", batched_attention)
AttentionMaskInterface.register("batched", sdpa_mask)


class Pretraining(nn.Module):
    """The policy with its auxiliary heads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.policy = build_model(seed)
        self.policy.set_attn_implementation("batched")
        self.where = nn.Linear(WIDTH, PLACES)
        self.parts = nn.Linear(WIDTH, PARTS)

    def prefix(self, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Key/value cache and last hidden states of the vlm, [batch, token, width]."""
        model = self.policy.model
        embeds = model.embed_prefix(ids, pixels, torch.ones(pixels.shape[:2], dtype=torch.bool))
        out = model.vlm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(embeds)[:, :, 0],
            use_cache=True,
        )
        return out.past_key_values, out.last_hidden_state


class Frames:
    """All pretraining frames in memory, normalised, sampled by (seed, step) so that resuming repeats nothing."""

    def __init__(self, shards: list[Path]) -> None:
        loaded = [dict(np.load(p)) for p in shards]
        columns = {k: np.concatenate([s.pop(k) for s in loaded]) for k in list(loaded[0])}
        self.images = torch.from_numpy(columns["images"])
        self.labels = torch.from_numpy(columns["labels"])
        acts, episode = columns["acts"], columns["episode"]
        self.acts = torch.from_numpy(acts)
        self.norm = {
            "state": (columns["state"].mean(0), np.maximum(columns["state"].std(0), MIN_STD)),
            "action": (columns["action"][acts].mean(0), np.maximum(columns["action"][acts].std(0), MIN_STD)),
        }
        mean, std = self.norm["state"]
        self.state = torch.from_numpy((columns["state"] - mean) / std).float()
        mean, std = self.norm["action"]
        self.action = torch.from_numpy((columns["action"] - mean) / std).float()
        places = columns["where"]
        self.where = torch.from_numpy((places - places.mean(0)) / places.std(0)).float()
        texts, self.text = np.unique(columns["instruction"], return_inverse=True)
        self.ids, self.mask = tokenize(build_tokenizer(), [str(t) for t in texts])
        ends = np.append(np.flatnonzero(np.diff(episode)), len(episode) - 1)
        self.last = ends[np.searchsorted(ends, np.arange(len(episode)))]

    def __len__(self) -> int:
        return len(self.state)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, torch.Tensor]:
        pick = rng.integers(0, len(self), size)
        chunk = np.minimum(pick[:, None] + np.arange(HORIZON), self.last[pick][:, None])
        pixels = self.images[pick].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        gain = torch.from_numpy(rng.normal(1, 0.1, (size, 1, 1, 1, 1))).float()
        tint = torch.from_numpy(rng.normal(0, 0.05, (size, 1, 3, 1, 1))).float()
        state = (
            self.state[pick] + 0.02 * torch.from_numpy(rng.normal(size=(size, self.state.shape[1]))).float()
        )
        text = self.text[pick]
        return {
            "pixels": pixels * gain + tint,
            "ids": self.ids[text],
            "mask": self.mask[text],
            "state": state,
            "actions": self.action[chunk],
            "acts": self.acts[pick],
            "labels": self.labels[pick].flatten(1, 2).float() / 255,
            "where": self.where[pick],
        }


def loss_of(model: Pretraining, batch: dict[str, torch.Tensor], s: Settings) -> dict[str, torch.Tensor]:
    """The three parts of the loss. The flow part averages over frames that carry actions."""
    cache, hidden = model.prefix(batch["ids"], batch["mask"], batch["pixels"])
    hidden = hidden.float()
    words = batch["mask"][:, IMAGE_TOKENS:, None].float()
    sentence = (hidden[:, IMAGE_TOKENS:] * words).sum(1) / words.sum(1)
    cache.batch_repeat_interleave(s.draws)
    actions, state, mask, acts = (
        batch[k].repeat_interleave(s.draws, 0) for k in ("actions", "state", "mask", "acts")
    )
    time_ = torch.distributions.Beta(1.5, 1.0).sample((len(actions),)) * 0.999 + 0.001
    noise = torch.randn_like(actions)
    mixed = time_[:, None, None] * noise + (1 - time_[:, None, None]) * actions
    velocity = model.policy(
        state=state, noise=mixed, timestep=time_, attention_mask=mask, past_key_values=cache
    ).logits
    error = (velocity.float() - (noise - actions)).square().mean((1, 2))
    return {
        "flow": (error * acts).sum() / acts.sum(),
        "position": (model.where(sentence) - batch["where"]).square().mean(),
        "segmentation": F.binary_cross_entropy_with_logits(
            model.parts(hidden[:, :IMAGE_TOKENS]), batch["labels"]
        ),
    }


class Checkpoint:
    """Everything that the next step depends on, in one safetensors file written by rename."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings

    def save(
        self,
        step: int,
        model: Pretraining,
        average: dict[str, torch.Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        tensors = {f"model.{k}": v for k, v in _state(model).items()} | {
            f"ema.{k}": v for k, v in average.items()
        }
        for i, entry in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": v for k, v in entry.items()}
        temporary = self.path.with_suffix(".tmp")
        about = {"step": str(step), "settings": json.dumps(self.settings.trajectory())}
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=about)
        temporary.replace(self.path)

    def load(
        self, model: Pretraining, average: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer
    ) -> int:
        """Restore in place; returns the number of finished steps (0 without a checkpoint)."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            about = file.metadata()
        if json.loads(about["settings"]) != self.settings.trajectory():
            sys.exit(f"{self.path}: was made with other settings; repeat them or remove the file")
        tensors = load_file(self.path)
        model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, strict=False
        )
        for name in average:
            average[name].copy_(tensors[f"ema.{name}"])
        state = optimiser.state_dict()
        state["state"] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                state["state"].setdefault(int(index), {})[name] = value
        optimiser.load_state_dict(state)
        return int(about["step"])


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name (shared ones once), detached copies."""
    return {k: v.detach().clone() for k, v in model.named_parameters()}


def train(work: Path, settings: Settings, until: int | None = None) -> PI0ForConditionalGeneration:
    """Train from the last checkpoint under `work`; ships the averaged weights. `until` stops early (for tests)."""
    frames = Frames(generate(work / "data", settings.episodes, 64))
    model = Pretraining(settings.seed)
    average = _state(model)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.peak_rate, betas=(0.9, 0.95), weight_decay=1e-4
    )
    checkpoint = Checkpoint(work / "checkpoint.safetensors", settings)
    first = checkpoint.load(model, average, optimiser)
    done, began = first, time.time()
    smooth: dict[str, float] = {}
    log = (work / "log.jsonl").open("a")
    bar = tqdm(
        range(first, settings.steps),
        initial=first,
        total=settings.steps,
        desc="pretraining",
        unit="step",
        mininterval=10,
    )
    for step in bar:
        rate = settings.rate(step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(settings.seed * 1_000_003 + step)
        batch = frames.batch(np.random.default_rng([settings.seed, step]), settings.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            parts = loss_of(model, batch, settings)
        loss = (
            parts["flow"]
            + settings.position_weight * parts["position"]
            + settings.segmentation_weight * parts["segmentation"]
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 1 - decay)
        for name, part in parts.items():
            smooth[name] = 0.99 * smooth.get(name, part.item()) + 0.01 * part.item()
        done = step + 1
        if done % 50 == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in smooth.items()})
            log.write(json.dumps({"step": done, "seconds": round(time.time() - began), **smooth}) + "\n")
            log.flush()
        if done % 250 == 0 or done in (settings.steps, until):
            checkpoint.save(done, model, average, optimiser)
        if done == settings.steps - settings.decay_steps:
            shutil.copy(checkpoint.path, work / f"before-decay-{done}.safetensors")
        if done == until:
            break
    log.close()
    shipped = build_model(settings.seed)
    weights = {k.removeprefix("policy."): v for k, v in average.items() if k.startswith("policy.")}
    missing, unexpected = shipped.load_state_dict(weights, strict=False)
    tied = {k for k in missing if k not in dict(shipped.named_parameters())}
    assert not unexpected
    assert set(missing) == tied
    save_policy(
        shipped.eval(),
        work / "policy",
        frames.norm,
        {**asdict(settings), "finished_steps": done, "frames": len(frames)},
    )
    return shipped


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m testbed.pretrain", description="Pretrain tiny-pi0, resumably."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretrain"), help="data, checkpoints and the result"
    )
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="one is nearly as fast as two"
    )
    parser.add_argument("--episodes", type=int, default=Settings.episodes)
    parser.add_argument(
        "--no-bfloat16", action="store_true", help="for processors without bfloat16 instructions"
    )
    parser.add_argument(
        "--ship", action="store_true", help=f"copy the result to {TINY_PI0.name}/ inside the package"
    )
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(arguments.threads)
    settings = Settings(
        episodes=arguments.episodes, steps=arguments.steps, bfloat16=not arguments.no_bfloat16
    )
    train(arguments.work, settings)
    if arguments.ship:
        shutil.copytree(arguments.work / "policy", TINY_PI0, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
