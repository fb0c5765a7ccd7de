"""Attribution patching (AtP): the effect of patching every head to first order, in two forward passes and one backward.

The gradient of the patching metric in the base run, times the difference of z between source and base. It fails where
attention saturates and where differences are large, so `verify` patches the best heads for real.

Source: Nanda 2023, "Attribution patching"; Kramar et al., AtP* (arXiv 2403.00745). Axes: edit, pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.assembly import bootstrap, tower_scores
from interp.attribution.gradients import changes, gathered, gradients, product, z_names
from interp.devices import exactly
from interp.edits import Edit, check_edits, single
from interp.errors import UsageError
from interp.heads import Head
from interp.patching import Direction, Pairs, Sides, check_effect, pair_scores, patch
from interp.policies.protocol import Policy
from interp.scores import HeadScores

Estimator = Callable[[Policy, Sides, Sequence[Edit]], Float[np.ndarray, "row pair"]]
"""<P, D> of every edit, estimated, and <D, D> as the last row."""


@dataclass(frozen=True)
class Check:
    """A head's estimate next to what patching it really does: NIE / TE both."""

    head: Head
    estimate: float
    exact: float


def atp(
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
    verified: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    block: int = 8,
) -> HeadScores:
    """`patch_heads`, estimated for all heads of all towers at once.

    `verified` heads with the largest estimates are patched for real; `settings["verified"]` has both numbers.
    """
    if verified < 0:  # [:-3] would be all heads but three
        raise UsageError(f"verified {verified}: it takes 0 heads or more")
    edits = {tower: single(policy, tower, span, position, step) for tower in towers}
    indirect, total = estimated(policy, pairs, edits, estimates, direction=direction, seed=seed, block=block)
    every = [edit for tower in towers for edit in edits[tower]]
    checks: Sequence[Check] = ()
    if verified:
        effect = indirect.sum(axis=1) / total.sum()
        checks = verify(policy, pairs, every, effect, verified, direction=direction, seed=seed)
    return estimated_scores(
        f"atp-{direction}",
        f"attribution patching, {direction}",
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
        seed=seed,
        resamples=resamples,
        verified=[{**vars(check), "head": str(check.head)} for check in checks],
    )


def verify(
    policy: Policy,
    pairs: Pairs,
    edits: Sequence[Edit],
    estimates: Float[np.ndarray, " edit"],
    k: int,
    **options: Any,
) -> list[Check]:
    """The k single-head edits with the largest estimates, either sign, patched for real; options are `patch`'s."""
    top = np.argsort(-np.abs(estimates), kind="stable")[:k].tolist()
    exact = patch(policy, pairs, [edits[at] for at in top], **options).effect
    return [
        Check(edits[at].heads[0], float(estimates[at]), float(true))
        for at, true in zip(top, exact, strict=True)
    ]


def agreement(estimate: HeadScores, exact: HeadScores) -> dict[str, float]:
    """Pearson r of an estimate against true patches, by tower and, with more than one, over `all` heads."""
    both = {
        tower: np.stack([estimate.tower(tower).value.ravel(), exact.tower(tower).value.ravel()])
        for tower in estimate.towers
        if tower in exact.towers
    }
    if len(both) > 1:
        both["all"] = np.concatenate(list(both.values()), axis=1)
    return {tower: float(np.corrcoef(x[:, np.isfinite(x).all(axis=0)])[0, 1]) for tower, x in both.items()}


def estimates(policy: Policy, sides: Sides, edits: Sequence[Edit]) -> Float[np.ndarray, "row pair"]:
    """<gradient, difference of z> of every edit, and <D, D> as the last row."""
    towers = sorted({head.tower for edit in edits for head in edit.heads})
    names = z_names(policy, towers)
    target, source = sides.source_run(policy, towers)
    base = gradients(policy, sides, names, target)
    products = {name: product(base.slope[name], changes(source, name), base.z[name]) for name in names}
    total = exactly(target - base.actions).square().sum(dim=(1, 2)).numpy()
    return np.concatenate([gathered(policy, edits, products), total[None]])


# ---- what all estimates share


def estimated(
    policy: Policy,
    pairs: Pairs,
    edits: dict[str, list[Edit]],
    estimator: Estimator,
    *,
    direction: Direction,
    seed: int,
    block: int,
) -> tuple[Float[np.ndarray, "edit pair"], Float[np.ndarray, " pair"]]:
    """<P, D> of the edits of all towers, and <D, D>; `block` pairs go through together."""
    every = [edit for own in edits.values() for edit in own]
    check_edits(policy, every)
    rows = []
    for members in pairs.blocks(block):
        sides = Sides.of(policy, pairs, members, direction, seed)
        sides.check_aligned(policy, every)
        rows.append(estimator(policy, sides, every))
    found = np.concatenate(rows, axis=1)
    if not np.isfinite(found).all():
        raise UsageError(
            "gradients or activations are not finite: the policy's weights or the observations are broken"
        )
    check_effect(found[-1])
    return found[:-1], found[-1]


def estimated_scores(
    method: str,
    label: str,
    policy: Policy,
    pairs: Pairs,
    edits: dict[str, list[Edit]],
    indirect: Float[np.ndarray, "edit pair"],
    total: Float[np.ndarray, " pair"],
    *,
    resamples: int,
    seed: int,
    **settings: Any,
) -> HeadScores:
    low, high = bootstrap(indirect, total, pairs.groups, resamples, seed)
    effect = indirect.sum(axis=1) / total.sum()
    scored, start = {}, 0
    for tower, own in edits.items():
        here = slice(start, start := start + len(own))
        interval = (None, None) if low is None or high is None else (low[here], high[here])
        scored[tower] = tower_scores(policy, tower, [edit.heads[0] for edit in own], effect[here], interval)
    return pair_scores(method, label, scored, policy, pairs, resamples=resamples, seed=seed, **settings)
