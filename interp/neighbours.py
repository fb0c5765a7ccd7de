"""k-nearest-neighbour regression that leaves out a whole episode, on arrays.

Axis names: frame (rows of z and of the target), query (a block of frames), k (neighbours, nearest first), dim
(of the target).

The prediction for a frame is the mean of its k nearest frames' targets, weighted by 1 / (distance + 1e-8); the
distance is 1 - cosine (or, to compare, Euclidean). A neighbour closer than 1e-8, a twin, is taken alone. Neighbours
come from other episodes or, when there is only one episode, from frames more than `window` steps away; a frame that
has no such neighbour has no error (NaN) and does not count.

One distance matrix serves every k. For unit vectors 1 - cos(a, b) = |a - b|^2 / 2, and |a - b| does not change
when the mean is subtracted from both: that keeps float32 accurate when all vectors point nearly the same way, as
attention outputs at one token do. `nearest` computes rows with very near neighbours, or with ties at the k-th place,
again in float64. `JointDistances` puts only the ties in order. Its errors are right to 1e-5 where neighbours lie
at 1e-3 of the typical distance or more, up to some per cent off at 1e-5 of it, and by half at 1e-7.

Why numpy in a torch project: its partition (SIMD quickselect) finds the k nearest eight times faster than
`torch.topk` on a CPU, and its X @ X.T computes only half of the symmetric product (benchmarks/knn.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from interp.errors import UsageError

TWIN = 1e-8
_REFINE = 1e-3
"""Distances below this share of the typical one are computed again in float64 ..."""
_TIE = 2e-6
"""... and so are rows whose k-th and next neighbour differ by less than this share: float32 may swap them."""
_BLOCK_BYTES = 64 * 2**20

Distances = Float32[np.ndarray, "query frame"]
Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class Folds:
    """Who may be whose neighbour."""

    episode: Int[Tensor, " frame"]
    frame: Int[Tensor, " frame"]
    window: int = 30

    def __post_init__(self) -> None:
        if not len(self.episode):
            raise UsageError("no frames to compare")
        if self.single and int(self.frame.max() - self.frame.min()) <= self.window:
            raise UsageError(
                f"a single episode of {len(self.frame)} frames: leaving out +-{self.window} frames leaves nothing "
                "to compare with; give more episodes or a smaller window"
            )

    @property
    def single(self) -> bool:
        return bool((self.episode == self.episode[0]).all())

    def __len__(self) -> int:
        return len(self.episode)

    def take(self, frames: Int[Tensor, " chosen"]) -> "Folds":
        """Of some of the frames."""
        return Folds(self.episode[frames], self.frame[frames], self.window)

    def forbidden(self, rows: slice) -> Bool[Tensor, "query frame"]:
        if self.single:
            return (self.frame[rows, None] - self.frame[None]).abs() <= self.window
        return self.episode[rows, None] == self.episode[None]

    def penalty(self, rows: slice) -> Distances:
        """Infinity between frames that may not be neighbours, else 0: added to distances, it rules them out."""
        if len(self) > self.rows_per_block:
            return self._penalty(rows)
        return self._whole_penalty[rows]

    def _penalty(self, rows: slice) -> Distances:
        return np.where(self.forbidden(rows).numpy(), np.float32(np.inf), np.float32(0))

    @cached_property
    def _whole_penalty(self) -> Distances:
        return self._penalty(slice(0, len(self)))

    @property
    def rows_per_block(self) -> int:
        return max(1, _BLOCK_BYTES // (4 * len(self)))

    def blocks(self) -> Iterator[slice]:
        """Query blocks whose distance matrices fit the memory budget."""
        size = self.rows_per_block
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


@dataclass(frozen=True)
class Neighbours:
    """The nearest frames of every query, nearest first. Missing ones have distance infinity, hence no weight."""

    index: Int[Tensor, "query k"]
    distance: Float[Tensor, "query k"]  # float64

    def weights(self, k: int) -> Float[Tensor, "query k"]:
        """Of the k nearest, summing to one."""
        distance = self.distance[:, :k]
        weight = 1 / (distance + TWIN)
        weight /= weight.sum(dim=1, keepdim=True)
        twins = distance[:, 0] < TWIN
        if twins.any():
            weight[twins] = torch.eye(1, weight.shape[1], dtype=weight.dtype)
        return weight

    def predict(self, target: Float[Tensor, "frame dim"], k: int) -> Float[Tensor, "query dim"]:
        # A weighted sum of rows, without gathering them first.
        return torch.nn.functional.embedding_bag(
            self.index[:, :k], target, per_sample_weights=self.weights(k), mode="sum"
        )


def unit(z: Float[Tensor, "frame d_head"]) -> Float[Tensor, "frame d_head"]:
    """Directions, in float64. A zero vector stays zero and is then at distance 1 from everything."""
    z = z.double()
    return z / z.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def nearest(
    z: Float[Tensor, "frame d"], folds: Folds, ks: Sequence[int], metric: Metric = "cosine"
) -> Iterator[tuple[slice, Neighbours]]:
    """The max(ks) nearest allowed frames of every frame, block by block; the first k are right for each of the ks."""
    cosine = metric == "cosine"
    points = unit(z) if cosine else z.double()
    zero = (points.norm(dim=1) == 0).numpy() & cosine
    centred, half = _centred(points)
    typical = 2 * float(half.mean())
    for rows in folds.blocks():
        squares = _half_squared_distances(centred, half, rows, folds.penalty(rows))
        if zero.any():
            mask = (zero[rows, None] | zero[None]) & np.isfinite(squares)
            squares[mask] = np.broadcast_to(1 - half[rows, None], squares.shape)[mask]
        found = _take_nearest(squares, max(ks) + 1, torch.from_numpy(half[rows]))
        doubtful = found.distance[:, 0] < _REFINE * typical
        for k in ks:
            if k < found.distance.shape[1]:
                doubtful |= found.distance[:, k] - found.distance[:, k - 1] < _TIE * typical
        refined = _refined(found, points, rows, doubtful)
        distance = refined.distance if cosine else (2 * refined.distance).sqrt()
        yield rows, Neighbours(refined.index[:, : max(ks)], distance[:, : max(ks)])


def _centred(
    z: Float[Tensor, "frame d"],
) -> tuple[Float32[np.ndarray, "frame d"], Float32[np.ndarray, " frame"]]:
    """Vectors around their mean, and half of their squared lengths."""
    z = z.double()
    centred = (z - z.mean(dim=0)).float()
    return centred.numpy(), (centred.double().square().sum(dim=1) / 2).float().numpy()


def _half_squared_distances(
    centred: Float32[np.ndarray, "frame d"],
    half: Float32[np.ndarray, " frame"],
    rows: slice,
    penalty: Distances,
) -> Distances:
    """|a - b|^2 / 2 + penalty, less half of the query's own squared length, which does not change a row's order."""
    distance = centred[rows] @ centred.T
    np.subtract(half, distance, out=distance)
    return np.add(distance, penalty, out=distance)


def _take_nearest(distance: Distances, k: int, offset: Float[Tensor, " query"]) -> Neighbours:
    """The k smallest of each row, in order; `offset` is added to the distances of a row."""
    k = min(k, distance.shape[1])
    bound = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
    within = np.flatnonzero(distance <= bound)
    if len(within) == len(distance) * k:
        index = rearrange(within, "(query k) -> query k", k=k) % distance.shape[1]
    else:  # ties at the bound: any of them will do
        index = np.argpartition(distance, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(distance, index, axis=1)
    order = values.argsort(axis=1)
    sorted_values = torch.from_numpy(np.take_along_axis(values, order, axis=1)).double()
    sorted_index = torch.from_numpy(np.take_along_axis(index, order, axis=1))
    return Neighbours(sorted_index, (sorted_values + offset.double()[:, None]).clamp_min(0))


def _refined(
    found: Neighbours, points: Float[Tensor, "frame d"], rows: slice, doubtful: Bool[Tensor, " query"]
) -> Neighbours:
    """The distances of doubtful rows again, exactly, and sorted again."""
    if not doubtful.any():
        return found
    distance, index = found.distance.clone(), found.index.clone()
    for part in doubtful.nonzero().squeeze(1).split(256):
        here = points[rows][part][:, None] - points[index[part]]
        exact = here.square().sum(dim=2) / 2
        exact[distance[part].isinf()] = torch.inf
        order = exact.argsort(dim=1, stable=True)
        distance[part] = exact.gather(1, order)
        index[part] = index[part].gather(1, order)
    return Neighbours(index, distance)


def squared_error(
    prediction: Float[Tensor, "query dim"],
    target: Float[Tensor, "query dim"],
    valid: Bool[Tensor, "query dim"] | None = None,
) -> Float[Tensor, " query"]:
    """Mean over the target's dimensions, or over the valid ones of each query."""
    square = (prediction - target).square()
    if valid is None:
        return square.mean(dim=1)
    return (square * valid).sum(dim=1) / valid.sum(dim=1)


def errors(
    z: Float[Tensor, "frame d"],
    target: Float[Tensor, "frame dim"],
    folds: Folds,
    ks: Sequence[int],
    valid: Bool[Tensor, "frame dim"] | None = None,
    metric: Metric = "cosine",
) -> Float[Tensor, "k frame"]:
    """The squared error of every frame's prediction, for every k; NaN for frames that nothing may predict."""
    found = torch.empty(len(ks), len(folds), dtype=torch.float64)
    for rows, neighbours in nearest(z, folds, ks, metric):
        for at, k in enumerate(ks):
            prediction = neighbours.predict(target, k)
            found[at, rows] = squared_error(prediction, target[rows], None if valid is None else valid[rows])
    return found


class JointDistances:
    """Distances between frames in the space of several heads together, cheap to extend by one head.

    Heads are concatenated, so squared Euclidean distances add up over heads; with the lengths a and b of two
    concatenated vectors, 1 - cos = (|x - y|^2 - (a - b)^2) / (2 a b).
    """

    SHARED, WORKING = 2, 4
    """Matrices [frame, frame] that stay, and that trying one head takes, at most."""

    def __init__(self, z: Float[Tensor, "frame head d_head"], folds: Folds, budget: int) -> None:
        self.folds = folds
        self.z = z
        self.squares = z.double().square().sum(dim=2)
        self.parts = [_centred(z[:, head]) for head in range(z.shape[1])]
        heads, frames = len(self.parts), len(folds)
        matrices = budget // (4 * frames * frames)
        if matrices < self.SHARED + self.WORKING:
            needed = (self.SHARED + self.WORKING) * 4 * frames * frames
            raise UsageError(
                f"joint distances of {frames} frames need {needed / 2**30:.1f} GiB, the budget is "
                f"{budget / 2**30:.1f}: use fewer episodes or a larger budget"
            )
        self.workers = min(torch.get_num_threads(), (matrices - self.SHARED) // self.WORKING)
        self.penalty = folds.penalty(slice(0, frames))
        fits = heads + self.SHARED + self.workers * self.WORKING <= matrices
        self.stored = [self._one(head) for head in range(heads)] if fits else None
        self.clear()

    def clear(self) -> None:
        """No heads added."""
        self.added: list[int] = []
        self.sum = self.penalty.copy()
        self.lengths = torch.zeros(len(self.folds), dtype=torch.float64)

    def _one(self, head: int) -> Float32[np.ndarray, "frame frame"]:
        """|x - y|^2 / 2; infinite between frames that may not be neighbours."""
        centred, half = self.parts[head]
        distance = _half_squared_distances(centred, half, slice(0, len(self.folds)), self.penalty)
        return np.add(distance, half[:, None], out=distance)

    def of(self, head: int) -> Float32[np.ndarray, "frame frame"]:
        return self._one(head) if self.stored is None else self.stored[head]

    def add(self, head: int) -> None:
        self.added.append(head)
        self.sum += self.of(head)
        self.lengths += self.squares[:, head]

    def error(self, head: int, target: Float[Tensor, "frame dim"], k: int, valid: Tensor | None) -> float:
        """Mean squared error if `head` joined the heads added so far."""
        one = self.of(head)
        # Lengths over sqrt(2), because sums and matrices hold half squared distances.
        length = ((self.lengths + self.squares[:, head]) / 2).sqrt().float().numpy()
        silent = length == 0
        scale = np.where(silent, 1, length)
        inverse = (1 / scale).astype(np.float32)
        distance = self.sum + one
        gap = length[:, None] - length[None]
        gap *= gap
        distance -= gap
        # A query's own length scales its whole row: it matters for the weights, not for the order.
        distance *= inverse
        if silent.any():
            mask = (silent[:, None] | silent[None]) & np.isfinite(distance)
            distance[mask] = np.broadcast_to(2 * scale[:, None], distance.shape)[mask]
        found = _take_nearest(distance, k + 1, torch.zeros(len(distance)))
        found = replace(found, distance=found.distance * torch.from_numpy(inverse / 2)[:, None])
        if k < found.index.shape[1]:
            spread = sum(2 * float(self.parts[each][1].mean()) for each in (*self.added, head))
            self._settle_ties(found, head, k, _TIE * spread * float((inverse**2).mean()) / 2)
        return float(squared_error(found.predict(target, k), target, valid).nanmean())

    def _settle_ties(self, found: Neighbours, head: int, k: int, tie: float) -> None:
        """Puts the k-th and the next neighbour in their exact order where they are closer than `tie`, in place."""
        rows = (found.distance[:, k] - found.distance[:, k - 1] < tie).nonzero().squeeze(1)
        heads = [*self.added, head]
        here = unit(rearrange(self.z[rows][:, heads], "row head d -> row (head d)"))
        last = found.index[rows, k - 1 : k + 1]
        there = [unit(rearrange(self.z[at][:, heads], "row head d -> row (head d)")) for at in last.T]
        nearer = [(here * each).sum(dim=1) for each in there]
        wrong = rows[nearer[0] < nearer[1]]
        for values in (found.index, found.distance):
            values[wrong, k - 1 : k + 1] = values[wrong, k - 1 : k + 1].flip(1)
