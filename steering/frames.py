"""Demonstration frames as training examples, with everything that is frozen computed once.

As long as nothing trains in vision or vlm, a frame's prefix (the vlm's keys and values, all that the expert
sees of images and instruction) is a constant. `TrainingFrames` finds that out by asking the policy for a
prefix and looking whether it requires gradients; if it does not and fits the memory budget, every frame's
prefix is computed once and kept. Else prefixes are computed step by step, with gradients exactly if they are
needed.

Axis names: frame (of all demonstrations, in order), batch (frames of one step), horizon, action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.demos import Demonstrations
from interp.policies import Batch, Policy, Prefix

CHUNK = 32  # frames a forward pass while filling the cache


@dataclass(frozen=True)
class Examples:
    """Frames of one step, ready for `Policy.loss`. `real` is False past the end of an episode."""

    batch: Batch
    prefix: Prefix
    actions: Float[Tensor, "batch horizon action"]
    real: Bool[Tensor, "batch horizon"]


class TrainingFrames:
    """All demonstration frames; `take` gives those of one step. Made after the recipe was applied."""

    def __init__(self, policy: Policy, demos: Demonstrations, cache_mb: float, show: bool = True) -> None:
        self._policy, self._demos = policy, demos
        actions, padding = demos.chunks(policy.spec.horizon)
        device = next(policy.module.parameters()).device
        self._actions = policy.normalise_actions(torch.from_numpy(actions).float().to(device))
        self._real = torch.from_numpy(~padding).to(device)

        probe_batch = self._batch([0])
        probe = policy.prefix(probe_batch)
        tensors = [*probe.keys, *probe.values]
        self.frozen = not any(t.requires_grad for t in tensors)
        self.megabytes = len(self) * sum(t.nbytes for t in [*tensors, *probe_batch.values()]) / 2**20
        self.cached = self.frozen and self.megabytes <= cache_mb
        if self.cached:
            self._fill(show)

    def __len__(self) -> int:
        return len(self._demos)

    def __str__(self) -> str:
        if self.cached:
            return f"prefix of {len(self)} frames computed once ({self.megabytes:.0f} MB)"
        reason = f"{self.megabytes:.0f} MB exceed the budget" if self.frozen else "vision or vlm train"
        return f"prefix computed at every step: {reason}"

    def take(self, rows: Int[np.ndarray, " batch"]) -> Examples:
        picked = torch.from_numpy(rows)
        if self.cached:
            batch = {name: tensor[picked] for name, tensor in self._batches.items()}
            prefix = self._prefixes.select(picked)
        else:
            batch = self._batch(rows.tolist())
            with torch.set_grad_enabled(not self.frozen):
                prefix = self._policy.prefix(batch)
        return Examples(batch, prefix, self._actions[picked], self._real[picked])

    def _batch(self, rows: list[int]) -> Batch:
        return self._policy.batch(list(self._demos.observations(rows)))

    @torch.no_grad()
    def _fill(self, show: bool) -> None:
        batches, prefixes = [], []
        starts = range(0, len(self), CHUNK)
        for start in tqdm(starts, desc="prefixes", unit="batch", disable=not show, leave=False):
            batch = self._batch(list(range(start, min(start + CHUNK, len(self)))))
            batches.append(batch)
            prefixes.append(self._policy.prefix(batch))
        self._batches = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        self._prefixes = Prefix(
            tuple(torch.cat(layer) for layer in zip(*(p.keys for p in prefixes), strict=True)),
            tuple(torch.cat(layer) for layer in zip(*(p.values for p in prefixes), strict=True)),
            torch.cat([p.mask for p in prefixes]),
        )
