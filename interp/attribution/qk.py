"""Attribution patching of queries and keys, with the softmax computed instead of linearised (the QK fix of AtP*).

What would a head do if its queries, or its keys, came from the source? To first order through the softmax the answer is
nothing wherever attention is saturated, although the patched queries may move all of it. So the patched head's z is
computed exactly, softmax and all, and only what follows z is linearised:

    effect = <gradient at z, z(patched queries) - z>

One extra forward pass finds it for all heads of a tower: while it runs, every layer gets the source's queries (or
keys), its z is kept, and the base's z goes on in its place, so that no layer sees what another one's patch did.

Keys are those of the head's own tower, as this head reads them: heads that share a KV head are patched apart.

Source: Kramar et al., AtP* (arXiv 2403.00745), section 3.1.1. Axes: edit, pair.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.atp import estimated, estimated_scores
from interp.attribution.gradients import gathered, gradients, product, z_names
from interp.devices import exactly
from interp.edits import Edit, single
from interp.errors import UsageError
from interp.patching import Direction, Pairs, Sides
from interp.policies.protocol import Policy
from interp.scores import HeadScores
from interp.sites import Tap, layer_of, site_name, tapped

Node = Literal["q", "k"]
NODES = {"q": "queries", "k": "keys"}


def atp_qk(
    policy: Policy,
    pairs: Pairs,
    node: Node = "q",
    *,
    towers: Sequence[str] = ("expert",),
    direction: Direction = "denoising",
    data: str | None = None,
    factor: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    block: int = 8,
) -> HeadScores:
    """NIE / TE of patching the queries or the keys of every head alone, at all positions and flow steps, estimated."""
    if node not in NODES:
        raise UsageError(f"unknown node {node!r}: known are q, k")
    edits = {tower: single(policy, tower) for tower in towers}

    def estimator(policy: Policy, sides: Sides, edits: Sequence[Edit]) -> Float[np.ndarray, "row pair"]:
        return _estimates(policy, sides, edits, node)

    indirect, total = estimated(policy, pairs, edits, estimator, direction=direction, seed=seed, block=block)
    return estimated_scores(
        f"atp-{node}-{direction}",
        f"attribution patching of {NODES[node]}, {direction}",
        policy,
        pairs,
        edits,
        indirect,
        total,
        data=data,
        factor=factor,
        direction=direction,
        node=node,
        seed=seed,
        resamples=resamples,
    )


def _estimates(
    policy: Policy, sides: Sides, edits: Sequence[Edit], node: Node
) -> Float[np.ndarray, "row pair"]:
    towers = sorted({head.tower for edit in edits for head in edit.heads})
    names = z_names(policy, towers)
    nodes = [site_name(name.split(".")[0], layer_of(name), f"attn.hook_{node}") for name in names]
    new: dict[str, list[Tensor]] = {name: [] for name in nodes}

    def keep(name: str) -> Tap:
        return lambda tensor, step: new[name].append(tensor.clone())

    with torch.no_grad(), tapped(policy, {name: keep(name) for name in nodes}):
        target = policy.denoise(sides.source, sides.noise)[..., : policy.spec.action_dim]
    base = gradients(policy, sides, names, target)
    products: dict[str, Tensor] = {}
    for tower in towers:
        own = [name for name in names if name.startswith(f"{tower}.")]
        patched = _patched_z(policy, sides, node, own, {name: base.z[name] for name in own}, new)
        products.update({name: product(base.slope[name], patched[name], base.z[name]) for name in own})
    total = exactly(target - base.actions).square().sum(dim=(1, 2)).numpy()
    return np.concatenate([gathered(policy, edits, products), total[None]])


def _patched_z(
    policy: Policy,
    sides: Sides,
    node: Node,
    names: Sequence[str],
    z: dict[str, Sequence[Tensor]],
    new: dict[str, list[Tensor]],
) -> dict[str, list[Tensor]]:
    """z of every head of one tower with its own queries or keys patched, everything before it as in the base."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def hold(name: str) -> Tap:
        def tap(here: Tensor, step: int | None) -> Tensor:
            found[name].append(here.clone())
            return z[name][step or 0]

        return tap

    def give(name: str) -> Tap:
        return lambda here, step: new[name][step or 0]

    tower = names[0].split(".")[0]
    nodes = [site_name(tower, layer_of(name), f"attn.hook_{node}") for name in names]
    taps = {**{name: hold(name) for name in names}, **{name: give(name) for name in nodes}}
    with torch.no_grad():
        # The vlm's patched keys are for the vlm alone: the expert goes on reading those of the base.
        prefix = policy.prefix(sides.base) if tower == "expert" else None
        with tapped(policy, taps):
            policy.denoise(sides.base, sides.noise, prefix) if tower == "expert" else policy.prefix(
                sides.base
            )
    return found
