"""Stability of a ranking: would other demonstrations of the same task have chosen the same heads?

The episodes are split into two halves at random, many times; each half ranks the heads by itself, with neighbours
searched again within the half. Reported are

frequency   of each head: the share of half samples in which it is among the top n (HeadScores, higher is better)
agreement   of the two halves of a split, averaged over splits: Spearman's and Kendall's rank correlation of all heads'
            scores, and how many of the top n heads the halves share

Halves share no episode, so their agreement is what a second, equally small collection of demonstrations would give. It
says how far a ranking may be trusted, not whether it is right: a head may be first every time for a reason that has
nothing to do with the task.

Source: complementary pairs stability selection, Shah & Samworth (arXiv 1105.5578), after Meinshausen & Buehlmann.
Axis names: split, half (two a split), head (live heads of one tower).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from interp.errors import UsageError
from interp.knn import KnnSettings, Problem, grid
from interp.neighbours import errors
from interp.runs import Run
from interp.scores import HeadScores, Null, TowerScores, midranks
from interp.seeds import check_seed


def stability(
    run: Run,
    scores: HeadScores,
    *,
    n: int | None = None,
    splits: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> HeadScores:
    """How often each head is in the top n of half of the episodes. `scores` is a ranking of this run by `knn.rank`.

    Settings, k and n are the ranking's. `settings["agreement"]` has the mean and the central 95 % over splits of each
    measure, and what chance gives. The null is random ranks. A frequency has no interval: splits overlap.
    """
    settings = KnnSettings.of(scores)
    if scores.data != run.data or scores.policy != run.policy:
        raise UsageError(f"the scores are not of run {run.path}: rank it first")
    check_seed(seed)
    scored, agreement = {}, {}
    for tower, choice in scores.settings["chosen"].items():
        top = choice["n"] if n is None else n
        check_halving(run, [tower], top, splits)
        problem = Problem(run, tower, replace(settings, ks=(choice["k"],)))
        halves = _halves(problem.episode_place, splits, np.random.default_rng(seed))
        ranks = _ranks(_half_errors(problem, halves, progress))
        frequency = (ranks < top).mean(axis=(0, 1))
        agreement[tower] = _agreement(ranks, top)
        scored[tower] = TowerScores(
            value=grid(problem, frequency),
            null=_chance(len(problem.heads), top, 2 * splits, seed),
            dead=problem.spec.dead,
        )
    tops = sorted({choice["n"] if n is None else n for choice in scores.settings["chosen"].values()})
    return HeadScores(
        method=f"{scores.method}-stability",
        label=f"k-NN: how often in the top {'/'.join(map(str, tops))} of half of the demonstrations",
        units="share of half samples",
        higher_is_better=True,
        towers=scored,
        policy=run.policy,
        data=run.data,
        n=scores.n,
        settings={
            "splits": splits,
            "seed": seed,
            "n": {
                tower: choice["n"] if n is None else n for tower, choice in scores.settings["chosen"].items()
            },
            "k": {tower: choice["k"] for tower, choice in scores.settings["chosen"].items()},
            "agreement": agreement,
        },
    )


def check_halving(run: Run, towers: Iterable[str], n: int, splits: int) -> None:
    """Refuse what has no stability; also before the ranking itself."""
    if splits < 1:
        raise UsageError(f"splits must be at least 1, not {splits}")
    for tower in towers:
        heads = len(run.spec.tower(tower).live)
        if not 1 <= n < heads:
            raise UsageError(f"top {n}: tower {tower} has {heads} live heads, choose fewer to compare sets")
    episodes = len(np.unique(run.signals().episode))
    if episodes < 4:
        raise UsageError(
            f"stability needs at least 4 episodes, two for each half; the run has {episodes}: record more"
        )


def _halves(
    episode: Int[np.ndarray, " frame"], splits: int, rng: np.random.Generator
) -> list[tuple[Int[np.ndarray, " frame"], Int[np.ndarray, " frame"]]]:
    """Frames of two disjoint halves of the episodes; of an odd number, one episode sits out."""
    episodes = int(episode.max()) + 1
    found = []
    for _ in range(splits):
        order = rng.permutation(episodes)
        first, second = order[: episodes // 2], order[episodes // 2 : 2 * (episodes // 2)]
        found.append((np.flatnonzero(np.isin(episode, first)), np.flatnonzero(np.isin(episode, second))))
    return found


def _half_errors(
    problem: Problem, halves: list[tuple[np.ndarray, np.ndarray]], progress: bool
) -> Float[np.ndarray, "split half head"]:
    parts = []
    for half in (torch.from_numpy(frames) for pair in halves for frames in pair):
        valid = None if problem.valid is None else problem.valid[half]
        parts.append((half, problem.target[half], problem.folds.take(half), valid))

    def each_half(z: Float[Tensor, "frame d_head"]) -> list[float]:
        return [
            float(
                errors(z[half], target, folds, problem.settings.ks, valid, problem.settings.metric).nanmean()
            )
            for half, target, folds, valid in parts
        ]

    found = problem.map(each_half, "stability", progress)
    return np.array(found).T.reshape(len(halves), 2, -1)


def _ranks(values: Float[np.ndarray, "*axes head"]) -> Int[np.ndarray, "*axes head"]:
    """0 for the lowest; ties in order."""
    return values.argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable")


def _agreement(ranks: Int[np.ndarray, "split half head"], top: int) -> Mapping[str, Any]:
    first, second = ranks[:, 0], ranks[:, 1]
    heads = ranks.shape[2]
    measures = {
        "spearman": (np.array([spearman(a, b) for a, b in zip(first, second, strict=True)]), 0.0),
        "kendall": (np.array([kendall(a, b) for a, b in zip(first, second, strict=True)]), 0.0),
        "shared": (((first < top) & (second < top)).sum(axis=1), top * top / heads),
    }
    return {
        name: {
            "mean": float(values.mean()),
            "low": float(np.quantile(values, 0.025)),
            "high": float(np.quantile(values, 0.975)),
            "chance": chance,
        }
        for name, (values, chance) in measures.items()
    }


def spearman(a: Shaped[np.ndarray, " head"], b: Shaped[np.ndarray, " head"]) -> float:
    """Rank correlation; heads that are tied share the mean of their ranks."""
    return float(np.corrcoef(midranks(a), midranks(b))[0, 1])


def kendall(a: Int[np.ndarray, " head"], b: Int[np.ndarray, " head"]) -> float:
    """Share of pairs of heads in the same order, less the share in opposite order (tau-a)."""
    upper = np.triu_indices(len(a), k=1)
    return float(np.mean(np.sign(a[upper[0]] - a[upper[1]]) * np.sign(b[upper[0]] - b[upper[1]])))


def _chance(heads: int, top: int, samples: int, seed: int, repeats: int = 200) -> Null:
    """Frequencies of heads that are ranked at random in every half sample."""
    rng = np.random.default_rng(seed)
    ranks = _ranks(rng.random((repeats, samples, heads)))
    frequency = (ranks < top).mean(axis=1)
    low, high = np.quantile(frequency, [0.025, 0.975])
    return Null(top / heads, float(low), float(high), float(frequency.max(axis=1).mean()))
