"""The scores by which the reproduction chooses heads, each with the data that it needs, kept in a run.

name            what it says of a head
knn             k-NN regression from z to the action, as published (k of 10, 20, 30, 40)
knn-10, knn-40  the same with one k
knn-euclidean   the same with Euclidean distance
knn-chunk       the same, predicting the whole chunk
ablation        how far the action moves when the head says its mean
patching        how much of the way from one frame's action to another's its output carries, exactly
atp             the same, estimated from a gradient

`best-add` is no score of a head but the choice of a set: k-NN on several heads at once, as published (interp/knn.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from interp.ablation import AblationSettings, ablate
from interp.attribution import atp
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import unknown
from interp.knn import KnnSettings, best_add, rank
from interp.patching import Pairs, patch_heads
from interp.policies import Policy
from interp.runs import Run
from interp.scores import HeadScores
from steering.headset import HeadSet, best_heads

JOINT = "best-add"
FRAMES, PAIRS = 60, 30
"""Frames of an ablation and pairs of a patching, unless a plan says otherwise (`frames`, `pairs`)."""
WINDOW_OF_ONE = 3
"""Frames that are left out on both sides of each where there is one demonstration: episodes of the tabletop are shorter
than the 30 of the published rule."""

_KNN: Mapping[str, KnnSettings] = {
    "knn": KnnSettings(),
    "knn-10": KnnSettings(ks=(10,)),
    "knn-40": KnnSettings(ks=(40,)),
    "knn-euclidean": KnnSettings(metric="euclidean"),
    "knn-chunk": KnnSettings(target="chunk"),
}

Scorer = Callable[[Policy, Demonstrations, Run, str, Mapping[str, int]], HeadScores]


def _nearest(settings: KnnSettings) -> Scorer:
    def score(
        policy: Policy, demos: Demonstrations, run: Run, tower: str, sizes: Mapping[str, int]
    ) -> HeadScores:
        capture(policy, demos, run.path, towers=(tower,), thumbnails=False, progress=False)
        one = len(demos.episodes) == 1
        return rank(
            Run.open(run.path), replace(settings, window=WINDOW_OF_ONE) if one else settings, towers=(tower,)
        )

    return score


def _ablated(
    policy: Policy, demos: Demonstrations, run: Run, tower: str, sizes: Mapping[str, int]
) -> HeadScores:
    settings = AblationSettings("mean", frames=sizes.get("frames", FRAMES))
    return ablate(policy, demos, settings, towers=(tower,))


def _between_frames(method: Callable[..., HeadScores]) -> Scorer:
    def score(
        policy: Policy, demos: Demonstrations, run: Run, tower: str, sizes: Mapping[str, int]
    ) -> HeadScores:
        pairs = Pairs.of_frames(policy, demos.for_policy(policy.spec), sizes.get("pairs", PAIRS))
        return method(policy, pairs, towers=(tower,), data=run.data)

    return score


_SCORERS: Mapping[str, Scorer] = {
    **{name: _nearest(settings) for name, settings in _KNN.items()},
    "ablation": _ablated,
    "patching": _between_frames(patch_heads),
    "atp": _between_frames(atp),
}


def settings_of(by: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What decides the scores besides policy and data, where `sizes` are the plan's."""
    by = "knn" if by == JOINT else by
    if by in _KNN:
        return {"ks": list(_KNN[by].ks), "metric": _KNN[by].metric, "target": _KNN[by].target}
    if by == "ablation":
        return {"frames": sizes.get("frames", FRAMES)}
    return {"pairs": sizes.get("pairs", PAIRS)}


def head_scores(
    by: str, policy: Policy, demos: Demonstrations, run: Run, tower: str, sizes: Mapping[str, int]
) -> HeadScores:
    """The scores of a tower's heads, computed unless the run has them of these sizes; beside a joint choice those of
    single heads."""
    by = "knn" if by == JOINT else by
    if by not in _SCORERS:
        raise unknown("scores", by, _SCORERS)
    name = f"{by}-{tower}"
    if name not in run.files("scores") or not _as_asked(run.read_scores(name), settings_of(by, sizes), demos):
        found = replace(_SCORERS[by](policy, demos, run, tower, sizes), method=by)
        run.save_scores(found, name)
    return run.read_scores(name)


def _as_asked(scores: HeadScores, asked: Mapping[str, Any], demos: Demonstrations) -> bool:
    if "pairs" in asked:  # of short demonstrations there are fewer
        return scores.n.get("pairs") == min(asked["pairs"], len(demos))
    return all(scores.settings.get(setting) == value for setting, value in asked.items())


def choose(by: str, scores: HeadScores, run: Run, k: int, tower: str) -> HeadSet:
    """The k heads that the scores rank best, or those that predict the action best together."""
    if by != JOINT:
        return best_heads(scores, k, tower)
    return HeadSet(best_add(run, k, tower).heads, run.policy, JOINT, data=run.data)
