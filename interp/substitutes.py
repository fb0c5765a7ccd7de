"""What takes the place of a head's z in an ablation, and in what kind of pass it is taken: see ablation.py.

Axes: those of protocol.py and sites.py; frame, of the demonstrations or of the reference; draw, of the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from interp.assembly import spread
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.edits import z_values
from interp.errors import UsageError
from interp.noise import frame_noise
from interp.policies.protocol import Batch, Policy

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
class Passes:
    """How frames of some demonstrations go through the policy: a frame's noise, time and target are always the same."""

    policy: Policy
    demos: Demonstrations
    settings: AblationSettings

    def batch(self, frames: Sequence[int]) -> Batch:
        return self.policy.batch(list(self.demos.observations(frames)))

    def noise(self, frames: Sequence[int], draws: int) -> Float[Tensor, "frame draw horizon max_action_dim"]:
        noise = frame_noise(self.policy, self.demos, frames, self.settings.seed, draws)
        return rearrange(noise, "(frame draw) h a -> frame draw h a", draw=draws)

    def times(self, noise: Float[Tensor, "frame draw horizon max_action_dim"]) -> Float[Tensor, "frame draw"]:
        """Where the noise is."""
        frames, draws = noise.shape[:2]
        return repeat((torch.arange(draws) + 0.5) / draws, "draw -> frame draw", frame=frames).to(
            noise.device
        )

    def targets(
        self, frames: Sequence[int], noise: Tensor
    ) -> tuple[Float[Tensor, "frame horizon action"], Bool[Tensor, "frame horizon"]]:
        """Demonstrated chunks as the loss takes them, and which steps are past the end of the episode."""
        chunks, over = zip(*(self.demos.chunk(at, self.policy.spec.horizon) for at in frames), strict=True)
        # Normalised before they are rounded to the noise's precision, which may not hold the robot's units.
        state = torch.tensor(self.demos.state[list(frames)]).to(noise.device)
        actions = self.policy.normalise_actions(
            torch.tensor(np.stack(chunks)).float().to(noise.device), state
        )
        return actions.to(noise), torch.tensor(np.stack(over)).to(noise.device)


class Substitutes:
    """What stands in for z of all heads of a tower, ready for a sweep: `interp.edits.Values`."""

    def __init__(self, passes: Passes, reference: Passes) -> None:
        self.passes = passes
        self.reference = reference
        self.policy = passes.policy
        self.settings = passes.settings
        self._means: dict[str, dict[str, Tensor]] = {}
        self._seen: Bool[Tensor, " token"] | None = None
        """Prefix tokens that are real in some reference frame: where the vlm has a mean."""

    def of(
        self, frames: Sequence[int], batch: Batch, towers: Sequence[str], at: int
    ) -> Mapping[str, Tensor] | None:
        """For the heads of these frames, whose batch it is; None is zero. `at` counts repeats of resampling."""
        if self.settings.mode == "zero":
            return None
        if self.settings.mode == "resample":
            return self._z([self.donor(frame, at) for frame in frames], towers)[1]
        for tower in towers:
            if tower not in self._means:
                self._means[tower] = self._mean(tower)
        self._check_seen(frames, batch, towers)
        values = {name: mean for tower in towers for name, mean in self._means[tower].items()}
        # The loss has one mean a draw, because draws are at different times.
        return {
            name: repeat(mean, "step draw ... -> step (frame draw) ...", frame=len(frames))
            if name.startswith("expert.")
            else mean
            for name, mean in values.items()
        }

    def _check_seen(self, frames: Sequence[int], batch: Batch, towers: Sequence[str]) -> None:
        if "vlm" not in towers or self._seen is None:
            return
        unseen = (batch["attention_mask"].bool().to(self._seen.device) & ~self._seen).any(dim=1).nonzero()
        if len(unseen):
            raise UsageError(
                f"mean ablation of the vlm: the prompt of frame {frames[int(unseen[0])]} is longer than that of every "
                "reference frame, so its last tokens have no mean: take more reference frames, or other ones"
            )

    def donor(self, frame: int, at: int) -> int:
        """A frame of another episode; of the same one, but another, if there is only one episode."""
        demos, reference = self.passes.demos, self.reference.demos
        own = demos.episodes[int(demos.episode_of[frame])].index
        indices = np.array([episode.index for episode in reference.episodes])[reference.episode_of]
        others = np.flatnonzero(indices != own)
        if reference.fingerprint != demos.fingerprint:
            others = np.arange(len(reference))
        elif not len(others):
            others = np.flatnonzero(np.arange(len(reference)) != frame)
        if not len(others):
            raise UsageError("resample ablation needs another frame to draw from: give a reference set")
        rng = np.random.default_rng([self.settings.seed, frame, at])
        return int(rng.choice(others))

    def _z(self, frames: Sequence[int], towers: Sequence[str]) -> tuple[Batch, dict[str, Tensor]]:
        """z of reference frames, in the same kind of pass as the one that is measured."""
        batch = self.reference.batch(frames)
        draws = 1 if self.settings.effect == "action" else self.settings.draws
        noise = self.reference.noise(frames, draws)
        rows = rearrange(noise, "frame draw h a -> (frame draw) h a")
        if self.settings.effect == "action":
            return batch, z_values(self.policy, towers, lambda: self.policy.denoise(batch, rows))
        actions = self.reference.targets(frames, noise)[0].repeat_interleave(draws, dim=0)
        time = rearrange(self.reference.times(noise), "frame draw -> (frame draw)")

        def run() -> None:
            self.policy.loss(batch, actions, rows, time, self.policy.prefix(batch).repeat(draws))

        return batch, z_values(self.policy, towers, run)

    def _mean(self, tower: str) -> dict[str, Tensor]:
        """Expert: [step, draw, pos, head, d_head]; others with a batch axis of 1."""
        frames = spread(len(self.reference.demos), self.settings.frames)
        totals: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for start in range(0, len(frames), self.settings.block):
            block = frames[start : start + self.settings.block].tolist()
            batch, values = self._z(block, [tower])
            here = batch["attention_mask"].bool().any(dim=0)
            self._seen = here if self._seen is None else self._seen | here
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
