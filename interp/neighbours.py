"""k-nearest-neighbour regression that leaves out a whole episode, on arrays.

Axis names: frame (rows of z and of the target), query (a block of frames), k (neighbours, nearest first), dim
(of the target).

The prediction for a frame is the mean of its k nearest frames' targets, weighted by 1 / (distance + 1e-8); the
distance is 1 - cosine. A neighbour closer than 1e-8, a twin, is taken alone. Neighbours come from other episodes
or, when there is only one episode, from frames more than `window` steps away; a frame that has no such
neighbour has no error (NaN) and does not count.

One distance matrix serves every k. For unit vectors 1 - cos(a, b) = |a - b|^2 / 2, and |a - b| does not change
when the mean is subtracted from both: that keeps float32 accurate when all vectors point nearly the same way, as
attention outputs at one token do. Rows with very near neighbours are computed again in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UsageError

TWIN = 1e-8
_REFINE = 1e-3
"""Distances below this share of the typical one are computed again in float64."""
_BLOCK_BYTES = 64 * 2**20

Distances = Float[Tensor, "query frame"]


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

    def forbidden(self, rows: slice) -> Bool[Tensor, "query frame"]:
        if self.single:
            return (self.frame[rows, None] - self.frame[None]).abs() <= self.window
        return self.episode[rows, None] == self.episode[None]

    def blocks(self) -> Iterator[slice]:
        """Query blocks whose distance matrices fit the memory budget."""
        size = max(1, _BLOCK_BYTES // (4 * len(self)))
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
        twins = distance[:, :1] < TWIN
        alone = torch.zeros_like(weight)
        alone[:, 0] = 1
        return torch.where(twins, alone, weight / weight.sum(dim=1, keepdim=True))

    def predict(self, target: Float[Tensor, "frame dim"], k: int) -> Float[Tensor, "query dim"]:
        # A weighted sum of rows, without gathering them first.
        return torch.nn.functional.embedding_bag(
            self.index[:, :k], target, per_sample_weights=self.weights(k), mode="sum"
        )


def unit(z: Float[Tensor, "frame d_head"]) -> Float[Tensor, "frame d_head"]:
    """Directions, in float64. A zero vector stays zero and is then at distance 1 from everything."""
    z = z.double()
    return z / z.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def squared_distances(
    centred: Float[Tensor, "frame d"], squares: Float[Tensor, " frame"], rows: slice
) -> Float[Tensor, "query frame"]:
    """|a - b|^2 of the block's rows to all rows, from vectors around their mean and the vectors' squared lengths."""
    return torch.baddbmm(
        (squares[rows, None] + squares[None]).unsqueeze(0),
        centred[None, rows],
        rearrange(centred, "frame d -> 1 d frame"),
        alpha=-2,
    )[0]


def nearest(z: Float[Tensor, "frame d"], folds: Folds, k: int) -> Iterator[tuple[slice, Neighbours]]:
    """The k nearest allowed frames of every frame, block by block."""
    directions = unit(z)
    zero = directions.norm(dim=1) == 0
    centred = (directions - directions.mean(dim=0)).float()
    squares = centred.double().square().sum(dim=1).float()
    typical = float(squares.mean())
    for rows in folds.blocks():
        distance = squared_distances(centred, squares, rows) / 2
        if zero.any():
            distance[zero[rows, None] | zero[None]] = 1
        distance.masked_fill_(folds.forbidden(rows), torch.inf)
        found = _take_nearest(distance, k)
        yield rows, _refined(found, directions, rows, _REFINE * typical)


def _take_nearest(distance: Distances, k: int) -> Neighbours:
    values, index = distance.topk(min(k, distance.shape[1]), dim=1, largest=False)
    return Neighbours(index, values.double().clamp_min(0))


def _refined(
    found: Neighbours, directions: Float[Tensor, "frame d"], rows: slice, below: float
) -> Neighbours:
    """Distances of rows with a neighbour nearer than `below` again, exactly, and sorted again."""
    doubtful = (found.distance[:, 0] < below).nonzero().squeeze(1)
    distance, index = found.distance.clone(), found.index.clone()
    for part in doubtful.split(256):
        here = directions[rows][part][:, None] - directions[index[part]]
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
) -> Float[Tensor, "k frame"]:
    """The squared error of every frame's prediction, for every k; NaN for frames that nothing may predict."""
    found = torch.empty(len(ks), len(folds), dtype=torch.float64)
    for rows, neighbours in nearest(z, folds, max(ks)):
        for at, k in enumerate(ks):
            prediction = neighbours.predict(target, k)
            found[at, rows] = squared_error(prediction, target[rows], None if valid is None else valid[rows])
    return found


class JointDistances:
    """Distances between frames in the space of several heads together, cheap to extend by one head.

    Heads are concatenated, so squared Euclidean distances add up over heads; with the lengths a and b of two
    concatenated vectors, 1 - cos = (|x - y|^2 - (a - b)^2) / (2 a b).
    """

    WORKING = 8
    """Matrices [frame, frame] that one step holds at the same time, at most."""

    def __init__(self, z: Float[Tensor, "frame head d_head"], folds: Folds, budget: int) -> None:
        self.folds = folds
        self.squares = z.double().square().sum(dim=2)
        centred = (z.double() - z.double().mean(dim=0)).float()
        self.centred = rearrange(centred, "frame head d_head -> head frame d_head")
        self.spread = self.centred.double().square().sum(dim=2).float()
        heads, frames = len(self.centred), len(folds)
        matrix = 4 * frames * frames
        if self.WORKING * matrix > budget:
            raise UsageError(
                f"joint distances of {frames} frames need {self.WORKING * matrix / 2**30:.1f} GiB, the budget is "
                f"{budget / 2**30:.1f}: use fewer episodes or a larger budget"
            )
        fits = (heads + self.WORKING) * matrix <= budget
        self.stored = [self._one(head) for head in range(heads)] if fits else None
        self.sum = torch.zeros(frames, frames)
        self.lengths = torch.zeros(frames, dtype=torch.float64)
        self.mask = folds.forbidden(slice(0, frames))

    def _one(self, head: int) -> Float[Tensor, "frame frame"]:
        return squared_distances(self.centred[head], self.spread[head], slice(0, len(self.folds)))

    def of(self, head: int) -> Float[Tensor, "frame frame"]:
        return self._one(head) if self.stored is None else self.stored[head]

    def add(self, head: int) -> None:
        self.sum += self.of(head)
        self.lengths += self.squares[:, head]

    def error(self, head: int, target: Float[Tensor, "frame dim"], k: int, valid: Tensor | None) -> float:
        """Mean squared error if `head` joined the heads added so far."""
        length = (self.lengths + self.squares[:, head]).sqrt()
        gap = (length[:, None] - length[None]).float()
        scale = length.float().clamp_min(torch.finfo(torch.float32).tiny)
        # A query's own length scales its whole row: it matters for the weights, not for the order.
        distance = (self.sum + self.of(head) - gap.square()) / (2 * scale[:, None] * scale[None])
        found = _take_nearest(distance.masked_fill_(self.mask, torch.inf), k)
        return float(squared_error(found.predict(target, k), target, valid).nanmean())
