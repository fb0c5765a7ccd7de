"""How sure a success rate is: Wilson intervals and paired bootstrap of differences.

Rollouts are pass or fail, and arms are compared on the *same* initial states (episode i of every arm starts
from seed `seed0 + i`), so three questions arise:

- how well is one arm's success rate known? `wilson`, the score interval of Wilson (JASA 1927), which keeps
  its coverage at the small n and extreme rates of robot evaluations, unlike p +- 1.96 sqrt(p(1-p)/n);
- how much better is one arm than another? `paired_bootstrap`, which resamples *episodes*, never arms
  separately: a layout that is hard for both arms says nothing about their difference. Where few layouts tell the arms
  apart there is little to resample, so no interval of a difference is tighter than Newcombe's score interval of paired
  rates (method 10 of Statistics in Medicine 17, 1998): four failures against none are not yet a difference;
- how well do they do on the whole? `mean_bootstrap`, a mean over strata (tasks, suites) that are given, not drawn:
  episodes are resampled within each, and the luck of training (`steering.luck`) is added where an arm was trained
  several times.

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
from steering.luck import Part, widest

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
    [resamples, episode] array.
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
    value = float(difference.mean())
    arms = [np.asarray([arm], bool) for arm in (treated, baseline)]
    below, above = _score_margins([arms[0]], [arms[1]], confidence)
    return Interval(value, min(float(low), value - below), max(float(high), value + above))


def mean_bootstrap(
    treated: Sequence[Outcomes],
    baseline: Sequence[Outcomes] | None = None,
    *,
    layouts: Sequence[Hashable] | None = None,
    trainings: Sequence[Hashable] | None = None,
    seeds: Sequence[tuple[Sequence[Hashable], Sequence[Hashable]]] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over strata of an arm's success rate, or of its difference to a baseline.

    Stratum k of both arms ran the same episodes in the same order. Strata weigh the same, whatever their size, and are
    not resampled: the interval speaks of these tasks, not of tasks as such. Episodes are resampled within a stratum,
    for both arms and all their runs alike. The luck of training (`steering.luck`) is added where an arm has several
    runs, as a normal draw a resample; with one run nothing here can make up for it.

    Strata are not always independent: under several suites the same layouts are met, and the same trainings are tried.
    Strata with equal `layouts` draw the same episodes, strata with equal `trainings` have the same luck; by default
    every stratum is on its own. `seeds` are those that the runs of both arms were trained from, by stratum. Runs of
    the same seeds had the same demonstrations and are compared seed by seed: what both arms owe to a seed is no
    difference between them. By default runs of unlike arms have nothing to do with each other.
    """
    if not treated or any(arm.size == 0 for arm in treated):
        raise UsageError("mean over strata: needs at least one stratum, each with at least one episode")
    if baseline is not None and [a.shape[1] for a in treated] != [b.shape[1] for b in baseline]:
        raise UsageError("mean over strata: both arms must have the same strata with the same episodes")
    tail, strata = _tail(confidence), len(treated)
    parts = [part for k in range(strata) for part in _parts(k, treated, baseline, layouts, trainings, seeds)]
    value = sum(float(part.values.mean()) for part in parts) / strata
    of_layout: dict[tuple[Hashable, int], Any] = {}
    for part in parts:
        met = part.layout, part.values.shape[1]
        of_layout[met] = of_layout.get(met, 0.0) + part.values.mean(axis=0) / part.values.shape[1] / strata
    drawn = np.zeros(resamples)
    for stream, ((_, n), episode) in enumerate(of_layout.items()):
        drawn += episode @ _counts(n, resamples, seed, stream)
    of_episodes = float(drawn.var())
    luck = widest(parts, strata, of_episodes, tail)
    drawn += math.sqrt(luck.variance) * np.random.default_rng([seed, len(of_layout)]).standard_normal(
        resamples
    )
    spread = luck.spread(of_episodes, tail) / _quantile(confidence)
    low, high = value + spread * (np.quantile(drawn, [tail, 1 - tail]) - value)
    if baseline is None:
        return Interval(value, max(float(low), 0.0), min(float(high), 1.0))
    groups: dict[Hashable, list[int]] = {}
    for k in range(strata):
        groups.setdefault((layouts[k] if layouts else k, treated[k].shape[1]), []).append(k)
    margins = [
        np.array(_score_margins([treated[k] for k in group], [baseline[k] for k in group], confidence))
        * (len(group) / strata)
        for group in groups.values()
    ]
    below, above = np.sqrt(np.square(margins).sum(axis=0))
    return Interval(
        value, max(float(min(low, value - below)), -1.0), min(float(max(high, value + above)), 1.0)
    )


def _score_margins(
    treated: Sequence[Outcomes], baseline: Sequence[Outcomes], confidence: float
) -> tuple[float, float]:
    """How far below and above the difference of two paired rates Newcombe's interval reaches.

    The strata met the same layouts. Rollouts that an arm shares between strata, as the base does that is rolled out
    once, count once.
    """
    rates, below, above = [], [], []
    for arm in (treated, baseline):
        n = np.unique(np.concatenate(arm), axis=0).size
        rate = float(np.mean([each.mean() for each in arm]))
        known = wilson(min(round(rate * n), n), n, confidence)
        rates.append(np.concatenate([each.mean(axis=0) for each in arm]))
        below.append(known.value - known.low)
        above.append(known.high - known.value)
    spreads = float(rates[0].std() * rates[1].std())
    covariance = float(np.mean((rates[0] - rates[0].mean()) * (rates[1] - rates[1].mean())))
    if covariance > 0:  # his continuity correction: arms that agreed on all n episodes need not always agree
        covariance = max(covariance - 0.5 / len(rates[0]), 0.0)
    together = covariance / spreads if spreads else 0.0
    low, high = (
        math.sqrt(max(a * a - 2 * together * a * b + b * b, 0.0))
        for a, b in ((below[0], above[1]), (above[0], below[1]))
    )
    return low, high


def _parts(
    k: int,
    treated: Sequence[Outcomes],
    baseline: Sequence[Outcomes] | None,
    layouts: Sequence[Hashable] | None,
    trainings: Sequence[Hashable] | None,
    seeds: Sequence[tuple[Sequence[Hashable], Sequence[Hashable]]] | None,
) -> list[Part]:
    arms = {"treated": treated[k].astype(float)}
    if baseline is not None:
        arms["baseline"] = -baseline[k].astype(float)
    of = [tuple(each) for each in seeds[k]] if seeds else [tuple(range(len(arm))) for arm in arms.values()]
    for arm, labels in zip(arms.values(), of, strict=False):
        if len(labels) != len(arm) or len(set(labels)) < len(arm):
            raise UsageError(
                f"mean over strata: {len(arm)} runs of seeds {list(labels)}: name each run's, once"
            )
    if seeds and baseline is not None and of[0] == of[1]:
        arms, of = {"both": arms["treated"] + arms["baseline"]}, of[:1]
    return [
        Part(which, values, labels, layouts[k] if layouts else k, trainings[k] if trainings else k)
        for (which, values), labels in zip(arms.items(), of, strict=False)
    ]


@lru_cache(maxsize=32)
def _counts(n: int, resamples: int, seed: int, stream: int) -> Int[np.ndarray, "n resample"]:
    """How often each of n things is drawn in each resample. Drawing takes far longer than using what was drawn, and a
    comparison asks for hundreds of means."""
    rng = np.random.default_rng([seed, stream])
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.ascontiguousarray(drawn.T.astype(np.int32))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence}: must lie strictly between 0 and 1, for example 0.95")
    return (1 - confidence) / 2


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(1 - _tail(confidence))
