"""Gradients of the patching metric with respect to z of every head: one forward and one backward pass.

The metric is <chunk - base, D>, D the total effect (patching.py); divided by <D, D> it is NIE / TE. Its gradient at z
of a head times a change of z is what that change does to first order. Pairs are rows of the batch and do not meet, so
one backward pass serves all.

Axes: those of sweep.py; products have [step, pair, (camera,) pos, head], with one step outside the expert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from interp.devices import exactly
from interp.edits import Edit, Values, place_of
from interp.patching import Sides
from interp.policies.protocol import Policy
from interp.sites import Tap, site_name, tapped

Steps = Sequence[Tensor]
"""An activation of one run, step by step; a single one outside the expert."""


@dataclass(frozen=True)
class Gradients:
    """Activations of a run and the metric's gradients there, by site name; the chunk that the run answered."""

    z: Mapping[str, Steps]
    slope: Mapping[str, Steps]
    actions: Float[Tensor, "pair horizon action"]


def z_names(policy: Policy, towers: Sequence[str]) -> list[str]:
    return [
        site_name(tower, layer, "attn.hook_z")
        for tower in towers
        for layer in range(policy.spec.tower(tower).layers)
    ]


def gradients(
    policy: Policy,
    sides: Sides,
    names: Sequence[str],
    target: Float[Tensor, "pair horizon action"],
    base: Float[Tensor, "pair horizon action"] | None = None,
    edits: Mapping[str, Tap] | None = None,
) -> Gradients:
    """Along a run of the base, edited before it is looked at. D is target - base, by default that of this very run."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def tap(name: str) -> Tap:
        def remember(activation: Tensor, step: int | None) -> Tensor:
            replaced = edits[name](activation, step) if edits and name in edits else None
            activation = activation if replaced is None else replaced
            # With frozen parameters the first one is where the graph begins.
            here = activation if activation.requires_grad else activation.detach().requires_grad_()
            seen[name].append(here)
            return here

        return remember

    with torch.enable_grad(), tapped(policy, {name: tap(name) for name in names}):
        actions = policy.denoise(sides.base, sides.noise)[..., : policy.spec.action_dim]
        difference = target - (actions.detach() if base is None else base)
        wanted = [each for steps in seen.values() for each in steps]
        # A dead head's z is in no path to the action: no gradient.
        found = iter(torch.autograd.grad((actions * difference).sum(), wanted, allow_unused=True))
    slope = {
        name: [torch.zeros_like(each) if (g := next(found)) is None else g for each in steps]
        for name, steps in seen.items()
    }
    return Gradients(
        {name: [each.detach() for each in steps] for name, steps in seen.items()}, slope, actions.detach()
    )


def changes(source: Values, name: str) -> Steps:
    """The source's activation in the same form."""
    return list(source[name]) if name.startswith("expert.") else [source[name]]


def product(slope: Steps, new: Steps, old: Steps) -> Float[Tensor, "step pair ... head"]:
    """<slope, new - old> of every head, position and step."""
    return torch.stack([((n - o) * s).sum(-1) for s, n, o in zip(slope, new, old, strict=True)])


def gathered(
    policy: Policy, edits: Sequence[Edit], products: Mapping[str, Float[Tensor, "step pair ... head"]]
) -> Float[np.ndarray, "edit pair"]:
    """The products of every single-head edit, summed over the positions and steps that it replaces."""
    sums: dict[tuple[Any, ...], Tensor] = {}

    def of(edit: Edit) -> Float[Tensor, " pair"]:
        (head,) = edit.heads
        key = (head.tower, head.layer, edit.span, edit.position, edit.step)
        if key not in sums:
            steps = slice(None) if edit.step is None else slice(edit.step, edit.step + 1)
            place = (steps, slice(None), *place_of(policy, edit, head.tower))
            there = products[site_name(head.tower, head.layer, "attn.hook_z")][place]
            sums[key] = reduce(exactly(there), "step pair ... head -> pair head", "sum")
        return sums[key][:, head.index]

    return torch.stack([of(edit) for edit in edits]).numpy()
