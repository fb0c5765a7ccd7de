"""Do the methods agree? Rankings of the same heads by several methods, compared with each other and with chance. Pure.

spearman   rank correlation with ties by mid-ranks; 95 % interval by Fisher's z with the variance of Bonett & Wright
           (Psychometrika 65, 2000), (1 + r^2 / 2) / (n - 3)
overlap    heads that two top-k sets share; by chance a hypergeometric number, of which mean, central 95 % and the
           probability of at least as many are given
memberships  heads by the exact group of methods that have them among their best k (an UpSet's columns)

All comparisons are over the heads that every method scored, so that rank 7 means the same everywhere.
Axis names: method, head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import atanh, sqrt, tanh

import numpy as np
from jaxtyping import Float, Int

from app.views import STABILITY, is_stability, ordered
from interp.heads import Head
from interp.overlap import at_least, chance
from interp.scores import HeadScores, midranks

Z95 = 1.959963984540054
APPROXIMATE = ("atp", "attribution", "ig")
EXACT = ("patching",)


@dataclass(frozen=True)
class Rankings:
    """Heads that every method scored, and their rank by each method (1 is best; ties in order of layer and index)."""

    methods: tuple[str, ...]
    heads: tuple[Head, ...]
    rank: Int[np.ndarray, "method head"]
    score: Float[np.ndarray, "method head"]
    better_up: tuple[bool, ...]

    @property
    def n(self) -> int:
        return len(self.heads)

    def top(self, method: int, k: int) -> set[Head]:
        return {head for head, rank in zip(self.heads, self.rank[method], strict=True) if rank <= k}


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of two methods, by their places in `Rankings.methods`."""

    a: int
    b: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Overlap:
    """Heads that two top-k sets share, beside what chance would give; `p` is of at least as many by chance."""

    a: int
    b: int
    shared: int
    expected: float
    low: int
    high: int
    p: float


@dataclass(frozen=True)
class Membership:
    """Heads that exactly these methods have among their best k."""

    methods: tuple[int, ...]
    heads: tuple[Head, ...]


def files_of(scores: Mapping[str, HeadScores], tower: str, factor: str | None) -> dict[str, HeadScores]:
    """Score files to compare: those of the factor and, of methods that have none for it, those without a factor."""
    there = {
        file: one
        for file, one in ordered(scores).items()
        if not is_stability(one) and tower in one.towers and _any(one, tower)
    }
    ours = {file: one for file, one in there.items() if one.factor == factor}
    if factor is None:
        return ours
    have = {one.method for one in ours.values()}
    plain = {file: one for file, one in there.items() if one.factor is None and one.method not in have}
    return {**ours, **plain}


def rankings(scores: Mapping[str, HeadScores], tower: str) -> Rankings:
    """All `scores` have the tower."""
    scored = [set(one.ranked(tower)) for one in scores.values()]
    heads = sorted(set.intersection(*scored)) if scored else []
    rank = np.zeros((len(scores), len(heads)), dtype=int)
    score = np.zeros((len(scores), len(heads)))
    place = {head: i for i, head in enumerate(heads)}
    for m, one in enumerate(scores.values()):
        ordered = [head for head in one.ranked(tower) if head in place]
        for r, head in enumerate(ordered, start=1):
            rank[m, place[head]] = r
            score[m, place[head]] = one.score(head)
    better_up = tuple(one.higher_is_better for one in scores.values())
    return Rankings(tuple(scores), tuple(heads), rank, score, better_up)


def spearman(a: Float[np.ndarray, " head"], b: Float[np.ndarray, " head"]) -> tuple[float, float, float]:
    """Correlation of the ranks and its 95 % interval; NaN where one side does not vary."""
    x, y = midranks(a), midranks(b)
    if x.std() == 0 or y.std() == 0:
        return float("nan"), float("nan"), float("nan")
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if len(x) < 4:
        return r, -1.0, 1.0
    if abs(r) > 1 - 1e-12:
        return r, r, r
    half = Z95 * sqrt((1 + r * r / 2) / (len(x) - 3))
    return r, tanh(atanh(r) - half), tanh(atanh(r) + half)


def correlations(ranks: Rankings) -> list[Correlation]:
    sign = np.where(ranks.better_up, 1.0, -1.0)[:, None]
    oriented = sign * ranks.score
    return [
        Correlation(a, b, *spearman(oriented[a], oriented[b]))
        for a, b in combinations(range(len(ranks.methods)), 2)
    ]


def overlaps(ranks: Rankings, k: int) -> list[Overlap]:
    expected, low, high = chance(ranks.n, k)
    out = []
    for a, b in combinations(range(len(ranks.methods)), 2):
        shared = len(ranks.top(a, k) & ranks.top(b, k))
        out.append(Overlap(a, b, shared, expected, low, high, at_least(shared, ranks.n, k)))
    return out


def memberships(ranks: Rankings, k: int) -> list[Membership]:
    """Largest group first, then that of more methods."""
    groups: dict[tuple[int, ...], list[Head]] = {}
    for i, head in enumerate(ranks.heads):
        inside = tuple(np.nonzero(ranks.rank[:, i] <= k)[0].tolist())
        if inside:
            groups.setdefault(inside, []).append(head)
    made = [Membership(methods, tuple(heads)) for methods, heads in groups.items()]
    return sorted(made, key=lambda m: (-len(m.heads), -len(m.methods), m.methods))


def stability(scores: Mapping[str, HeadScores], tower: str) -> dict[str, HeadScores]:
    """Files that say how often a head is among the best k when the demonstrations are resampled."""
    return {file: one for file, one in scores.items() if is_stability(one) and tower in one.towers}


def judged(one: HeadScores) -> str:
    """The method whose stability this is."""
    return one.method.removesuffix(STABILITY)


def checks(scores: Mapping[str, HeadScores], tower: str) -> list[tuple[str, str]]:
    """(exact, approximate) score files that measure the same: the same factor and direction."""
    there = {file: one for file, one in scores.items() if tower in one.towers and not is_stability(one)}
    exact = {file: one for file, one in there.items() if _kind(one) in EXACT}
    rough = {file: one for file, one in there.items() if _kind(one) in APPROXIMATE}
    return [
        (a, b)
        for a, one in exact.items()
        for b, other in rough.items()
        if one.factor == other.factor and _variant(one) == _variant(other)
    ]


def reading(ranks: Rankings, k: int) -> list[str]:
    """The comparison in plain words. A pair agrees if it shares more heads than 97.5 % of random pairs would."""
    if len(ranks.methods) < 2:
        return []
    by_pair = {(o.a, o.b): o for o in overlaps(ranks, k)}
    rho = [c for c in correlations(ranks) if np.isfinite(c.value)]
    if not rho:
        return ["The scores do not vary: there is nothing to correlate."]
    names = ranks.methods
    most, least = max(rho, key=lambda c: c.value), min(rho, key=lambda c: c.value)

    def told(c: Correlation) -> str:
        o = by_pair[c.a, c.b]
        return (
            f"**{names[c.a]}** and **{names[c.b]}** (ρ = {c.value:.2f}, 95 % {c.low:.2f} to {c.high:.2f}; "
            f"{o.shared} of the best {k} in common, chance {o.expected:.1f})"
        )

    out = [f"Most alike: {told(most)}." + (f" Least alike: {told(least)}." if len(rho) > 1 else "")]
    above = [o for o in by_pair.values() if o.shared > o.high]
    if len(above) == len(by_pair):
        out.append(f"Every pair shares more of its best {k} heads than chance would give.")
    else:
        apart = [f"{names[o.a]} and {names[o.b]}" for o in by_pair.values() if o.shared <= o.high]
        some = "; ".join(apart[:4]) + (f"; and {len(apart) - 4} more" if len(apart) > 4 else "")
        out.append(f"No more in common than chance gives: {some}.")
    every = [m for m in memberships(ranks, k) if len(m.methods) == len(names)]
    heads = every[0].heads if every else ()
    if len(names) > 2:
        said = ", ".join(f"L{h.layer}H{h.index}" for h in heads[:8]) + (", …" if len(heads) > 8 else "")
        out.append(
            f"Among the best {k} of every method: {said}." if heads else f"No head is among all the best {k}."
        )
    return out


def _any(one: HeadScores, tower: str) -> bool:
    return bool(np.isfinite(one.tower(tower).value).any())


def _kind(one: HeadScores) -> str:
    return one.method.split("-")[0]


def _variant(one: HeadScores) -> tuple[str, str | None]:
    return one.method.partition("-")[2], one.settings.get("kind")
