"""Integrated gradients: attribution patching with the gradient averaged on the way from the base to the source.

At n points alpha = (i + 1/2) / n the policy runs on embeddings base + alpha (source - base): of the prefix tokens where
they enter the vlm, and of the state token where it enters the expert. The gradients of the patching metric at z,
averaged over the points, take the place of AtP's single gradient at alpha = 0, which says nothing where the base is
saturated.

The same average at the embeddings themselves must add up to the whole effect: `settings["completeness"]` is that sum
over <D, D>, 1 if n was large enough.

Source: Sundararajan et al. (arXiv 1703.01365); on inputs, for nodes inside: Hanna et al., EAP-IG (arXiv 2403.17806).
Cost: n forward and backward passes, and two forward passes.
"""

from collections.abc import Sequence

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
from interp.policies.protocol import Batch, Policy
from interp.scores import HeadScores
from interp.sites import Tap, site_name, tapped


def integrated(
    policy: Policy,
    pairs: Pairs,
    *,
    n: int = 5,
    towers: Sequence[str] = ("expert",),
    span: str | None = None,
    position: int | None = None,
    step: int | None = None,
    direction: Direction = "denoising",
    data: str | None = None,
    factor: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    block: int = 8,
) -> HeadScores:
    """As `atp`, for heads of vlm and expert. Prompts of a pair must be equally long: positions are mixed."""
    if n < 1:
        raise UsageError(f"integrated gradients need at least one point, not {n}")
    if "vision" in towers:
        raise UsageError(
            "integrated gradients start at the embeddings that enter the vlm: take atp for vision"
        )
    edits = {tower: single(policy, tower, span, position, step) for tower in towers}
    whole: list[float] = []

    def estimator(policy: Policy, sides: Sides, edits: Sequence[Edit]) -> Float[np.ndarray, "row pair"]:
        found, inputs = _estimates(policy, sides, edits, n)
        whole.append(inputs)
        return found

    indirect, total = estimated(policy, pairs, edits, estimator, direction=direction, seed=seed, block=block)
    return estimated_scores(
        f"ig-{direction}",
        f"integrated gradients, {direction}",
        policy,
        pairs,
        edits,
        indirect,
        total,
        data=data,
        factor=factor,
        direction=direction,
        span=span,
        position=position,
        step=step,
        n_points=n,
        completeness=round(sum(whole) / float(total.sum()), 4),
        seed=seed,
        resamples=resamples,
    )


def _estimates(
    policy: Policy, sides: Sides, edits: Sequence[Edit], n: int
) -> tuple[Float[np.ndarray, "row pair"], float]:
    """Rows as `atp.estimates`; and the sum over the embeddings."""
    if (sides.base["attention_mask"] != sides.source["attention_mask"]).any():
        raise UsageError(
            "the prompts of a pair differ in length: integrated gradients mix embeddings by position"
        )
    names = [*_EMBEDDINGS, *z_names(policy, sorted({head.tower for edit in edits for head in edit.heads}))]
    base, start = _run(policy, sides.base, sides.noise, names)
    target, end = _run(policy, sides.source, sides.noise, names)
    slopes = {name: [torch.zeros_like(each) for each in steps] for name, steps in start.items()}
    for i in range(n):
        mixed = {name: _mixing(policy, start[name], end[name], (i + 0.5) / n) for name in _EMBEDDINGS}
        found = gradients(policy, sides, names, target, base, mixed)
        for name in names:
            for mean, slope in zip(slopes[name], found.slope[name], strict=True):
                mean += slope / n
    products = {name: product(slopes[name], end[name], start[name]) for name in names}
    state = _state(policy)
    # Only these were mixed: the rest of the expert's embeddings is noise, which both sides share, and what came of it.
    inputs = products[_EMBEDDINGS[0]].sum() + products[_EMBEDDINGS[1]][:, :, state].sum()
    total = exactly(target - base).square().sum(dim=(1, 2)).numpy()
    return np.concatenate([gathered(policy, edits, products), total[None]]), float(inputs)


def _mixing(policy: Policy, start: Sequence[Tensor], end: Sequence[Tensor], alpha: float) -> Tap:
    """Puts the mixed embeddings in: the whole prefix, and the state token of every flow step."""
    state = _state(policy)

    def mix(embedding: Tensor, step: int | None) -> Tensor:
        between = torch.lerp(start[step or 0], end[step or 0], alpha)
        if step is None:
            return between
        embedding = embedding.clone()
        embedding[:, state] = between[:, state]
        return embedding

    return mix


def _state(policy: Policy) -> slice:
    """Where the expert reads the state; nowhere if that is part of the prefix."""
    spec = policy.spec
    return spec.positions("expert", "state") if spec.has_positions("expert", "state") else slice(0, 0)


_EMBEDDINGS = (site_name("vlm", 0, "hook_resid_pre"), site_name("expert", 0, "hook_resid_pre"))


def _run(
    policy: Policy, batch: Batch, noise: Tensor, names: Sequence[str]
) -> tuple[Float[Tensor, "pair horizon action"], dict[str, list[Tensor]]]:
    """The chunk, and copies of the named activations, step by step."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def tap(name: str) -> Tap:
        return lambda tensor, step: seen[name].append(tensor.detach().clone())

    with torch.no_grad(), tapped(policy, {name: tap(name) for name in names}):
        actions = policy.denoise(batch, noise)[..., : policy.spec.action_dim]
    return actions, seen
