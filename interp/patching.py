"""Activation patching: which heads carry the difference between two observations into the action.

Two observations of a pair, clean and corrupt, differ in one thing and are answered with the same noise. The run of one
of them, the base, is repeated with z of a head taken from the run of the other, the source:

denoising  base corrupt, source clean: is the head enough to bring the clean action back? (sufficient)
noising    base clean, source corrupt: is the head enough to spoil it? (necessary)

With D = source's action chunk - base's, the total effect, and P = patched chunk - base's, in normalised units:

    NIE / TE = <P, D> / <D, D>        0: the patch does nothing; 1: it does all; negative: it pushes the other way

summed over steps and dimensions of the chunk. Over several pairs numerators and denominators are summed first, so a
pair counts by the size of its effect, and a pair without effect cannot blow up the mean. A single dimension has the
same ratio over its own components alone.

Source: Vig et al. (arXiv 2004.12265); Zhang & Nanda (arXiv 2309.16042) on the choice of direction and metric.
Axes: edit, pair, action; see sweep.py for how a sweep runs and what it recomputes.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.assembly import Interval, bootstrap, grid_of, resumable, spread, tower_scores
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.edits import NOTHING, Edit, Values, check_edits, single, z_values
from interp.errors import UsageError
from interp.noise import keyed_noise
from interp.policies.protocol import Batch, Observation, Policy
from interp.scores import HeadScores, TowerScores
from interp.seeds import check_seed
from interp.sweep import BUDGET, Stage

Direction = Literal["denoising", "noising"]
UNITS = "share of the total effect (NIE / TE)"
_ROUNDING = 1e-6
"""A difference of two action chunks whose length, the root of <D, D>, is below this is rounding."""


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt observations. Pairs of one `group` (an episode) are resampled together."""

    clean: tuple[Observation, ...]
    corrupt: tuple[Observation, ...]
    group: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.clean or len(self.clean) != len(self.corrupt):
            raise UsageError(
                f"{len(self.clean)} clean and {len(self.corrupt)} corrupt observations: "
                "patching needs pairs, at least one"
            )
        if self.group and len(self.group) != len(self.clean):
            raise UsageError(f"{len(self.group)} groups for {len(self.clean)} pairs: give one a pair")

    @classmethod
    def of_frames(cls, policy: Policy, demos: Demonstrations, n: int, seed: int = 0) -> "Pairs":
        """Frames of the demonstrations, each with the frame of another episode at the same part of its way: one with
        the same words, or else as many tokens, for the vlm's positions correspond only then. Frames that no other
        matches are left out, unless none is matched.

        What differs is whatever differs between episodes: for one thing at a time take factor pairs (interp/factors).
        """
        if n < 1 or len(demos.episodes) < 2:
            raise UsageError(
                f"{n} pairs of {len(demos.episodes)} episodes: pairs need at least two episodes, and n >= 1"
            )
        check_seed(seed)
        length = _prompt_length_of_frames(policy, demos)
        frames = np.flatnonzero(_have_partners(demos, length))
        if not len(frames):
            frames = np.arange(len(demos))
        rng, clean, corrupt = np.random.default_rng(seed), [], []
        for frame in frames[spread(len(frames), n)].tolist():
            others = _elsewhere(demos, frame)
            same = [other for other in others if demos.instruction(other) == demos.instruction(frame)]
            chosen = same or [other for other in others if length[other] == length[frame]] or others
            clean.append(frame)
            corrupt.append(chosen[int(rng.integers(len(chosen)))])
        group = tuple(demos.episodes[int(demos.episode_of[frame])].index for frame in clean)
        return cls(tuple(demos.observations(clean)), tuple(demos.observations(corrupt)), group)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def groups(self) -> np.ndarray:
        return np.array(self.group or range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for observation in (*self.clean, *self.corrupt):
            for camera, image in sorted(observation.images.items()):
                digest.update(f"{camera} {image.shape}".encode() + np.ascontiguousarray(image).tobytes())
            digest.update(
                np.asarray(observation.state, np.float32).tobytes() + observation.instruction.encode()
            )
        return f"pairs-{digest.hexdigest()[:16]}"

    def blocks(self, size: int) -> list[list[int]]:
        return [list(range(at, min(at + size, len(self)))) for at in range(0, len(self), size)]


def prompt_lengths(policy: Policy, observations: Sequence[Observation]) -> list[int]:
    """Language tokens of every observation's prompt, padding apart."""
    language = policy.spec.span("language").slice
    return [int(n) for n in policy.batch(observations)["attention_mask"][:, language].sum(dim=1)]


def _prompt_length_of_frames(policy: Policy, demos: Demonstrations) -> Int[np.ndarray, " frame"]:
    tasks, task = np.unique(demos.task, return_inverse=True)
    example = demos.observation(0)
    told = [replace(example, instruction=demos.instructions[each]) for each in tasks]
    return np.array(prompt_lengths(policy, told))[task]


def _elsewhere(demos: Demonstrations, frame: int) -> list[int]:
    """Of every other episode, the frame at the same part of its way."""
    own = demos.episodes[int(demos.episode_of[frame])]
    part = (frame - own.start) / max(1, len(own) - 1)
    return [other.start + round(part * (len(other) - 1)) for other in demos.episodes if other is not own]


def _have_partners(demos: Demonstrations, length: Int[np.ndarray, " frame"]) -> Bool[np.ndarray, " frame"]:
    """Which frames have one, among those of `_elsewhere`, whose prompt is as long. For all frames at once."""
    last = np.array([len(episode) - 1 for episode in demos.episodes])[demos.episode_of]
    part = demos.frame_of / np.maximum(1, last)
    found = np.zeros(len(demos), dtype=bool)
    for place, other in enumerate(demos.episodes):
        at = other.start + np.rint(part * (len(other) - 1)).astype(int)
        found |= (demos.episode_of != place) & (length[at] == length)
    return found


@dataclass(frozen=True)
class Sides:
    """Some pairs, ready for the network. The same noise answers both sides, seeded by the pair's place."""

    base: Batch
    source: Batch
    noise: Float[Tensor, "pair horizon max_action_dim"]

    @classmethod
    def of(
        cls, policy: Policy, pairs: Pairs, block: Sequence[int], direction: Direction, seed: int
    ) -> "Sides":
        if direction not in ("denoising", "noising"):
            raise UsageError(f"unknown direction {direction!r}: known are denoising, noising")
        clean, corrupt = (
            policy.batch([side[pair] for pair in block]) for side in (pairs.clean, pairs.corrupt)
        )
        base, source = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
        return cls(base, source, torch.cat([keyed_noise(policy, seed, pair) for pair in block]))

    def source_run(
        self, policy: Policy, towers: Iterable[str]
    ) -> tuple[Float[Tensor, "pair horizon action"], Values]:
        """The source's normalised action chunk, and its z."""
        actions: list[Tensor] = []
        values = z_values(policy, towers, lambda: actions.append(policy.denoise(self.source, self.noise)))
        return actions[0][..., : policy.spec.action_dim], values

    def check_aligned(self, policy: Policy, edits: Iterable[Edit]) -> None:
        """Language tokens of the vlm stand in for each other only if the prompts are equally long."""
        rows = (self.base["attention_mask"] != self.source["attention_mask"]).any(dim=1).nonzero()
        language = (
            edit
            for edit in edits
            if any(head.tower == "vlm" for head in edit.heads)
            and (edit.span is None or not edit.span.startswith("image/"))
            and (edit.position is None or edit.position >= policy.spec.span("language").start)
        )
        if len(rows) and next(language, None) is not None:
            clean, corrupt = (
                int(side["attention_mask"][rows[0, 0]].sum()) for side in (self.source, self.base)
            )
            raise UsageError(
                f"the prompts of a pair differ in length ({clean} and {corrupt} tokens with images), so vlm positions "
                "do not correspond: patch an image span or another tower, or use prompts of one length"
            )


def check_effect(total: Float[np.ndarray, "pair ..."]) -> None:
    """There must be a total effect to have a share of. `total` is <D, D>, whole or by action dimension."""
    if np.sqrt(total.sum() / len(total)) < _ROUNDING:
        raise UsageError(
            "clean and corrupt observations are answered with the same actions: there is no effect to explain"
        )


@dataclass(frozen=True)
class Patched:
    """What every edit did to every pair. Everything else is derived from the projections."""

    edits: tuple[Edit, ...]
    indirect: Float[np.ndarray, "edit pair action"]
    """<P, D> by action dimension, summed over steps."""
    total: Float[np.ndarray, "pair action"]
    """<D, D> by action dimension."""

    def __post_init__(self) -> None:
        check_effect(self.total)

    @property
    def effect(self) -> Float[np.ndarray, " edit"]:
        """NIE / TE over all pairs."""
        return self.indirect.sum(axis=(1, 2)) / self.total.sum()

    @property
    def by_dimension(self) -> Float[np.ndarray, "edit action"]:
        """NIE / TE within each action dimension; NaN where the pairs do not differ."""
        total = self.total.sum(axis=0)
        silent = np.sqrt(total / len(self.total)) < _ROUNDING
        return self.indirect.sum(axis=1) / np.where(silent, np.nan, total)

    @property
    def by_pair(self) -> Float[np.ndarray, "edit pair"]:
        total = self.total.sum(axis=1)
        return self.indirect.sum(axis=2) / np.where(np.sqrt(total) < _ROUNDING, np.nan, total)

    def interval(self, group: Sequence[int] | np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
        """95 % of the effect over resampled groups of pairs."""
        numerator, denominator = self.indirect.sum(axis=2), self.total.sum(axis=1)
        return bootstrap(numerator, denominator, np.asarray(group), resamples, seed)


def patch(
    policy: Policy,
    pairs: Pairs,
    edits: Sequence[Edit],
    *,
    direction: Direction = "denoising",
    seed: int = 0,
    block: int = 4,
    budget: int = BUDGET,
    directory: str | Path | None = None,
    progress: bool = False,
) -> Patched:
    """The one primitive: the effect of every edit, exactly. `edits.single`, `at_positions` and `at_steps` make edits.

    `block` pairs go through together. With a directory an interrupted sweep resumes, with identical numbers.
    """
    check_edits(policy, edits)
    towers = sorted({head.tower for edit in edits for head in edit.heads})

    def compute(block: Sequence[int]) -> Float[np.ndarray, "row pair action"]:
        sides = Sides.of(policy, pairs, block, direction, seed)
        sides.check_aligned(policy, edits)
        target, values = sides.source_run(policy, towers)
        out = exactly(Stage(policy, sides.base, budget).denoise(sides.noise, [NOTHING, *edits], values))
        difference = exactly(target) - out[0]
        indirect = einsum(out[1:] - out[0], difference, "edit pair h a, pair h a -> edit pair a")
        total = einsum(difference, difference, "pair h a, pair h a -> pair a")
        return torch.cat([indirect, total[None]]).numpy()

    found = resumable(
        None if directory is None else Path(directory),
        _plan(policy, pairs, edits, direction, seed, block, budget),
        pairs.blocks(block),
        compute,
        desc=f"patching {direction}",
        progress=progress,
    )
    rows = np.concatenate(found, axis=1)
    return Patched(tuple(edits), rows[:-1], rows[-1])


def patch_heads(
    policy: Policy,
    pairs: Pairs,
    *,
    towers: Sequence[str] = ("expert",),
    span: str | None = None,
    position: int | None = None,
    step: int | None = None,
    direction: Direction = "denoising",
    data: str | None = None,
    factor: str | None = None,
    resamples: int = 1000,
    directory: str | Path | None = None,
    **options: Any,
) -> HeadScores:
    """NIE / TE of every live head alone, everywhere or at one span, position or flow step, as HeadScores.

    `data` is the fingerprint of the demonstrations that the pairs come from; their own by default. Further options are
    `patch`'s.
    """
    edits = {tower: single(policy, tower, span, position, step) for tower in towers}
    every = [edit for own in edits.values() for edit in own]
    check_edits(policy, every)  # all, before the first tower's sweep, which may take long
    for block in pairs.blocks(options.get("block", 4)):
        Sides.of(policy, pairs, block, direction, options.get("seed", 0)).check_aligned(policy, every)
    scored, per_dimension = {}, {}
    for tower, own in edits.items():
        place = None if directory is None else Path(directory) / tower
        found = patch(policy, pairs, own, direction=direction, directory=place, **options)
        heads = [edit.heads[0] for edit in own]
        interval = found.interval(pairs.groups, resamples, options.get("seed", 0))
        scored[tower] = tower_scores(policy, tower, heads, found.effect, interval)
        per_dimension[tower] = {
            name: [
                [round(float(x), 6) if np.isfinite(x) else None for x in row]
                for row in grid_of(policy, tower, heads, values)
            ]
            for name, values in zip(policy.spec.action_names, found.by_dimension.T, strict=True)
        }
    return pair_scores(
        f"patching-{direction}",
        f"activation patching, {direction}",
        scored,
        policy,
        pairs,
        data=data,
        factor=factor,
        direction=direction,
        span=span,
        position=position,
        step=step,
        seed=options.get("seed", 0),
        resamples=resamples,
        by_dimension=per_dimension,
    )


def pair_scores(
    method: str,
    label: str,
    towers: Mapping[str, TowerScores],
    policy: Policy,
    pairs: Pairs,
    *,
    data: str | None,
    factor: str | None,
    **settings: Any,
) -> HeadScores:
    """Shares of the total effect as HeadScores, whatever method found them."""
    return HeadScores(
        method=method,
        label=label,
        units=UNITS,
        higher_is_better=True,
        towers=towers,
        policy=policy.fingerprint,
        data=data or pairs.fingerprint,
        n={"pairs": len(pairs), "groups": len(np.unique(pairs.groups))},
        settings={"pairs": pairs.fingerprint, **settings},
        factor=factor,
    )


def at_positions(edits: Iterable[Edit], positions: Iterable[int]) -> list[Edit]:
    """Every edit at each position alone, positions the fastest: reshape effects to (edit, position)."""
    positions = list(positions)
    return [replace(edit, position=position) for edit in edits for position in positions]


def at_steps(policy: Policy, edits: Iterable[Edit]) -> list[Edit]:
    """Every edit at each flow step alone, steps the fastest: reshape effects to (edit, step)."""
    return [replace(edit, step=step) for edit in edits for step in range(policy.spec.flow_steps)]


def _plan(
    policy: Policy, pairs: Pairs, edits: Sequence[Edit], direction: str, seed: int, block: int, budget: int
) -> dict[str, Any]:
    def written(edit: Edit) -> Iterator[Any]:
        yield from ([str(head) for head in edit.heads], edit.span, edit.position, edit.step)

    return {
        "policy": policy.fingerprint,
        "pairs": pairs.fingerprint,
        "direction": direction,
        "seed": seed,
        "block": block,
        "budget": budget,
        "edits": [list(written(edit)) for edit in edits],
    }
