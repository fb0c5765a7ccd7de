"""Which heads know the demonstrated action: k-nearest-neighbour regression that leaves one episode out.

A head knows the action if frames of other episodes in which it says something similar are frames in which the
demonstrator did something similar. The score of a head is the mean squared error of that prediction: lower is better.

Source: Robotic Steering, Mitra et al., arXiv 2511.22697, as its published code does it: `KnnSettings()` is exactly
that (z of the expert at the first action token, raw current action, k in 10, 20, 30, 40, joint sets by concatenation).
Ours on top: other towers, tokens and targets; an interval over episodes; what chance would give; dead heads left out.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.neighbours import Folds, JointDistances, Metric, errors, nearest, squared_error
from interp.runs import Run, Signals
from interp.scores import HeadScores, Null, TowerScores
from interp.seeds import check_seed

Result = TypeVar("Result")

DEFAULT_TOKENS: Mapping[str, str] = {"expert": "first_action", "vlm": "last_prefix", "vision": "mean"}


@dataclass(frozen=True)
class KnnSettings:
    """What is predicted from what. The defaults are the published procedure.

    `target` is the current action or the chunk of the policy's horizon (steps past the end of an episode do not count).
    `normalised` divides every action dimension by its standard deviation over the run, so that none dominates.
    `metric` says how near two z are: cosine distance as published, or Euclidean distance, for which length counts too.
    """

    tokens: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_TOKENS))
    ks: tuple[int, ...] = (10, 20, 30, 40)
    target: Literal["current", "chunk"] = "current"
    normalised: bool = False
    window: int = 30
    metric: Metric = "cosine"

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise unknown("metric", self.metric, get_args(Metric))
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise UsageError(f"k must be distinct numbers of at least 1, not {list(self.ks)}")
        if self.target not in ("current", "chunk"):
            raise UsageError(f"unknown target {self.target!r}: known are current, chunk")
        if self.window < 0:
            raise UsageError(f"window must not be negative, not {self.window}")

    @classmethod
    def of(cls, scores: HeadScores) -> "KnnSettings":
        """Those of a ranking that `rank` made."""
        given = scores.settings
        if "chosen" not in given:
            raise UsageError(
                f"scores {scores.method!r} are no k-NN ranking: name one that `robosteer rank` made"
            )
        metric = given.get("metric", "cosine")  # older scores do not say
        ks, target, normalised = tuple(given["ks"]), given["target"], given["normalised"]
        return cls(given["tokens"], ks, target, normalised, given["window"], metric)

    @property
    def units(self) -> str:
        return "squared standard deviations of the action" if self.normalised else "squared action units"


@dataclass(frozen=True)
class Selection:
    """A set of heads, best or first chosen first, and the joint error of predicting from all of them together.

    `path` of a greedy selection: the joint error of its first head, its first two, and so on.
    """

    heads: tuple[Head, ...]
    k: int
    error: float
    per_k: Mapping[int, float]
    method: Literal["topk", "best_add"]
    path: tuple[float, ...] = ()


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

    def map(
        self, function: Callable[[Float[Tensor, "frame d_head"]], Result], what: str, progress: bool
    ) -> list[Result]:
        """`function` of z of every live head: one layer read at a time, its heads in parallel."""
        found: list[Result] = []
        bar = tqdm(total=len(self.heads), desc=f"{what} {self.tower}", unit="head", disable=not progress)
        with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for layer in sorted({layer for layer, _ in self.heads}):
                z = self.layer(layer)
                for result in pool.map(function, [z[:, head] for at, head in self.heads if at == layer]):
                    found.append(result)
                    bar.update()
        return found

    def joined(self, heads: Sequence[tuple[int, int]]) -> Float[Tensor, "frame head d_head"]:
        layers = {layer: self.layer(layer) for layer in {layer for layer, _ in heads}}
        return torch.stack([layers[layer][:, head] for layer, head in heads], dim=1)

    def _errors(
        self, z: Float[Tensor, "frame d"], ks: Sequence[int] | None = None
    ) -> Float[Tensor, "k frame"]:
        ks = self.settings.ks if ks is None else ks
        return errors(z, self.target, self.folds, ks, self.valid, self.settings.metric)

    def single_errors(self, progress: bool) -> Float[Tensor, "head k frame"]:
        """Of every live head alone."""
        return torch.stack(self.map(self._errors, "knn", progress))

    def joint_errors(self, sets: Mapping[int, Sequence[int]]) -> dict[int, float]:
        """Of a set of heads together, by places in `heads`, for every k its own set."""
        used = sorted({head for chosen in sets.values() for head in chosen})
        z = self.joined([self.heads[head] for head in used])

        def error(k: int) -> float:
            own = z[:, [used.index(head) for head in sets[k]]]
            flat = rearrange(own, "frame head d_head -> frame (head d_head)")
            return float(self._errors(flat, (k,)).nanmean())

        return {k: error(k) for k in sets}

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
    greedy: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> HeadScores:
    """The error of every live head, at the k at which the n best heads together predict best (as published).

    The 95 % interval resamples episodes (neighbours are not searched again). The null permutes whose actions belong to
    which episode, `permutations` times, and pools all heads; its `best` is what the luckiest head reaches on average.
    With `greedy`, settings["greedy"] holds each tower's `best_add` of n heads.
    """
    check_seed(seed)
    if n < 1:
        raise UsageError(f"top {n}: at least one head chooses k")
    settings = settings or KnnSettings()
    signals = run.signals()
    if not towers:
        captured = ", ".join(run.info["captured"])
        raise UsageError(f"no towers to rank: name some of those that run {run.path} has: {captured}")
    scored, chosen, added = {}, {}, {}
    for tower in towers:
        problem = Problem(run, tower, settings)
        single = problem.single_errors(progress)
        selection = _topk(problem, single, min(n, len(problem.heads)))
        at = settings.ks.index(selection.k)
        low, high = _interval(single[:, at], problem.episode_place, resamples, seed)
        scored[tower] = TowerScores(
            value=grid(problem, single[:, at].nanmean(dim=1).numpy()),
            low=None if low is None else grid(problem, low),
            high=None if high is None else grid(problem, high),
            null=_null(problem, selection.k, permutations, seed, progress) if permutations else None,
            dead=problem.spec.dead,
        )
        chosen[tower] = {
            "k": selection.k,
            "n": len(selection.heads),
            "joint_error": {str(k): e for k, e in selection.per_k.items()},
        }
        if greedy:
            found = best_add(run, len(selection.heads), tower, settings, progress=progress)
            heads = [str(head) for head in found.heads]
            added[tower] = {"k": found.k, "heads": heads, "joint_error": list(found.path)}
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
            **({"greedy": added} if greedy else {}),
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

    `budget` bounds the bytes of distance matrices, frames^2 x 4 each. If those of all heads fit beside the few that a
    step needs, they are kept; otherwise they are computed again in every step. Candidates are tried in parallel.
    """
    problem = Problem(run, tower, settings or KnnSettings())
    _check_n(problem, n)
    if problem.settings.metric != "cosine":
        raise UsageError(
            f"metric {problem.settings.metric}: best_add adds cosine distances up, as published; take topk"
        )
    z = problem.joined(problem.heads)
    sets: dict[int, list[int]] = {}
    paths: dict[int, list[float]] = {}
    distances = JointDistances(z, problem.folds, budget)
    bar = tqdm(total=n * len(problem.settings.ks), desc="best_add", unit="head", disable=not progress)
    with bar, ThreadPoolExecutor(distances.workers) as pool:
        for k in problem.settings.ks:
            distances.clear()
            sets[k], paths[k] = [], []
            error = partial(distances.error, target=problem.target, k=k, valid=problem.valid)
            while len(sets[k]) < n:
                left = [head for head in range(len(problem.heads)) if head not in sets[k]]
                tried = list(pool.map(error, left))
                sets[k].append(left[int(np.argmin(tried))])
                paths[k].append(min(tried))
                distances.add(sets[k][-1])
                bar.update()
    selection = _best_of(problem, sets, {k: path[-1] for k, path in paths.items()}, "best_add")
    return replace(selection, path=tuple(paths[selection.k]))


def _topk(problem: Problem, single: Float[Tensor, "head k frame"], n: int) -> Selection:
    _check_n(problem, n)
    means = single.nanmean(dim=2)
    order = means.argsort(dim=0, stable=True)
    sets = {k: order[:n, at].tolist() for at, k in enumerate(problem.settings.ks)}
    return _best_of(problem, sets, problem.joint_errors(sets), "topk")


def _best_of(
    problem: Problem,
    sets: Mapping[int, Sequence[int]],
    per_k: Mapping[int, float],
    method: Literal["topk", "best_add"],
) -> Selection:
    """The set with the least joint error."""
    best = min(per_k, key=lambda k: per_k[k])
    heads = tuple(Head(problem.tower, *problem.heads[head]) for head in sets[best])
    return Selection(heads, best, per_k[best], per_k, method)


def _check_n(problem: Problem, n: int) -> None:
    if not 1 <= n <= len(problem.heads):
        raise UsageError(
            f"cannot choose {n} heads: tower {problem.tower} has {len(problem.heads)} live heads"
        )


def grid(problem: Problem, values: Float[np.ndarray, " head"]) -> Float[np.ndarray, "layer head"]:
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


def _null(problem: Problem, k: int, permutations: int, seed: int, progress: bool) -> Null | None:
    """Scores when episodes exchange their actions at random, stretched to their length; some keep their own."""
    episode = problem.episode_place
    if int(episode.max()) < 1:
        return None
    rng = np.random.default_rng(seed)
    metric = problem.settings.metric
    shuffles = np.stack([foreign_frames(episode, rng) for _ in range(permutations)])
    targets = problem.target[shuffles]
    wide = rearrange(targets, "permutation frame dim -> frame (permutation dim)")
    valid = None if problem.valid is None else problem.valid[shuffles]

    def permuted_errors(z: Float[Tensor, "frame d_head"]) -> list[float]:
        predicted = torch.cat([near.predict(wide, k) for _, near in nearest(z, problem.folds, (k,), metric)])
        split = rearrange(
            predicted, "frame (permutation dim) -> permutation frame dim", permutation=permutations
        )
        return [
            float(squared_error(split[p], targets[p], None if valid is None else valid[p]).mean())
            for p in range(permutations)
        ]

    scores = np.array(problem.map(permuted_errors, "chance", progress))
    low, high = np.quantile(scores, [0.025, 0.975])
    return Null(
        float(scores.mean()), float(low), float(high), float(reduce(scores, "head p -> p", "min").mean())
    )


def foreign_frames(episode: Int[np.ndarray, " frame"], rng: np.random.Generator) -> Int[np.ndarray, " frame"]:
    """For every frame, the frame at the same relative time of the episode that a random permutation assigns: most
    often another one."""
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    lengths = np.diff(np.append(starts, len(episode)))
    order = rng.permutation(len(starts))
    frames = []
    for own, other in enumerate(order):
        at = np.round(np.linspace(0, lengths[other] - 1, lengths[own])).astype(int)
        frames.append(starts[other] + at)
    return np.concatenate(frames)
