"""The published head selection, written down straight: what benchmarks/knn.py compares with, in time and in values.

Robotic Steering (Mitra et al., arXiv 2511.22697; its released JAX/numpy code), for one tower: every evaluation of a
set of heads at one k stands alone. For each episode left out, the set's z are concatenated, the rest of the frames is
the bank, both are normalised, the cosine distances to the bank are computed (numpy, float32), the k nearest are
selected and sorted, and their actions averaged with weights 1 / distance. Nothing is kept between heads, between
values of k, or between the candidates of greedy selection.

`at_once` says how many frames of the episode are predicted together: 1 is the procedure as the paper states it, frame
by frame; None is all of them, which is as much vectorisation as the released code has.

Axis names: frame, head, d_head, action; query (frames of the episode left out), bank (all others), k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

NEAR = 1e-8


def unit(x: Float[np.ndarray, "frame d"]) -> Float[np.ndarray, "frame d"]:
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + NEAR)


def predict(
    distance: Float[np.ndarray, "query bank"], action: Float[np.ndarray, "bank action"], k: int
) -> Float[np.ndarray, "query action"]:
    k = min(k, distance.shape[1])
    near = np.argpartition(distance, k - 1, axis=1)[:, :k]
    near = np.take_along_axis(near, np.take_along_axis(distance, near, axis=1).argsort(axis=1), axis=1)
    away = np.take_along_axis(distance, near, axis=1)
    weight = 1 / (away + NEAR)
    mean = ((weight / weight.sum(axis=1, keepdims=True))[:, :, None] * action[near]).sum(axis=1)
    twins = away[:, 0] < NEAR
    mean[twins] = action[near[twins, 0]]
    return mean


def error(
    z: Float[np.ndarray, "frame head d_head"],
    action: Float[np.ndarray, "frame action"],
    episode: Int[np.ndarray, " frame"],
    heads: Sequence[int],
    k: int,
    at_once: int | None = None,
) -> float:
    """Mean squared error of predicting every frame from the other episodes, from these heads together."""
    x = z[:, list(heads)].reshape(len(z), -1)
    total = 0.0
    for left_out in np.unique(episode):
        test = episode == left_out
        query, bank, truth, known = unit(x[test]), unit(x[~test]), action[test], action[~test]
        step = at_once or len(query)
        for start in range(0, len(query), step):
            rows = slice(start, start + step)
            predicted = predict(1 - query[rows] @ bank.T, known, k)
            total += float(((predicted - truth[rows]) ** 2).mean(axis=1).sum())
    return total / len(z)


def rank(
    z: Float[np.ndarray, "frame head d_head"],
    action: Float[np.ndarray, "frame action"],
    episode: Int[np.ndarray, " frame"],
    ks: Sequence[int],
    at_once: int | None = None,
) -> dict[int, list[tuple[float, int]]]:
    """For every k, (error, head) of every head, best first."""
    heads = range(z.shape[1])
    return {k: sorted((error(z, action, episode, [head], k, at_once), head) for head in heads) for k in ks}


def topk(
    z: Float[np.ndarray, "frame head d_head"],
    action: Float[np.ndarray, "frame action"],
    episode: Int[np.ndarray, " frame"],
    ranked: dict[int, list[tuple[float, int]]],
    n: int,
    at_once: int | None = None,
) -> tuple[float, int, list[int]]:
    """For every k the n best heads together: (error, k, heads) of the best k."""
    sets = {k: [head for _, head in order[:n]] for k, order in ranked.items()}
    return min((error(z, action, episode, heads, k, at_once), k, heads) for k, heads in sets.items())


def best_add(
    z: Float[np.ndarray, "frame head d_head"],
    action: Float[np.ndarray, "frame action"],
    episode: Int[np.ndarray, " frame"],
    ks: Sequence[int],
    n: int,
) -> tuple[float, int, list[int]]:
    """For every k, add the head that lowers the joint error most until there are n: (error, k, heads) of the best k."""
    found = []
    for k in ks:
        chosen: list[int] = []
        lowest = np.inf
        while len(chosen) < n:
            left = [head for head in range(z.shape[1]) if head not in chosen]
            lowest, best = min((error(z, action, episode, [*chosen, head], k), head) for head in left)
            chosen.append(best)
        found.append((lowest, k, chosen))
    return min(found)
