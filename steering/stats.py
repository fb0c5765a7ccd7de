"""How sure a success rate is: Wilson intervals and paired bootstrap of differences.

Rollouts are pass or fail, and arms are compared on the *same* initial states (episode i of every arm starts
from seed `seed0 + i`), so two questions arise:

- how well is one arm's success rate known? `wilson`, the score interval of Wilson (JASA 1927), which keeps
  its coverage at the small n and extreme rates of robot evaluations, unlike p +- 1.96 sqrt(p(1-p)/n);
- how much better is one arm than another? `paired_bootstrap`, which resamples *episodes*, never arms
  separately: a layout that is hard for both arms says nothing about their difference.

Axis names: episode. Rates and differences are fractions of one, differences are treated minus baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from interp.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """A point estimate with the interval around it."""

    value: float
    low: float
    high: float

    def __contains__(self, x: float) -> bool:
        return self.low <= x <= self.high

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success rate: all rates p whose score test does not reject `successes` of
    `n`."""
    if n < 1:
        raise UsageError(f"n = {n} episodes: a success rate needs at least one episode")
    if not 0 <= successes <= n:
        raise UsageError(f"{successes} successes of {n} episodes: must lie between 0 and {n}")
    z = _quantile(confidence)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # at the ends the exact bounds are 0 and 1; rounding must not leave 1e-17 instead
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(rate, low, high)


def paired_bootstrap(
    treated: Sequence[bool],
    baseline: Sequence[bool],
    *,
    confidence: float = 0.95,
    resamples: int = 20_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `mean(treated) - mean(baseline)` over resampled episodes.

    Episode i of both arms must have started from the same state. An episode's difference is -1, 0 or +1, so
    drawing n episodes with replacement is drawing three counts from a multinomial: exact, and without an
    [resamples, episode] array. With no discordant episode the interval has zero width; that says that the
    arms agreed on every episode seen, not that they are equal.
    """
    if len(treated) != len(baseline):
        raise UsageError(
            f"paired arms of {len(treated)} and {len(baseline)} episodes: pair them by seed, equal length"
        )
    n = len(treated)
    if n < 1:
        raise UsageError("paired difference of 0 episodes: needs at least one")
    difference = np.asarray(treated, dtype=int) - np.asarray(baseline, dtype=int)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    counts = np.random.default_rng(seed).multinomial(
        n, [better / n, worse / n, (n - better - worse) / n], size=resamples
    )
    tail = _tail(confidence)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [tail, 1 - tail])
    return Interval(float(difference.mean()), float(low), float(high))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence}: must lie strictly between 0 and 1, for example 0.95")
    return (1 - confidence) / 2


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(1 - _tail(confidence))
