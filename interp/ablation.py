"""Causal mediation by ablation: what the policy loses when a head's output is replaced by something uninformative.

z of a head is replaced, at every token and flow step, by

zero       nothing
mean       its mean over a reference set of frames, per position and flow step (padded prompt tokens do not count)
resample   its value in a random other frame, of another episode if there is one

and the effect is measured, with the same noise with and without the ablation, on

action     the action chunk: root mean square, over the steps and dimensions of the chunk, of its change. Normalised
           units: 1 is one standard deviation of the action. Never negative; the higher, the more the head does.
loss       the imitation (flow-matching) loss of the demonstrated chunk: ablated minus intact, mean over valid steps,
           dimensions and draws of (noise, time). Positive: without the head the policy imitates worse.

Mean and resample keep the network on activations that it knows; zero does not (Wang et al., arXiv 2211.00593, app. G).
The effect includes every path from the head to the action (total effect of the head; Vig et al., arXiv 2004.12265).

Axes: edit (a head, or a set of heads ablated together), frame, horizon, action; see sweep.py for how it runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from interp.assembly import Interval, bootstrap, resumable, spread, tower_scores
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.edits import NOTHING, Edit, single, z_values
from interp.errors import UsageError
from interp.heads import Head
from interp.noise import frame_noise
from interp.policies.protocol import Batch, Policy
from interp.scores import HeadScores
from interp.sites import Tap, site_name, tapped
from interp.sweep import BUDGET, Stage

MODES = ("zero", "mean", "resample")
EFFECTS = ("action", "loss")


@dataclass(frozen=True)
class AblationSettings:
    """How heads are ablated and what is measured.

    `frames` frames are taken evenly from the demonstrations (None: all), `block` of them a pass. `draws` is the number
    of (noise, time) draws of the loss, at evenly spaced times; `donors` the number of frames that resampling averages
    the effect over.
    """

    mode: Literal["zero", "mean", "resample"] = "zero"
    effect: Literal["action", "loss"] = "action"
    frames: int | None = 60
    draws: int = 4
    donors: int = 1
    block: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"unknown ablation {self.mode!r}: known are {', '.join(MODES)}")
        if self.effect not in EFFECTS:
            raise UsageError(f"unknown effect {self.effect!r}: known are {', '.join(EFFECTS)}")
        for name in ("frames", "draws", "donors", "block"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def method(self) -> str:
        """`ablation-zero`, and `ablation-zero-loss` for the other effect: also the name of the scores file."""
        return f"ablation-{self.mode}" + ("" if self.effect == "action" else f"-{self.effect}")

    @property
    def units(self) -> str:
        return "normalised action units" if self.effect == "action" else "increase of the flow-matching loss"

    @property
    def repeats(self) -> int:
        return self.donors if self.mode == "resample" else 1


@dataclass(frozen=True)
class SetEffect:
    """A set of heads ablated together, against what its heads do alone.

    `additive` is the effect if single changes simply added up: the root mean square of the sum of the changes of the
    action, or the sum of the increases of the loss. joint > additive: the heads stand in for each other.
    """

    heads: tuple[Head, ...]
    joint: float
    additive: float
    singles: Mapping[Head, float]
    low: float | None
    high: float | None


def ablate(
    policy: Policy,
    demos: Demonstrations,
    settings: AblationSettings | None = None,
    *,
    towers: Sequence[str] = ("expert",),
    reference: Demonstrations | None = None,
    resamples: int = 1000,
    budget: int = BUDGET,
    directory: str | Path | None = None,
    progress: bool = False,
) -> HeadScores:
    """The effect of ablating every live head alone. Mean over frames; 95 % interval over resampled episodes.

    `reference` are the frames behind mean and resample; the demonstrations themselves by default. With a directory an
    interrupted call resumes (keep one directory a run: `run.path / ".sweeps" / settings.method`). Dead heads have no
    score: that ablating them changes not one bit is checked here, and a head that breaks this promise is an error.
    """
    settings = settings or AblationSettings()
    problem = _Problem(policy, demos, settings, reference or demos, budget)
    scored = {}
    for tower in towers:
        edits = single(policy, tower)
        problem.check_dead(tower)
        changes = problem.changes(edits, None if directory is None else Path(directory) / tower, progress)
        effect = problem.effect(changes)
        heads = [edit.heads[0] for edit in edits]
        interval = problem.interval(effect, resamples)
        scored[tower] = tower_scores(policy, tower, heads, effect.mean(axis=1), interval)
    effect_of = "the action chunk" if settings.effect == "action" else "the imitation loss"
    return HeadScores(
        method=settings.method,
        label=f"{settings.mode} ablation, effect on {effect_of}",
        units=settings.units,
        higher_is_better=True,
        towers=scored,
        policy=policy.fingerprint,
        data=demos.fingerprint,
        n={"episodes": len(np.unique(problem.episode)), "frames": len(problem.frames)},
        settings={**asdict(settings), "reference": problem.reference.fingerprint, "resamples": resamples},
    )


def ablated(
    policy: Policy,
    demos: Demonstrations,
    frames: Sequence[int],
    edits: Sequence[Edit],
    settings: AblationSettings | None = None,
    *,
    reference: Demonstrations | None = None,
    budget: int = BUDGET,
) -> Float[np.ndarray, "edit frame repeat horizon action"]:
    """What every edit adds to the action chunk, or to the loss, of the named frames: all that the effects are made of.

    Normalised units, ablated minus intact; `repeat` counts donors. NaN at steps past the end of the episode (loss).
    """
    return _Problem(policy, demos, settings or AblationSettings(), reference or demos, budget).block(
        frames, edits
    )


def ablate_set(
    policy: Policy,
    demos: Demonstrations,
    heads: Sequence[Head],
    settings: AblationSettings | None = None,
    *,
    reference: Demonstrations | None = None,
    resamples: int = 1000,
    budget: int = BUDGET,
    progress: bool = False,
) -> SetEffect:
    """The effect of ablating the heads together, and of each alone. Heads may be of several towers."""
    heads = tuple(policy.spec.check(head) for head in heads)
    if not heads or len(set(heads)) != len(heads):
        raise UsageError(
            f"a set needs at least one head, each once, not {', '.join(map(str, heads)) or 'none'}"
        )
    problem = _Problem(policy, demos, settings or AblationSettings(), reference or demos, budget)
    changes = problem.changes([Edit(heads), *(Edit((head,)) for head in heads)], None, progress)
    effect = problem.effect(changes)
    low, high = problem.interval(effect[:1], resamples)
    return SetEffect(
        heads=heads,
        joint=float(effect[0].mean()),
        additive=float(problem.effect(changes[1:].sum(axis=0, keepdims=True)).mean()),
        singles={head: float(alone) for head, alone in zip(heads, effect[1:].mean(axis=1), strict=True)},
        low=None if low is None else float(low[0]),
        high=None if high is None else float(high[0]),
    )


class _Problem:
    """One policy, the frames on which heads are ablated, and what takes the place of their output."""

    def __init__(
        self,
        policy: Policy,
        demos: Demonstrations,
        settings: AblationSettings,
        reference: Demonstrations,
        budget: int,
    ) -> None:
        self.policy = policy
        self.demos = demos.for_policy(policy.spec)
        self.reference = reference.for_policy(policy.spec)
        self.settings = settings
        self.budget = budget
        self.frames = spread(len(demos), settings.frames)
        self.episode = demos.episode_of[self.frames]
        self._means: dict[str, dict[str, Tensor]] = {}

    def changes(
        self, edits: Sequence[Edit], directory: Path | None, progress: bool
    ) -> Float[np.ndarray, "edit frame repeat horizon action"]:
        """What every edit adds to the action chunk or to the loss; NaN past the end of an episode."""
        blocks = [
            self.frames[start : start + self.settings.block].tolist()
            for start in range(0, len(self.frames), self.settings.block)
        ]
        plan = {
            "settings": asdict(self.settings),
            "policy": self.policy.fingerprint,
            "data": self.demos.fingerprint,
            "reference": self.reference.fingerprint,
            "edits": [[str(head) for head in edit.heads] for edit in edits],
            "budget": self.budget,  # how edits are stacked decides the last bits
        }
        found = resumable(
            directory,
            plan,
            blocks,
            lambda block: self.block(block, edits),
            desc=self.settings.method,
            progress=progress,
        )
        return np.concatenate(found, axis=1)

    def block(
        self, frames: Sequence[int], edits: Sequence[Edit]
    ) -> Float[np.ndarray, "edit frame repeat horizon action"]:
        batch = self._batch(self.demos, frames)
        stage = Stage(self.policy, batch, self.budget)
        towers = sorted({head.tower for edit in edits for head in edit.heads})
        repeats = []
        for at in range(self.settings.repeats):
            values = self._values(frames, towers, at)
            out = self._measured(stage, frames, [NOTHING, *edits], values)
            repeats.append(exactly(out[1:] - out[:1]).numpy())
        return np.stack(repeats, axis=2)

    def effect(
        self, changes: Float[np.ndarray, "edit frame repeat horizon action"]
    ) -> Float[np.ndarray, "edit frame"]:
        if self.settings.effect == "loss":
            return np.nanmean(changes, axis=(2, 3, 4))
        return np.sqrt((changes**2).mean(axis=(3, 4))).mean(axis=2)

    def interval(self, effect: Float[np.ndarray, "edit frame"], resamples: int) -> Interval:
        return bootstrap(effect, np.ones(effect.shape[1]), self.episode, resamples, self.settings.seed)

    def check_dead(self, tower: str) -> None:
        dead = tuple(Head(tower, *pair) for pair in self.policy.spec.tower(tower).dead)
        if not dead:
            return
        frame = self.frames[:1].tolist()
        batch, noise = self._batch(self.demos, frame), self._noise(frame, draws=1)[:, 0]

        def silence(layer: int) -> Tap:
            def zero(z: Tensor, step: int | None) -> Tensor:
                z = z.clone()
                z[..., [head.index for head in dead if head.layer == layer], :] = 0
                return z

            return zero

        # The whole policy, without a sweep's short cuts: runs of the same shape compute the same bits.
        taps = {site_name(tower, h.layer, "attn.hook_z"): silence(h.layer) for h in dead}
        with torch.no_grad():
            intact = self.policy.denoise(batch, noise)
            with tapped(self.policy, taps):
                silenced = self.policy.denoise(batch, noise)
        if not torch.equal(intact, silenced):
            raise RuntimeError(
                f"{len(dead)} heads of {tower} are marked dead, but ablating them changes the action"
            )

    # ---- what is measured

    def _measured(
        self,
        stage: Stage,
        frames: Sequence[int],
        edits: Sequence[Edit],
        values: Mapping[str, Tensor] | None,
    ) -> Float[Tensor, "edit frame horizon action"]:
        """The normalised chunk, or the loss averaged over draws (NaN at steps past the end of the episode)."""
        if self.settings.effect == "action":
            return stage.denoise(self._noise(frames, draws=1)[:, 0], edits, values)
        draws = self.settings.draws
        chunks, over = zip(
            *(self.demos.chunk(frame, self.policy.spec.horizon) for frame in frames), strict=True
        )
        noise = self._noise(frames, draws)
        actions = self.policy.normalise_actions(torch.tensor(np.stack(chunks)).to(noise))
        time = self._times(len(frames)).to(noise.device)
        loss = reduce(
            stage.loss(actions, noise, time, edits, values), "edit frame draw h a -> edit frame h a", "mean"
        )
        return loss.masked_fill(torch.tensor(np.stack(over)).to(loss.device)[None, :, :, None], torch.nan)

    def _times(self, rows: int) -> Float[Tensor, "frame draw"]:
        draws = self.settings.draws
        return repeat((torch.arange(draws) + 0.5) / draws, "draw -> frame draw", frame=rows)

    def _noise(
        self, frames: Sequence[int], draws: int, demos: Demonstrations | None = None
    ) -> Float[Tensor, "frame draw horizon max_action_dim"]:
        noise = frame_noise(self.policy, demos or self.demos, frames, self.settings.seed, draws)
        return rearrange(noise, "(frame draw) h a -> frame draw h a", draw=draws)

    def _batch(self, demos: Demonstrations, frames: Sequence[int]) -> Batch:
        return self.policy.batch(list(demos.observations(frames)))

    # ---- what takes the place of z

    def _values(self, frames: Sequence[int], towers: Sequence[str], at: int) -> Mapping[str, Tensor] | None:
        if self.settings.mode == "zero":
            return None
        if self.settings.mode == "resample":
            return self._z([self._donor(frame, at) for frame in frames], towers)[1]
        for tower in towers:
            if tower not in self._means:
                self._means[tower] = self._mean(tower)
        values = {name: mean for tower in towers for name, mean in self._means[tower].items()}
        # The loss has one mean a draw, because draws are at different times.
        return {
            name: repeat(mean, "step draw ... -> step (frame draw) ...", frame=len(frames))
            if name.startswith("expert.")
            else mean
            for name, mean in values.items()
        }

    def _z(self, frames: Sequence[int], towers: Sequence[str]) -> tuple[Batch, dict[str, Tensor]]:
        """z of reference frames, in the same kind of pass as the one that is measured."""
        batch = self._batch(self.reference, frames)
        draws = 1 if self.settings.effect == "action" else self.settings.draws
        noise = rearrange(self._noise(frames, draws, self.reference), "frame draw h a -> (frame draw) h a")
        if self.settings.effect == "action":
            return batch, z_values(self.policy, towers, lambda: self.policy.denoise(batch, noise))
        chunks = np.stack([self.reference.chunk(frame, self.policy.spec.horizon)[0] for frame in frames])
        actions = self.policy.normalise_actions(torch.tensor(chunks).to(noise)).repeat_interleave(
            draws, dim=0
        )
        time = rearrange(self._times(len(frames)), "frame draw -> (frame draw)").to(noise.device)

        def run() -> None:
            self.policy.loss(batch, actions, noise, time, self.policy.prefix(batch).repeat(draws))

        return batch, z_values(self.policy, towers, run)

    def _mean(self, tower: str) -> dict[str, Tensor]:
        """Expert: [step, draw, pos, head, d_head]; others with a batch axis of 1."""
        frames = spread(len(self.reference), self.settings.frames)
        totals: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for start in range(0, len(frames), self.settings.block):
            block = frames[start : start + self.settings.block].tolist()
            batch, values = self._z(block, [tower])
            for name, z in values.items():
                z = exactly(z)
                weight = exactly(batch["attention_mask"]) if tower == "vlm" else z.new_ones(len(block))
                if tower == "expert":
                    z = rearrange(z, "step (frame draw) ... -> frame step draw ...", frame=len(block))
                shaped = weight.reshape(*weight.shape, *(1,) * (z.ndim - weight.ndim))
                totals[name] = totals.get(name, 0) + (z * shaped).sum(dim=0, keepdim=True)
                counts[name] = counts.get(name, 0) + shaped.sum(dim=0, keepdim=True)
        device = batch["state"].device
        means = {
            name: (total / counts[name].clamp(min=1)).float().to(device) for name, total in totals.items()
        }
        return {name: mean[0] for name, mean in means.items()} if tower == "expert" else means

    def _donor(self, frame: int, at: int) -> int:
        """A frame of another episode; of the same one, but another, if there is only one episode."""
        own = self.demos.episodes[int(self.demos.episode_of[frame])].index
        indices = np.array([episode.index for episode in self.reference.episodes])[self.reference.episode_of]
        others = np.flatnonzero(indices != own)
        if self.reference.fingerprint != self.demos.fingerprint:
            others = np.arange(len(self.reference))
        elif not len(others):
            others = np.flatnonzero(np.arange(len(self.reference)) != frame)
        if not len(others):
            raise UsageError("resample ablation needs another frame to draw from: give a reference set")
        rng = np.random.default_rng([self.settings.seed, frame, at])
        return int(rng.choice(others))
