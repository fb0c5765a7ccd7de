"""Which heads arms trained, how many of them two sets share, and how many they would by chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from interp.heads import Head
from steering.results import Entry
from steering.stats import Interval


def head_sets(entries: Iterable[Entry], arm: str = "aligned", seed: int = 0) -> dict[str, frozenset[Head]]:
    """The heads that an arm trained, by task."""
    return {
        e.result.task: frozenset(map(Head.parse, e.result.heads))
        for e in entries
        if e.arm == arm and e.result.heads and e.result.settings.get("seed") == seed
    }


def shared_pairs(sets: Sequence[frozenset[Head]]) -> list[int]:
    return [len(a & b) for a, b in combinations(sets, 2)]


def chance_of_mean(sizes: Sequence[int], heads: int, draws: int = 4000, seed: int = 0) -> Interval:
    """Mean number of shared heads over all pairs of sets that are drawn at random: its mean, and 95 % of the draws."""
    rng = np.random.default_rng(seed)
    order = rng.random((draws, len(sizes), heads)).argsort(axis=-1).argsort(axis=-1)
    member = order < np.array(sizes)[None, :, None]
    shared = [(member[:, a] & member[:, b]).sum(axis=-1) for a, b in combinations(range(len(sizes)), 2)]
    mean = np.mean(shared, axis=0)
    expected = np.mean([a * b / heads for a, b in combinations(sizes, 2)])
    return Interval(float(expected), *map(float, np.quantile(mean, [0.025, 0.975])))


def expert_heads(entries: Iterable[Entry]) -> int | None:
    """Live heads of the action expert: all that `all-heads` trains."""
    counts = [len(e.result.heads) for e in entries if e.arm == "all-heads" and e.result.heads]
    return counts[0] if counts else None
