"""Heads switched off while a policy serves: causal mediation on a moving robot.

z of the chosen heads is replaced in every pass, at every token and flow step, by

zero   nothing
mean   its mean over reference frames, per position and flow step (padded prompt tokens do not count)

which are the meanings of interp/ablation.py. Nothing is switched off by default, and then the policy runs exactly
as if this were not here.

Axis names: step (of the flow), pos, head, d_head; camera before pos in the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.assembly import spread
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.edits import z_values
from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.policies import Observation, Policy
from interp.policies.protocol import Batch
from interp.sites import Tap, site_name, tapped

Ablation = Literal["zero", "mean"]


@dataclass(frozen=True)
class Means:
    """Mean z of every head over reference frames."""

    z: Mapping[str, Tensor]
    """By site name: [1, pos, head, d_head], in the expert [step, 1, pos, head, d_head], in vision with a camera axis
    before pos."""
    seen: Bool[Tensor, " token"]
    """Prefix tokens that are real in some reference frame: where the vlm has a mean."""


class LivePolicy:
    """A policy whose heads can be switched off and on between samples. Not for several threads at once."""

    def __init__(self, policy: Policy, means: Means | None = None) -> None:
        """`means` (from `mean_z`) are what mean ablation puts in a head's place; without them there is only zero."""
        self.policy = policy
        self.off: tuple[Head, ...] = ()
        self.ablation: Ablation = "zero"
        self._means = means
        self._taps: dict[str, Tap] = {}

    def switch(self, heads: Iterable[Head], ablation: Ablation = "zero") -> None:
        """From the next sample on these heads are off, and no others. Bad input changes nothing."""
        off = tuple(dict.fromkeys(self.policy.spec.check(head) for head in heads))
        if ablation not in get_args(Ablation):
            raise unknown("ablation", ablation, get_args(Ablation))
        by_site: dict[str, list[int]] = {}
        for head in off:
            by_site.setdefault(site_name(head.tower, head.layer, "attn.hook_z"), []).append(head.index)
        if ablation == "mean" and (
            without := [site for site in by_site if self._means is None or site not in self._means.z]
        ):
            raise UsageError(
                f"mean ablation of {without[0]}: its mean is not known; give demonstrations, or use zero"
            )
        means = self._means.z if self._means and ablation == "mean" else {}
        self._taps = {site: _replaced(index, means.get(site)) for site, index in by_site.items()}
        self.off, self.ablation = off, ablation

    @torch.no_grad()
    def sample(self, observation: Observation, noise_seed: int) -> Float[np.ndarray, "horizon action"]:
        """One action chunk in robot units, from the noise of `noise_seed`.

        A prompt longer than all that the means are of is refused while heads of the vlm have the mean in their place.
        """
        batch, noise = self.policy.batch([observation]), self.policy.noise(1, seed=noise_seed)
        self._check_seen(batch)
        with tapped(self.policy, self._taps) if self._taps else nullcontext():
            return self.policy.sample(batch, noise)[0].float().cpu().numpy()

    def _check_seen(self, batch: Batch) -> None:
        if self._means is None or self.ablation != "mean" or all(head.tower != "vlm" for head in self.off):
            return
        seen = self._means.seen
        if (batch["attention_mask"].bool().to(seen.device) & ~seen).any():
            raise UsageError(
                "mean ablation of the vlm: this prompt is longer than that of every reference frame, so its last "
                "tokens have no mean: serve with demonstrations of longer prompts, or use zero"
            )


def _replaced(index: Sequence[int], mean: Tensor | None) -> Tap:
    """Puts zero, or the mean, in the place of these heads' z."""

    def tap(z: Float[Tensor, "batch *pos head d_head"], step: int | None) -> Tensor:
        z = z.clone()
        if mean is None:
            z[..., index, :] = 0
        else:
            z[..., index, :] = (mean if step is None else mean[step])[..., index, :].to(z)
        return z

    return tap


def mean_z(
    policy: Policy,
    demos: Demonstrations,
    towers: Sequence[str] | None = None,
    *,
    frames: int = 60,
    seed: int = 0,
) -> Means:
    """Mean z of every head, over `frames` frames taken evenly from the demonstrations."""
    if frames < 1:
        raise UsageError(f"frames = {frames}: a mean needs at least one frame")
    demos, towers = demos.for_policy(policy.spec), tuple(towers or policy.spec.towers)
    rows = spread(len(demos), frames).tolist()
    totals: dict[str, Tensor] = {}
    words = torch.zeros((), dtype=torch.float64)  # how often a prefix token was no padding
    for row in rows:
        batch = policy.batch([demos.observation(row)])
        found = z_values(policy, towers, partial(policy.denoise, batch, policy.noise(1, seed=seed + row)))
        mask = exactly(batch["attention_mask"])[..., None, None]
        words = words + mask
        for name, z in found.items():
            weighted = exactly(z) * mask if name.startswith("vlm.") else exactly(z)
            totals[name] = totals.get(name, 0) + weighted
    device = batch["state"].device
    means = {
        name: (total / (words.clamp(min=1) if name.startswith("vlm.") else len(rows))).float().to(device)
        for name, total in totals.items()
    }
    return Means(means, (words > 0).flatten())
