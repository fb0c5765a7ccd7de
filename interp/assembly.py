"""Assembly: what the methods that edit heads share after the network has run: blocks on disk, intervals, HeadScores.

Axes: score (an edit, or a head), item (a pair, or a frame), group (an episode: the unit that intervals resample).
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from interp.errors import UsageError
from interp.heads import Head
from interp.policies.protocol import Policy
from interp.runs import digest, write_atomic, write_json
from interp.scores import TowerScores

Interval = tuple[Float[np.ndarray, " score"], Float[np.ndarray, " score"]] | tuple[None, None]


def tower_scores(
    policy: Policy,
    tower: str,
    heads: Sequence[Head],
    value: Float[np.ndarray, " score"],
    interval: Interval = (None, None),
) -> TowerScores:
    """Scores of some heads of one tower as its grids; NaN for heads that are not among them."""

    def grid(values: Float[np.ndarray, " score"] | None) -> Float[np.ndarray, "layer head"] | None:
        return None if values is None else grid_of(policy, tower, heads, values)

    low, high = interval
    scores = grid(value)
    assert scores is not None
    return TowerScores(scores, grid(low), grid(high), dead=policy.spec.tower(tower).dead)


def grid_of(
    policy: Policy, tower: str, heads: Sequence[Head], values: Float[np.ndarray, " score"]
) -> Float[np.ndarray, "layer head"]:
    spec = policy.spec.tower(tower)
    grid = np.full((spec.layers, spec.heads), np.nan)
    for head, value in zip(heads, values, strict=True):
        grid[head.layer, head.index] = value
    return grid


def bootstrap(
    numerator: Float[np.ndarray, "score item"],
    denominator: Float[np.ndarray, " item"],
    group: Int[np.ndarray, " item"],
    resamples: int,
    seed: int,
) -> Interval:
    """Central 95 % of sum(numerator) / sum(denominator) over resampled groups of items (episodes, of frames).

    With a single group its items are resampled; with a single item there is no interval.
    """
    places = np.unique(group, return_inverse=True)[1]
    if places.max() == 0:
        places = np.arange(len(group))
    groups = int(places.max()) + 1
    if groups < 2 or not resamples:
        return None, None
    member = np.eye(groups)[places]
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (draws @ (numerator @ member).T) / (draws @ (denominator @ member))[:, None]
    low, high = np.nanquantile(ratios, [0.025, 0.975], axis=0)
    return low, high


def resumable(
    directory: Path | None,
    plan: Mapping[str, Any],
    blocks: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], np.ndarray],
    *,
    desc: str,
    progress: bool = False,
) -> list[np.ndarray]:
    """`compute` of every block; with a directory, results are kept there, and a killed sweep goes on where it was.

    A block depends on nothing but itself and the plan, so resumed numbers equal uninterrupted ones bit for bit. Every
    plan has a folder of its own in the directory, so that sweeps of several plans may run at once.
    """
    if directory is not None:
        directory = directory / digest(plan)
        write_json(directory / "plan.json", plan)  # for people: what the folder's name stands for
    results = []
    for at, block in enumerate(tqdm(blocks, desc=desc, unit="block", disable=not progress)):
        path = None if directory is None else directory / f"{at:06d}.npy"
        if path is not None and path.is_file():
            results.append(np.load(path, allow_pickle=False))
            continue
        results.append(compute(block))
        if path is not None:
            stream = BytesIO()
            np.save(stream, results[-1], allow_pickle=False)
            write_atomic(path, stream.getvalue())
    return results


def spread(total: int, wanted: int | None) -> Int[np.ndarray, " item"]:
    """Places of `wanted` frames, evenly among `total`; None: all."""
    if wanted is not None and wanted < 1:
        raise UsageError(f"frames must be at least 1, not {wanted}")
    if wanted is None or wanted >= total:
        return np.arange(total)
    return np.unique(np.linspace(0, total - 1, wanted).round().astype(int))
