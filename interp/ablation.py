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

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from interp.assembly import Interval, bootstrap, resumable, spread, tower_scores
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.edits import NOTHING, Edit, single
from interp.errors import UsageError
from interp.heads import Head
from interp.policies.protocol import Policy
from interp.scores import HeadScores
from interp.sites import Tap, site_name, tapped
from interp.substitutes import AblationSettings as AblationSettings
from interp.substitutes import Passes, Substitutes
from interp.sweep import BUDGET, Stage


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
    interrupted call resumes. Dead heads have no score: that ablating them changes not one bit is checked here, and a
    head that breaks this promise is an error.
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
        self.passes = Passes(policy, self.demos, settings)
        self.substitutes = Substitutes(self.passes, Passes(policy, self.reference, settings))

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
        stage = Stage(self.policy, self.passes.batch(frames), self.budget)
        towers = sorted({head.tower for edit in edits for head in edit.heads})
        repeats = []
        for at in range(self.settings.repeats):
            values = self.substitutes.of(frames, stage.batch, towers, at)
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
        batch, noise = self.passes.batch(frame), self.passes.noise(frame, draws=1)[:, 0]

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
            return stage.denoise(self.passes.noise(frames, draws=1)[:, 0], edits, values)
        noise = self.passes.noise(frames, self.settings.draws)
        actions, over = self.passes.targets(frames, noise)
        loss = stage.loss(actions, noise, self.passes.times(noise), edits, values)
        mean = reduce(loss, "edit frame draw h a -> edit frame h a", "mean")
        return mean.masked_fill(over[None, :, :, None], torch.nan)
