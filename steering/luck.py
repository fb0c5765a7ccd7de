"""The luck of training: what a recipe's success owes to the seed that it was trained from.

Rollouts of one training share its luck, so a mean over rollouts is not as sure as their number says. With several
trainings that luck is estimated by analysis of variance: what the trainings' means vary, less what rollouts alone make
them vary, at least 0. (Runs and episodes are crossed; resampling both would count the chance of a single rollout three
times: Owen, arXiv 0712.1111.) Few trainings know it badly, so an interval is widened as a t quantile is, with
Satterthwaite's degrees of freedom (Biometrics Bulletin 1946).

A seed is the same on every task: the same noise, the same order, layouts of demonstrations that were drawn alike. So
its luck may be each task's own, which averages out over tasks, or all tasks' together, which does not. Three seeds
cannot tell, hence both are estimated and the wider interval is taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit


@dataclass(frozen=True)
class Part:
    """One arm in one stratum, or the difference of two arms that were trained from the same seeds, with its sign."""

    which: str
    values: Float[np.ndarray, "run episode"]
    seeds: tuple[Hashable, ...]  # of the runs
    layout: Hashable
    """Parts with equal ones met the same episodes."""
    training: Hashable
    """Parts with equal ones are of the same trainings."""


@dataclass(frozen=True)
class Luck:
    """Variance of a mean through the luck of training, and of that estimate, over 2."""

    variance: float = 0.0
    doubt: float = 0.0

    def spread(self, of_episodes: float, tail: float) -> float:
        """How far an interval reaches that leaves `tail` on a side, in standard deviations of luck and episodes."""
        total = self.variance + of_episodes
        freedom = total**2 / self.doubt if self.doubt > 0 else math.inf
        return float(stdtrit(min(freedom, 1e9), 1 - tail))


def widest(parts: Sequence[Part], strata: int, of_episodes: float, tail: float) -> Luck:
    """The luck in a mean over `strata`: each task's own or all tasks' together, whichever makes the wider interval."""

    def width(luck: Luck) -> float:
        return luck.spread(of_episodes, tail) * math.sqrt(luck.variance + of_episodes)

    return max((luck(parts, strata, together) for together in (False, True)), key=width)


def luck(parts: Sequence[Part], strata: int, together: bool) -> Luck:
    """The luck in the mean over `strata`, of the sums of their parts.

    Parts with one run know nothing of luck; they take what others of the same arm know, if there are any.
    """
    variance = doubt = 0.0
    for which in dict.fromkeys(part.which for part in parts):
        ours = [part for part in parts if part.which == which]
        groups = [
            [part for part in ours if together or part.training == training]
            for training in dict.fromkeys(None if together else part.training for part in ours)
        ]
        known = [
            (_weight(group, strata), found) for group in groups if (found := _between(group)) is not None
        ]
        rest = sum(_weight(group, strata) for group in groups) - sum(weight for weight, _ in known)
        for weight, (between, chance, runs) in known:
            share = weight + rest / len(known)
            variance += share * (between - chance)
            doubt += (share * between) ** 2 / (runs - 1)
    return Luck(max(variance, 0.0), doubt)


def _weight(group: Sequence[Part], strata: int) -> float:
    """What the variance of one seed's luck counts in the mean: a seed that few parts have weighs less than others."""
    weights: dict[Hashable, float] = {}
    for part in group:
        for seed in part.seeds:
            weights[seed] = weights.get(seed, 0.0) + 1 / len(part.seeds) / strata
    return sum(weight**2 for weight in weights.values())


def _between(group: Sequence[Part]) -> tuple[float, float, int] | None:
    """Variance between seeds of the mean over the parts, what rollouts alone make of it, and the number of seeds: of
    the parts with several seeds, those whose seeds most of them have."""
    several = [part for part in group if len(part.seeds) > 1]
    if not several:
        return None
    (seeds, _), *_ = Counter(frozenset(part.seeds) for part in several).most_common(1)
    alike = [part for part in several if set(part.seeds) == seeds]
    means: Any = 0.0
    residuals: dict[tuple[Hashable, int], Any] = {}
    for part in alike:
        rows = sorted(range(len(part.seeds)), key=lambda row: str(part.seeds[row]))
        values = part.values[rows] / len(alike)
        of_run, of_episode = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
        met = (part.layout, values.shape[1])
        means = means + of_run
        residuals[met] = residuals.get(met, 0.0) + values - of_run - of_episode + values.mean()
    between = float(np.var(means, ddof=1))
    chance = sum(
        float((z**2).sum()) / max((len(z) - 1) * (z.shape[1] - 1), 1) / z.shape[1] for z in residuals.values()
    )
    return between, chance, len(seeds)
