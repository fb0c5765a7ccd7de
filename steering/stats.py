"""How sure a success rate is: Wilson intervals and paired bootstrap of differences.

Rollouts are pass or fail, and arms are compared on the *same* initial states (episode i of every arm starts
from seed `seed0 + i`), so three questions arise:

- how well is one arm's success rate known? `wilson`, the score interval of Wilson (JASA 1927), which keeps
  its coverage at the small n and extreme rates of robot evaluations, unlike p +- 1.96 sqrt(p(1-p)/n);
- how much better is one arm than another? `paired_bootstrap`, which resamples *episodes*, never arms
  separately: a layout that is hard for both arms says nothing about their difference;
- how well do they do on the whole? `mean_bootstrap`, a mean over strata (tasks, suites) that are given, not drawn:
  episodes are resampled within each, and training runs too where an arm was trained several times.

Axis names: episode, run (a training of the same recipe with another seed), resample. Rates and differences are
fractions of one, differences are treated minus baseline.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from interp.errors import UsageError

Outcomes = Bool[np.ndarray, "run episode"]


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


def mean_bootstrap(
    treated: Sequence[Outcomes],
    baseline: Sequence[Outcomes] | None = None,
    *,
    layouts: Sequence[Hashable] | None = None,
    trainings: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean over strata of an arm's success rate, or of its difference to a baseline.

    Stratum k of both arms ran the same episodes in the same order. Strata weigh the same, whatever their size, and are
    not resampled: the interval speaks of these tasks, not of tasks as such. Episodes are resampled within a stratum,
    for both arms alike; the runs of an arm are resampled where it has several, so that the luck of training counts.
    With one run it does not, and nothing here can make up for that. R runs that are drawn with replacement spread too
    little by (R - 1) / R, which is half for two: what a resample's runs differ from their mean is widened by the root
    of its inverse (Davison and Hinkley 1997, 2.6.2; Rao and Wu 1988).

    Strata are not always independent: under several suites the same layouts are met, and the same trainings are tried.
    Strata with equal `layouts` draw the same episodes, strata with equal `trainings` the same runs; by default every
    stratum is on its own.
    """
    if not treated or any(arm.size == 0 for arm in treated):
        raise UsageError("mean over strata: needs at least one stratum, each with at least one episode")
    if baseline is not None and [a.shape[1] for a in treated] != [b.shape[1] for b in baseline]:
        raise UsageError("mean over strata: both arms must have the same strata with the same episodes")
    streams: dict[Hashable, int] = {}

    def counts(n: int, what: str, key: Hashable) -> Int[np.ndarray, "n resample"]:
        """How often each of n things is drawn in each resample: the same for the same key."""
        return _counts(n, resamples, seed, streams.setdefault((what, key, n), len(streams)))

    value, drawn = 0.0, np.zeros(resamples)
    arms = [(1, "treated", treated), *([(-1, "baseline", baseline)] if baseline is not None else [])]
    for sign, which, strata in arms:
        for k, outcomes in enumerate(strata):
            runs, episodes = outcomes.shape
            drawn_episodes = counts(episodes, "episodes", layouts[k] if layouts else k)
            drawn_runs: Sequence[Any] = [1]
            if runs > 1:
                key = trainings[k] if trainings else k
                drawn_runs = [
                    1 + (times - 1) * math.sqrt(runs / (runs - 1)) for times in counts(runs, which, key)
                ]
            for won, times in zip(outcomes, drawn_runs, strict=True):
                drawn += sign * times * drawn_episodes[won].sum(axis=0) / outcomes.size
            value += sign * float(outcomes.mean())
    tail = _tail(confidence)
    low, high = np.quantile(drawn / len(treated), [tail, 1 - tail])
    least = 0.0 if baseline is None else -1.0
    return Interval(value / len(treated), max(float(low), least), min(float(high), 1.0))


@lru_cache(maxsize=32)
def _counts(n: int, resamples: int, seed: int, stream: int) -> Int[np.ndarray, "n resample"]:
    """Drawing takes far longer than using what was drawn, and a comparison asks for hundreds of means."""
    rng = np.random.default_rng([seed, stream])
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.ascontiguousarray(drawn.T.astype(np.int32))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence}: must lie strictly between 0 and 1, for example 0.95")
    return (1 - confidence) / 2


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(1 - _tail(confidence))
