"""Finetuning: one loop for every recipe.

Flow matching as in pi0 (Black et al., arXiv 2410.24164): x = t noise + (1 - t) actions, the network predicts
noise - actions. A step takes some frames and several (noise, t) draws for each, over one prefix; actions past the end
of an episode do not count (unless the recipe says so). All randomness is a function of (seed, step): see draws.py.

Under `accelerate launch` the processes share each step's frames and add their gradients up: the step is that of one
process, to rounding. Only the first process writes; the others read the same directory.

What a training leaves in its directory:
    recipe.json              what was asked: recipe, heads, seed, base policy and data by fingerprint
    lock                     held by the process that trains: a second one is refused
    checkpoint.safetensors   how far it came (steering/checkpoint.py)
    progress.jsonl, status.json
    policy/                  the finetuned policy, merged; load_policy reads it
    summary.json             the same, trainable parameters by group, loss, seconds (the processor's, too), peak memory;
                             written last
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Policy, load_policy
from interp.policies.precision import rounded_off
from interp.rates import say_rate, warn_if_other_rate
from interp.runs import read_json, write_json
from interp.scores import HeadScores, now
from interp.seeds import check_seed
from interp.units import warn_if_unlike_training
from steering.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, steps_in
from steering.draws import Draw
from steering.frames import Examples, TrainingFrames
from steering.headset import HeadSet
from steering.memory import PeakMemory
from steering.progress import Progress
from steering.ranks import Ranks
from steering.recipes import Adaptation, Recipe, adapt
from steering.training_state import TrainingState
from testbed.processes import claimed

POLICY, CHECKPOINT, RECIPE, SUMMARY = "policy", "checkpoint.safetensors", "recipe.json", "summary.json"
LOCK = "lock"
LOST = 0.05
"""Share of a change that rounding may take before it is said."""


class TrainingError(UsageError):
    """Training cannot go on (the loss is not a number, the disk is full); the last checkpoint is intact."""


@dataclass(frozen=True)
class Finetuned:
    """A finished training. `policy` is the merged policy, loaded from `directory`/policy; `summary` is
    summary.json, which results and export cards quote."""

    policy: Policy
    directory: Path
    heads: HeadSet | None
    summary: Mapping[str, Any]


def finetune(
    policy: Policy,
    demos: Demonstrations,
    recipe: Recipe,
    directory: str | Path,
    *,
    heads: HeadSet | None = None,
    scores: HeadScores | None = None,
    others: Sequence[HeadScores] = (),
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
    check_seed(seed)
    if checkpoint_every < 1:
        raise UsageError(f"a checkpoint every {checkpoint_every} steps: it takes at least 1")
    if not cache_mb >= 0:  # nor NaN, which nothing is less than
        raise UsageError(f"a cache of {cache_mb} MB: it takes 0 (none) or more")
    if not len(demos):
        raise UsageError(f"demonstrations {demos.path} have no frames to train on")
    demos = demos.for_policy(policy.spec)
    warn_if_unlike_training(policy, demos)
    warn_if_other_rate(policy.spec, demos)
    ranks = Ranks(next(policy.module.parameters()).device)
    ranks.share(recipe.batch)
    show = progress and ranks.first
    base = {"source": policy.source, "fingerprint": policy.fingerprint}
    adaptation = adapt(policy, recipe, heads, scores, seed, others, demos.fingerprint)
    with ExitStack() as held:
        try:
            with _one_line_of_disk_errors(directory / CHECKPOINT):
                if ranks.first:
                    held.enter_context(claimed(directory / LOCK, _taken(directory)))
                asked = _request(policy, demos, recipe, adaptation, seed)
                _claim(directory, asked, ranks)
                if (directory / SUMMARY).exists():
                    adaptation.remove()
                    return _finished(directory, adaptation)
                if show:
                    tqdm.write(str(adaptation), file=sys.stderr)
                with PeakMemory() as peak:
                    done = _train(
                        policy, demos, recipe, directory, seed, checkpoint_every, cache_mb, show, ranks, peak
                    )
        except BaseException:
            adaptation.remove()
            raise
        lost = _lost_in_merging(adaptation)
        if show and lost:
            tqdm.write(lost, file=sys.stderr)
        adaptation.merge()
        if ranks.first:
            with _one_line_of_disk_errors(directory / CHECKPOINT):
                policy.save(directory / POLICY)
                say_rate(directory / POLICY, demos.fps)
            summary = {
                **asked,
                "policy": load_policy(directory / POLICY).fingerprint,
                "base": base,
                "demonstrations": demos.describe(),
                "trainable_parameters": dict(adaptation.groups),
                "notes": [*adaptation.notes, *filter(None, [lost])],
                "loss": done.loss,
                "seconds": round(done.seconds, 3),
                "processor_seconds": round(done.processor_seconds, 3),
                "processes": ranks.count,
                "peak_memory_mb": round(max(done.peak_memory_mb, peak.megabytes), 1),
                "created": now(),
            }
            write_json(directory / SUMMARY, summary)
        ranks.wait()
    finished = _finished(directory, adaptation)
    policy.fingerprint = finished.policy.fingerprint  # no longer the base's
    return finished


def _lost_in_merging(adaptation: Adaptation) -> str:
    """What is to be said of it, if anything."""
    lost = rounded_off(adaptation.changes())
    return (
        f"merged into weights of less precision than float32, {lost:.0%} of the trained change was rounded off: "
        "a higher learning rate or more steps lose less"
        if lost > LOST
        else ""
    )


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
    ranks: Ranks,
    peak: PeakMemory,
) -> Checkpoint:
    """Leaves the trained parameters in `policy` and in the checkpoint."""
    state = TrainingState.of(policy, recipe)
    kept = state.parameters, state.optimiser, state.average
    path = directory / CHECKPOINT
    done = load_checkpoint(path, *kept) if path.exists() else Checkpoint(0, 0.0, math.nan)
    state.round()
    ranks.wait()  # before anybody writes
    if done.step < recipe.steps:
        started, spent = time.perf_counter(), done.processor_seconds - time.process_time()
        frames = TrainingFrames(policy, demos, recipe, cache_mb, show)
        if show:
            tqdm.write(str(frames), file=sys.stderr)
        with (
            _stop_requests() as stop_requested,
            Progress(
                recipe.steps,
                f"finetune {recipe.name}",
                directory=directory if ranks.first else None,
                show=show,
                start=done.step,
                seconds=done.seconds + time.perf_counter() - started,
            ) as bar,
        ):
            for step in range(done.step, recipe.steps):
                draw = Draw.at(step, seed, len(frames), recipe, policy.spec)
                mine = draw.share(ranks.share(recipe.batch))
                loss = flow_loss(policy, frames.take(mine), mine, of=frames.count(draw))
                state.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                total, stop = ranks.add_up(state.gradients(), loss.item(), stop_requested())
                norm = nn.utils.clip_grad_norm_(state.parameters.values(), recipe.clip).item()
                if not math.isfinite(total + norm):
                    raise _diverged(total, norm, step, path)
                lr = learning_rate(recipe, step)
                state.take_step(lr, recipe.ema, step)
                bar.update(step + 1, loss=total, lr=lr)

                if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps or stop:
                    largest = max(done.peak_memory_mb, peak.so_far())
                    done = Checkpoint(step + 1, bar.seconds, total, largest, spent + time.process_time())
                    if ranks.first:
                        save_checkpoint(path, done, *kept)
                if stop:
                    raise KeyboardInterrupt(
                        f"stopped after step {step + 1} of {recipe.steps}; call it again to resume from {directory}"
                    )
    state.settle()
    return done


def flow_loss(policy: Policy, examples: Examples, draw: Draw, of: int | None = None) -> Float[Tensor, ""]:
    """Mean squared velocity error over the actions that count, in normalised units.

    `of`: how many errors the mean is over, if these examples are only a share of them.
    """
    device = examples.actions.device
    error = policy.loss(
        examples.batch,
        examples.actions.repeat_interleave(draw.draws, dim=0),
        draw.noise.to(device),
        draw.time.to(device),
        examples.prefix,
    )
    counted = error[examples.real.repeat_interleave(draw.draws, dim=0)]
    return counted.mean() if of is None else counted.sum() / of


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up times a cosine that falls from lr at step 0 to lr_final * lr at the end of the training."""
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.lr * warm * (recipe.lr_final + (1 - recipe.lr_final) * cosine)


def _diverged(loss: float, norm: float, step: int, path: Path) -> TrainingError:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    return TrainingError(
        f"{what} at step {step + 1}: training stopped, {_kept(path)}; try a lower learning rate"
    )


@contextmanager
def _one_line_of_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"training stopped: {error}; {_kept(path)}; mend it and call it again to go on"
        ) from error


def _kept(path: Path) -> str:
    return f"step {steps_in(path)} is kept in {path}" if path.exists() else "nothing was saved yet"


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


def _taken(directory: Path) -> UsageError:
    return UsageError(
        f"{directory}: another process trains there: wait for it or stop it, or use another --name"
    )


def _claim(directory: Path, request: Mapping[str, Any], ranks: Ranks) -> None:
    """Take a new directory for this training, or go on with one that was made by the same request."""
    path = directory / RECIPE
    if not path.exists():
        ranks.wait()  # until nobody will take the new file for an earlier training's
        if ranks.first:
            write_json(path, request)
        return
    earlier = read_json(path)
    settings = Recipe.from_json(earlier.get("recipe", {})).to_json()  # with those that came later
    for what, value in request.items():
        had, asked = settings if what == "recipe" else earlier.get(what), value
        if had != asked:
            if what == "recipe":
                had, asked = _differing(settings, value)
            raise UsageError(
                f"{directory} holds a training with {what} {had}, not {asked}: "
                "give another directory, or the same settings to go on"
            )


def _differing(had: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, str]:
    """Of two recipes the settings that are not the same, as a user writes them."""
    names = [name for name in asked if asked[name] != had.get(name)]
    said = [", ".join(f"{name}={of.get(name)}" for name in names) for of in (had, asked)]
    return said[0], said[1]
