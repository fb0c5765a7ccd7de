"""What every head carries of every pair's difference, pair by pair: all factor scores are ratios of sums over these.

With D = corrupt -> clean difference of the action chunk and P what patching a head moves it (see patching.py):

    share of a head = sum over pairs <P, D> / sum over pairs <D, D>          NIE / TE
    size of a swap  = root mean square of D, in normalised units: 1 is one standard deviation of the action

Where the size is nearly nothing there is nothing to have a share of, and shares are NaN rather than a ratio of
rounding errors: this is how a prompt-blind policy shows.

Axes: head, in the order of `Effects.heads`; pair; group, the episodes that pairs come from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int

from interp.assembly import Interval, bootstrap, resumable
from interp.attribution import estimates
from interp.devices import exactly
from interp.edits import Edit, check_edits, single
from interp.errors import UsageError, unknown
from interp.factors.pairs import FactorPairs, emptied
from interp.heads import Head
from interp.patching import Direction, Pairs, Sides, patch
from interp.policies.protocol import Policy
from interp.sweep import BUDGET

Method = Literal["patching", "atp"]
SILENCE = 0.01
"""A swap that moves the normalised action by less than a hundredth of its standard deviation does nothing. This is far
more than the rounding that `patching.check_effect` knows."""


@dataclass(frozen=True)
class Size:
    """How far swaps move the action chunk: root mean square over pairs, steps and dimensions, normalised units."""

    value: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def silent(self) -> bool:
        return self.value < SILENCE

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{interval}"

    @classmethod
    def of(
        cls, total: Float[np.ndarray, " pair"], group: Int[np.ndarray, " pair"], numbers: int, seed: int = 0
    ) -> "Size":
        """`total` is <D, D>, a sum over `numbers` numbers."""
        count = np.full(len(total), float(numbers))
        low, high = bootstrap(total[None], count, group, 1000, seed)
        return cls(
            value=float((total.sum() / count.sum()) ** 0.5),
            low=None if low is None else float(low[0] ** 0.5),
            high=None if high is None else float(high[0] ** 0.5),
            pairs=len(total),
        )


@dataclass(frozen=True)
class Effects:
    """The measurement of one factor. `empty` is the empty-prompt control of a linguistic factor."""

    pairs: FactorPairs
    method: Method
    direction: Direction
    span: str | None
    seed: int
    heads: tuple[Head, ...]
    indirect: Float[np.ndarray, "head pair"]
    """<P, D>; NaN if the factor is silent, for then the heads are not measured."""
    total: Float[np.ndarray, " pair"]
    """<D, D>"""
    numbers: int
    """In one action chunk."""
    empty: Size | None = None

    @property
    def groups(self) -> Int[np.ndarray, " pair"]:
        return self.pairs.pairs.groups

    def size(self, where: Sequence[int] | None = None) -> Size:
        """Of all pairs' swaps, or of those at some places."""
        places = self._places(where)
        return Size.of(self.total[places], self.groups[places], self.numbers, self.seed)

    @property
    def silent(self) -> bool:
        """Whether the swaps do nothing to the action, so that no head can have a share."""
        return self._silent(self._places(None))

    @property
    def blind(self) -> bool:
        """Whether the policy ignores its prompt: neither other words nor no words change the action."""
        return self.empty is not None and self.empty.silent and self.silent

    def share(self, where: Sequence[int] | None = None) -> Float[np.ndarray, " head"]:
        """NIE / TE over all pairs, or over some; NaN if their swaps, or the factor's together, do nothing."""
        places = self._places(where)
        if self.silent or self._silent(places):
            return np.full(len(self.heads), np.nan)
        return self.indirect[:, places].sum(axis=1) / self.total[places].sum()

    def interval(self, where: Sequence[int] | None = None, resamples: int = 1000) -> Interval:
        """95 % of `share` over resampled episodes."""
        places = self._places(where)
        if self.silent or self._silent(places):
            return None, None
        return bootstrap(
            self.indirect[:, places], self.total[places], self.groups[places], resamples, self.seed
        )

    def _silent(self, places: Sequence[int]) -> bool:
        return bool((self.total[places].mean() / self.numbers) ** 0.5 < SILENCE)

    def _places(self, where: Sequence[int] | None) -> list[int]:
        places = list(range(len(self.pairs)) if where is None else where)
        if not places:
            raise UsageError(f"no {self.pairs.factor} pairs of that kind: {dict(self.pairs.edits)}")
        return places


def measure(
    policy: Policy,
    pairs: FactorPairs,
    *,
    method: Method = "patching",
    towers: Sequence[str] = ("vlm", "expert"),
    span: str | None = None,
    direction: Direction = "denoising",
    seed: int = 0,
    block: int = 4,
    budget: int = BUDGET,
    directory: str | Path | None = None,
    progress: bool = False,
) -> Effects:
    """Every live head of the towers, exactly (patching) or to first order (atp), and the controls.

    With a directory an interrupted measurement resumes, with identical numbers. The sweep is left out if the swaps do
    nothing to the action.
    """
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    edits = {tower: single(policy, tower, span) for tower in towers}
    check_edits(policy, [edit for own in edits.values() for edit in own])
    if "vlm" in towers and (span is None or not span.startswith("image/")):
        pairs.check_prompts(policy)
    total = swap_effects(policy, pairs.pairs, seed, block)
    empty = None
    if pairs.factor == "linguistic":
        control = emptied(pairs.pairs)
        empty = Size.of(swap_effects(policy, control, seed, block), control.groups, _numbers(policy), seed)
    heads = tuple(edit.heads[0] for tower in towers for edit in edits[tower])
    effects = Effects(
        pairs=pairs,
        method=method,
        direction=direction,
        span=span,
        seed=seed,
        heads=heads,
        indirect=np.full((len(heads), len(pairs)), np.nan),
        total=total,
        numbers=_numbers(policy),
        empty=empty,
    )
    if effects.silent:
        return effects
    place = None if directory is None else Path(directory)
    if method == "atp":
        every = [edit for tower in towers for edit in edits[tower]]
        return replace(
            effects,
            indirect=_atp(policy, pairs, every, direction, seed, block, place, progress),
        )
    found = [
        patch(
            policy,
            pairs.pairs,
            edits[tower],
            direction=direction,
            seed=seed,
            block=block,
            budget=budget,
            directory=None if place is None else place / tower,
            progress=progress,
        )
        for tower in towers
    ]
    return replace(
        effects, indirect=np.concatenate([reduce(f.indirect, "h p a -> h p", "sum") for f in found])
    )


def swap_effects(policy: Policy, pairs: Pairs, seed: int = 0, block: int = 4) -> Float[np.ndarray, " pair"]:
    """<D, D> of every pair: the total effect of the swap on the action chunk, squared. Prompts may differ in length."""
    found = []
    for members in pairs.blocks(block):
        sides = Sides.of(policy, pairs, members, "denoising", seed)
        with torch.no_grad():
            clean, corrupt = (
                exactly(policy.denoise(batch, sides.noise)[..., : policy.spec.action_dim])
                for batch in (sides.source, sides.base)
            )
        squared = reduce((clean - corrupt).square(), "pair horizon action -> pair", "sum")
        if not torch.isfinite(squared).all():
            raise UsageError(
                f"policy {policy.source}: its answer to pair {members[0]} or one of the next {len(members) - 1} "
                "is not finite: its weights or activations are broken"
            )
        found.append(squared.numpy())
    return np.concatenate(found)


def _atp(
    policy: Policy,
    pairs: FactorPairs,
    edits: Sequence[Edit],
    direction: Direction,
    seed: int,
    block: int,
    directory: Path | None,
    progress: bool,
) -> Float[np.ndarray, "head pair"]:
    def compute(members: Sequence[int]) -> np.ndarray:
        return estimates(policy, Sides.of(policy, pairs.pairs, members, direction, seed), edits)[:-1]

    plan = {
        "method": "atp",
        "policy": policy.fingerprint,
        "pairs": pairs.pairs.fingerprint,
        "direction": direction,
        "seed": seed,
        "block": block,
        "edits": [[str(edit.heads[0]), edit.span] for edit in edits],
    }
    blocks = pairs.pairs.blocks(block)
    found = resumable(directory, plan, blocks, compute, desc="attribution patching", progress=progress)
    return np.concatenate(found, axis=1)


def _numbers(policy: Policy) -> int:
    return policy.spec.horizon * policy.spec.action_dim


def of_kind(effects: Iterable[Effects], kind: str) -> list[tuple[Effects, list[int]]]:
    """Places of the kind's pairs, over several factors; factors without such pairs are left out."""
    found = ((each, each.pairs.where(kind=kind)) for each in effects)
    return [(each, places) for each, places in found if places]
