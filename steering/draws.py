"""The randomness of a training, step by step.

Flow times as in pi0 (Black et al., arXiv 2410.24164): t = 0.001 + 0.999 u with u ~ Beta(1.5, 1), which favours
noisy x. A step's draws are a function of (seed, step) alone: all arms of a comparison see the same frames and the same
noise, processes that share a step agree on it without talking, and a resumed training needs no random state.

Axis names: batch (frames of one step), draw ((noise, time) pairs of a frame), camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.policies import PolicySpec
from steering.augment import Views
from steering.recipes import Recipe


@dataclass(frozen=True)
class Draw:
    """One step: which frames, the (noise, time) pairs of each side by side, and how its images are changed."""

    rows: Int[np.ndarray, " batch"]
    noise: Float[Tensor, "batch_draw horizon max_action_dim"]
    time: Float[Tensor, " batch_draw"]
    views: Views | None = None

    @classmethod
    def at(cls, step: int, seed: int, frames: int, recipe: Recipe, spec: PolicySpec) -> Draw:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(0, frames, recipe.batch)
        n = recipe.batch * recipe.draws
        noise = rng.standard_normal((n, spec.horizon, spec.max_action_dim), dtype=np.float32)
        time = 0.001 + 0.999 * rng.random(n) ** (1 / 1.5)  # u^1.5 is Beta(1.5, 1)'s distribution function
        views = Views.draw(rng, recipe, len(spec.cameras)) if recipe.augments else None
        return cls(rows, torch.from_numpy(noise), torch.from_numpy(time.astype(np.float32)), views)

    @property
    def draws(self) -> int:
        return len(self.time) // len(self.rows)

    def share(self, part: slice) -> Draw:
        """Some of the frames, with all that was drawn for them."""
        noise = rearrange(self.noise, "(batch draw) ... -> batch draw ...", draw=self.draws)[part]
        time = rearrange(self.time, "(batch draw) -> batch draw", draw=self.draws)[part]
        return replace(
            self,
            rows=self.rows[part],
            noise=noise.flatten(0, 1),
            time=time.flatten(),
            views=self.views[part] if self.views else None,
        )
