"""How long trainings take, one arm against another.

Seconds are the processor's: other jobs shared the machine, and a training that had to wait for them says nothing of its
own cost. Load slows the processor, too, and trainings of one seed ran together, under one load. So a seed's trainings
are one observation, however many they are, and the interval is over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from steering.results import IN_DOMAIN, Entry
from steering.stats import Interval


def time_ratios(entries: Iterable[Entry], slower: str, faster: str) -> dict[int, list[float]]:
    """Processor seconds of one arm's training over another's, of the same task and seed, by seed."""
    seconds: dict[str, dict[tuple[int, str], float]] = {slower: {}, faster: {}}
    for e in entries:
        if e.arm in seconds and e.result.suite == IN_DOMAIN and e.result.seconds.get("train_processor"):
            seconds[e.arm][e.result.settings["seed"], e.result.task] = e.result.seconds["train_processor"]
    ratios: dict[int, list[float]] = {}
    for seed, task in sorted(seconds[slower].keys() & seconds[faster].keys()):
        ratios.setdefault(seed, []).append(seconds[slower][seed, task] / seconds[faster][seed, task])
    return ratios


def mean_over_seeds(ratios: Mapping[int, Sequence[float]]) -> Interval:
    """Mean of the seeds' means, all of them geometric."""
    return mean_of_logs([float(np.exp(np.log(of_seed).mean())) for of_seed in ratios.values()])


def mean_of_logs(ratios: Sequence[float]) -> Interval:
    """Geometric mean of ratios with Student's 95 % interval; a single one has none."""
    logs = np.log(ratios)
    mean, n = float(logs.mean()), len(logs)
    half = float(stdtrit(n - 1, 0.975) * logs.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    return Interval(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)))
