"""Finetuning: one loop for every recipe.

Flow matching as in pi0 (Black et al., arXiv 2410.24164): x = t noise + (1 - t) actions, the network predicts
noise - actions, t = 0.001 + 0.999 u with u ~ Beta(1.5, 1), which favours noisy x. A step takes some frames
and several (noise, t) draws for each, over one prefix; actions past the end of an episode do not count.

Every draw is a function of (seed, step) alone. So all arms of a comparison see the same frames and the same
noise, and a training that was killed and resumed ends, on one thread, with the very weights of one that was
not.

What a training leaves in its directory:
    recipe.json              what was asked: recipe, heads, seed, base policy and data by fingerprint
    checkpoint.safetensors   how far it came (steering/checkpoint.py)
    progress.jsonl, status.json
    policy/                  the finetuned policy, merged; load_policy reads it
    summary.json             the same, trainable parameters by group, loss, seconds, peak memory; written last
"""

from __future__ import annotations

import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Policy, load_policy
from interp.runs import read_json, write_json
from interp.scores import HeadScores, now
from steering.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from steering.frames import Examples, TrainingFrames
from steering.headset import HeadSet
from steering.progress import Progress
from steering.recipes import Adaptation, Recipe, adapt, trainable

POLICY, CHECKPOINT, RECIPE, SUMMARY = "policy", "checkpoint.safetensors", "recipe.json", "summary.json"


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is not a number); the last checkpoint is intact."""


@dataclass(frozen=True)
class Finetuned:
    """A finished training. `policy` is the merged policy, loaded from `directory`/policy; `summary` is
    summary.json, which results and export cards quote."""

    policy: Policy
    directory: Path
    heads: HeadSet | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Draw:
    """The randomness of one step: which frames, and the (noise, time) pairs of each, side by side."""

    rows: Int[np.ndarray, " batch"]
    noise: Float[Tensor, "batch_draws horizon max_action_dim"]
    time: Float[Tensor, " batch_draws"]

    @classmethod
    def at(cls, step: int, seed: int, frames: int, recipe: Recipe, horizon: int, dim: int) -> Draw:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(0, frames, recipe.batch)
        n = recipe.batch * recipe.draws
        noise = rng.standard_normal((n, horizon, dim), dtype=np.float32)
        time = 0.001 + 0.999 * rng.random(n) ** (1 / 1.5)  # u^1.5 is Beta(1.5, 1)'s distribution function
        return cls(rows, torch.from_numpy(noise), torch.from_numpy(time.astype(np.float32)))


def finetune(
    policy: Policy,
    demos: Demonstrations,
    recipe: Recipe,
    directory: str | Path,
    *,
    heads: HeadSet | None = None,
    scores: HeadScores | None = None,
    seed: int = 0,
    steps: int | None = None,
    checkpoint_every: int = 50,
    cache_mb: float = 2048,
    progress: bool = True,
) -> Finetuned:
    """Train `policy` on `demos` as `recipe` says; the result is saved, merged, under `directory`.

    The same call on the same directory goes on where it was stopped, and only loads what had finished. Take
    the returned policy: the one handed in is trained in place. `steps` overrides the recipe's. Ctrl-C finishes
    the step, saves, takes the recipe off `policy` again and raises KeyboardInterrupt.
    """
    directory = Path(directory)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    if seed < 0:
        raise UsageError(f"seed {seed}: seeds start at 0")
    demos = demos.for_policy(policy.spec)
    base = {"source": policy.source, "fingerprint": policy.fingerprint}
    adaptation = adapt(policy, recipe, heads, scores, seed)
    try:
        asked = _request(policy, demos, recipe, adaptation, seed)
        _claim(directory, asked)
        if (directory / SUMMARY).exists():
            adaptation.remove()
            return _finished(directory, adaptation)
        if progress:
            tqdm.write(str(adaptation), file=sys.stderr)
        done = _train(policy, demos, recipe, directory, seed, checkpoint_every, cache_mb, progress)
    except BaseException:
        adaptation.remove()
        raise
    adaptation.merge()
    policy.save(directory / POLICY)
    policy.fingerprint = load_policy(directory / POLICY).fingerprint  # no longer the base's
    summary = {
        **asked,
        "policy": policy.fingerprint,
        "base": base,
        "demonstrations": demos.describe(),
        "trainable_parameters": dict(adaptation.groups),
        "loss": done.loss,
        "seconds": round(done.seconds, 3),
        "peak_memory_mb": round(_peak_memory_mb(), 1),
        "created": now(),
    }
    write_json(directory / SUMMARY, summary)
    return _finished(directory, adaptation)


def _finished(directory: Path, adaptation: Adaptation) -> Finetuned:
    return Finetuned(
        load_policy(directory / POLICY), directory, adaptation.heads, read_json(directory / SUMMARY)
    )


def _train(
    policy: Policy,
    demos: Demonstrations,
    recipe: Recipe,
    directory: Path,
    seed: int,
    checkpoint_every: int,
    cache_mb: float,
    show: bool,
) -> Checkpoint:
    """The loop. Leaves the trained parameters in `policy` and in the checkpoint."""
    parameters = trainable(policy)
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    path = directory / CHECKPOINT
    done = load_checkpoint(path, parameters, optimiser) if path.exists() else Checkpoint(0, 0.0, math.nan)
    if done.step == recipe.steps:
        return done
    started = time.perf_counter()
    frames = TrainingFrames(policy, demos, cache_mb, show)
    if show:
        tqdm.write(str(frames), file=sys.stderr)

    with (
        _stop_requests() as stop_requested,
        Progress(
            recipe.steps,
            f"finetune {recipe.name}",
            directory=directory,
            show=show,
            start=done.step,
            seconds=done.seconds + time.perf_counter() - started,
        ) as bar,
    ):
        for step in range(done.step, recipe.steps):
            draw = Draw.at(step, seed, len(frames), recipe, policy.spec.horizon, policy.spec.max_action_dim)
            loss = flow_loss(policy, frames.take(draw.rows), draw, recipe.draws)
            if not math.isfinite(loss.item()):
                kept = f"step {done.step} is kept in {path}" if done.step else "nothing was saved yet"
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step + 1}: training stopped, {kept}; "
                    "try a lower learning rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(recipe, step)
            optimiser.step()
            bar.update(step + 1, loss=loss.item(), lr=learning_rate(recipe, step))

            if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps or stop_requested():
                done = Checkpoint(step + 1, bar.seconds, loss.item())
                save_checkpoint(path, done, parameters, optimiser)
            if stop_requested():
                raise KeyboardInterrupt(
                    f"stopped after step {step + 1} of {recipe.steps}; call it again to resume from {directory}"
                )
    return done


def flow_loss(policy: Policy, examples: Examples, draw: Draw, draws: int) -> Float[Tensor, ""]:
    """Mean squared velocity error over the real actions, in normalised units."""
    device = examples.actions.device
    error = policy.loss(
        examples.batch,
        examples.actions.repeat_interleave(draws, dim=0),
        draw.noise.to(device),
        draw.time.to(device),
        examples.prefix.repeat(draws),
    )
    real = examples.real.repeat_interleave(draws, dim=0)
    return error[real].mean()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine from lr to lr_final * lr."""
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.lr * warm * (recipe.lr_final + (1 - recipe.lr_final) * cosine)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks between steps; a second one acts at once.

    An exception in the middle of an optimiser step would leave half of the weights updated.
    """
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        if len(requests) > 1:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is intact")

    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield lambda: False
        return
    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


# what a training directory says of itself


def _request(
    policy: Policy, demos: Demonstrations, recipe: Recipe, adaptation: Adaptation, seed: int
) -> dict[str, Any]:
    heads = adaptation.heads
    return {
        "schema": 1,
        "policy": policy.fingerprint,
        "data": demos.fingerprint,
        "recipe": recipe.to_json(),
        "heads": [str(head) for head in heads.heads] if heads else None,
        "seed": seed,
    }


def _claim(directory: Path, request: Mapping[str, Any]) -> None:
    """Take a new directory for this training, or go on with one that was made by the same request."""
    path = directory / RECIPE
    if not path.exists():
        write_json(path, request)
        return
    earlier = read_json(path)
    for what, value in request.items():
        if earlier.get(what) != value:
            raise UsageError(
                f"{directory} holds a training with {what} {earlier.get(what)}, not {value}: "
                "give another directory, or the same settings to go on"
            )


def _peak_memory_mb() -> float:
    """Largest resident size of this process so far; kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
