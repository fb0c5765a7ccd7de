"""Which heads know the demonstrated action: k-nearest-neighbour regression that leaves one episode out.

A head knows the action if frames of other episodes in which it says something similar are frames in which the
demonstrator did something similar. The score of a head is the mean squared error of that prediction: lower is better.

Source: Robotic Steering, Mitra et al., arXiv 2511.22697, as its published code does it: `KnnSettings()` is exactly
that (z of the expert at the first action token, raw current action, k in 10, 20, 30, 40, joint sets by concatenation).
Ours on top: other towers, tokens and targets; an interval over episodes; what chance would give; dead heads left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.errors import UsageError
from interp.heads import Head
from interp.neighbours import Folds, JointDistances, errors, nearest, squared_error
from interp.runs import Run, Signals
from interp.scores import HeadScores, Null, TowerScores

DEFAULT_TOKENS: Mapping[str, str] = {"expert": "first_action", "vlm": "last_prefix", "vision": "mean"}


@dataclass(frozen=True)
class KnnSettings:
    """What is predicted from what. The defaults are the published procedure.

    `target` is the current action or the chunk of the policy's horizon (steps past the end of an episode do not count).
    `normalised` divides every action dimension by its standard deviation over the run, so that none dominates.
    """

    tokens: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_TOKENS))
    ks: tuple[int, ...] = (10, 20, 30, 40)
    target: Literal["current", "chunk"] = "current"
    normalised: bool = False
    window: int = 30

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise UsageError(f"k must be distinct numbers of at least 1, not {list(self.ks)}")
        if self.target not in ("current", "chunk"):
            raise UsageError(f"unknown target {self.target!r}: known are current, chunk")
        if self.window < 0:
            raise UsageError(f"window must not be negative, not {self.window}")

    @property
    def units(self) -> str:
        return "squared standard deviations of the action" if self.normalised else "squared action units"


@dataclass(frozen=True)
class Selection:
    """A set of heads, best or first chosen first, and the joint error of predicting from all of them together."""

    heads: tuple[Head, ...]
    k: int
    error: float
    per_k: Mapping[int, float]
    method: Literal["topk", "best_add"]


class Problem:
    """One run as a regression: z of the live heads of one tower, the targets, and who may be whose neighbour."""

    def __init__(self, run: Run, tower: str, settings: KnnSettings) -> None:
        self.run = run
        self.tower = tower
        self.settings = settings
        self.spec = run.spec.tower(tower)
        signals = run.signals()
        self.folds = Folds(torch.tensor(signals.episode), torch.tensor(signals.frame), settings.window)
        self.target, self.valid = _target(signals, settings, run.spec.horizon)
        self.array = run.activations(tower, settings.tokens.get(tower))

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        return self.spec.live

    def layer(self, layer: int) -> Float[Tensor, "frame head d_head"]:
        z = torch.tensor(np.asarray(self.array[:, layer]))
        if not torch.isfinite(z).all():
            raise UsageError(f"run {self.run.path}: activations of {self.tower} layer {layer} are not finite")
        return z

    def joined(self, heads: Sequence[tuple[int, int]]) -> Float[Tensor, "frame head d_head"]:
        layers = {layer: self.layer(layer) for layer, _ in heads}
        return torch.stack([layers[layer][:, head] for layer, head in heads], dim=1)

    def errors(self, heads: Sequence[tuple[int, int]]) -> Float[Tensor, "k frame"]:
        """Of the heads together."""
        z = rearrange(self.joined(heads), "frame head d_head -> frame (head d_head)")
        return errors(z, self.target, self.folds, self.settings.ks, self.valid)

    def single_errors(self, progress: bool) -> Float[Tensor, "head k frame"]:
        """Of every live head alone."""
        found = []
        with tqdm(total=len(self.heads), desc=f"knn {self.tower}", unit="head", disable=not progress) as bar:
            for layer in sorted({layer for layer, _ in self.heads}):
                z = self.layer(layer)
                for head in (head for at, head in self.heads if at == layer):
                    found.append(errors(z[:, head], self.target, self.folds, self.settings.ks, self.valid))
                    bar.update()
        return torch.stack(found)

    @cached_property
    def episode_place(self) -> Int[np.ndarray, " frame"]:
        return np.unique(self.folds.episode.numpy(), return_inverse=True)[1]


def rank(
    run: Run,
    settings: KnnSettings | None = None,
    *,
    towers: Sequence[str] = ("expert",),
    n: int = 20,
    resamples: int = 1000,
    permutations: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> HeadScores:
    """The error of every live head, at the k at which the n best heads together predict best (as published).

    The 95 % interval resamples episodes (neighbours are not searched again). The null permutes whose actions belong to
    which episode, `permutations` times, and pools all heads; its `best` is what the luckiest head reaches on average.
    """
    settings = settings or KnnSettings()
    scored, chosen = {}, {}
    for tower in towers:
        problem = Problem(run, tower, settings)
        single = problem.single_errors(progress)
        selection = _topk(problem, single, min(n, len(problem.heads)))
        at = settings.ks.index(selection.k)
        low, high = _interval(single[:, at], problem.episode_place, resamples, seed)
        scored[tower] = TowerScores(
            value=_grid(problem, single[:, at].nanmean(dim=1).numpy()),
            low=None if low is None else _grid(problem, low),
            high=None if high is None else _grid(problem, high),
            null=_null(problem, selection.k, permutations, seed) if permutations else None,
            dead=problem.spec.dead,
        )
        chosen[tower] = {
            "k": selection.k,
            "n": len(selection.heads),
            "joint_error": {str(k): e for k, e in selection.per_k.items()},
        }
    signals = run.signals()
    single_episode = len(np.unique(signals.episode)) == 1
    fold = f"leave out +-{settings.window} frames" if single_episode else "leave one episode out"
    return HeadScores(
        method="knn",
        label=f"k-NN regression, {fold}",
        units=settings.units,
        higher_is_better=False,
        towers=scored,
        policy=run.policy,
        data=run.data,
        n={"episodes": len(np.unique(signals.episode)), "frames": len(signals)},
        settings={
            **asdict(settings),
            "ks": list(settings.ks),
            "tokens": {tower: settings.tokens.get(tower) for tower in towers},
            "chosen": chosen,
            "resamples": resamples,
            "permutations": permutations,
            "seed": seed,
        },
    )


def topk(run: Run, n: int, tower: str = "expert", settings: KnnSettings | None = None) -> Selection:
    """The published `topk`: for each k the n best single heads; of these sets the one with the least joint error."""
    problem = Problem(run, tower, settings or KnnSettings())
    return _topk(problem, problem.single_errors(progress=False), n)


def best_add(
    run: Run,
    n: int,
    tower: str = "expert",
    settings: KnnSettings | None = None,
    *,
    budget: int = 2 * 2**30,
    progress: bool = False,
) -> Selection:
    """The published `best_add`: for each k, add the head that lowers the joint error most until there are n.

    `budget` bounds the bytes of distance matrices. If those of all heads fit, (heads + 8) x frames^2 x 4, they are
    kept; otherwise they are computed again in every step.
    """
    problem = Problem(run, tower, settings or KnnSettings())
    _check_n(problem, n)
    z = problem.joined(problem.heads)
    sets: dict[int, list[int]] = {}
    with tqdm(total=n * len(problem.settings.ks), desc="best_add", unit="head", disable=not progress) as bar:
        for k in problem.settings.ks:
            distances = JointDistances(z, problem.folds, budget)
            sets[k] = []
            while len(sets[k]) < n:
                left = [head for head in range(len(problem.heads)) if head not in sets[k]]
                tried = [distances.error(head, problem.target, k, problem.valid) for head in left]
                sets[k].append(left[int(np.argmin(tried))])
                distances.add(sets[k][-1])
                bar.update()
    return _least_joint_error(problem, sets, "best_add")


def _topk(problem: Problem, single: Float[Tensor, "head k frame"], n: int) -> Selection:
    _check_n(problem, n)
    means = single.nanmean(dim=2)
    order = means.argsort(dim=0, stable=True)
    sets = {k: order[:n, at].tolist() for at, k in enumerate(problem.settings.ks)}
    return _least_joint_error(problem, sets, "topk")


def _least_joint_error(
    problem: Problem, sets: Mapping[int, Sequence[int]], method: Literal["topk", "best_add"]
) -> Selection:
    per_k = {}
    for at, (k, chosen) in enumerate(sets.items()):
        per_k[k] = float(problem.errors([problem.heads[head] for head in chosen])[at].nanmean())
    best = min(per_k, key=lambda k: per_k[k])
    heads = tuple(Head(problem.tower, *problem.heads[head]) for head in sets[best])
    return Selection(heads, best, per_k[best], per_k, method)


def _check_n(problem: Problem, n: int) -> None:
    if not 1 <= n <= len(problem.heads):
        raise UsageError(
            f"cannot choose {n} heads: tower {problem.tower} has {len(problem.heads)} live heads"
        )


def _grid(problem: Problem, values: Float[np.ndarray, " head"]) -> Float[np.ndarray, "layer head"]:
    grid = np.full((problem.spec.layers, problem.spec.heads), np.nan)
    for (layer, head), value in zip(problem.heads, values, strict=True):
        grid[layer, head] = value
    return grid


def _target(
    signals: Signals, settings: KnnSettings, horizon: int
) -> tuple[Float[Tensor, "frame dim"], Bool[Tensor, "frame dim"] | None]:
    """The actions to predict, and for chunks which entries lie within the episode."""
    actions = torch.tensor(signals.action, dtype=torch.float64)
    if settings.normalised:
        std = actions.std(dim=0, correction=0)
        actions = actions / torch.where(std > 0, std, torch.ones_like(std))
    if settings.target == "current":
        return actions, None
    episode = signals.episode
    last = np.flatnonzero(np.append(episode[1:] != episode[:-1], True))
    stop = last[np.searchsorted(last, np.arange(len(episode)))]
    steps = torch.as_tensor(np.arange(len(episode))[:, None] + np.arange(horizon))
    stops = torch.as_tensor(stop)[:, None]
    chunks = rearrange(actions[torch.minimum(steps, stops)], "frame step dim -> frame (step dim)")
    valid = (steps <= stops).repeat_interleave(actions.shape[1], dim=1)
    return chunks, valid


def _interval(
    single: Float[Tensor, "head frame"], episode: Int[np.ndarray, " frame"], resamples: int, seed: int
) -> tuple[Float[np.ndarray, " head"] | None, Float[np.ndarray, " head"] | None]:
    """Central 95 % of the mean error over resampled episodes; none if there is one episode or no resamples."""
    episodes = int(episode.max()) + 1
    if episodes < 2 or not resamples:
        return None, None
    member = np.eye(episodes)[episode]
    totals = single.numpy() @ member
    draws = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    means = (draws @ totals.T) / (draws @ member.sum(axis=0))[:, None]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def _null(problem: Problem, k: int, permutations: int, seed: int) -> Null | None:
    """Scores when every episode is given another one's actions, stretched to its length."""
    episode = problem.episode_place
    if int(episode.max()) < 1:
        return None
    rng = np.random.default_rng(seed)
    shuffles = np.stack([_foreign_frames(episode, rng) for _ in range(permutations)])
    targets = problem.target[shuffles]
    wide = rearrange(targets, "permutation frame dim -> frame (permutation dim)")
    valid = None if problem.valid is None else problem.valid[shuffles]
    found = []
    for layer in sorted({layer for layer, _ in problem.heads}):
        z = problem.layer(layer)
        for head in (head for at, head in problem.heads if at == layer):
            predicted = torch.cat(
                [near.predict(wide, k) for _, near in nearest(z[:, head], problem.folds, k)]
            )
            split = rearrange(
                predicted, "frame (permutation dim) -> permutation frame dim", permutation=permutations
            )
            found.append(
                [
                    float(squared_error(split[p], targets[p], None if valid is None else valid[p]).mean())
                    for p in range(permutations)
                ]
            )
    scores = np.array(found)
    low, high = np.quantile(scores, [0.025, 0.975])
    return Null(
        float(scores.mean()), float(low), float(high), float(reduce(scores, "head p -> p", "min").mean())
    )


def _foreign_frames(
    episode: Int[np.ndarray, " frame"], rng: np.random.Generator
) -> Int[np.ndarray, " frame"]:
    """For every frame, the frame at the same relative time of the episode that a random permutation assigns."""
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    lengths = np.diff(np.append(starts, len(episode)))
    order = rng.permutation(len(starts))
    frames = []
    for own, other in enumerate(order):
        at = np.round(np.linspace(0, lengths[other] - 1, lengths[own])).astype(int)
        frames.append(starts[other] + at)
    return np.concatenate(frames)
