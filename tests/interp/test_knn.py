"""Promises of the k-NN ranking: it is the published procedure, it finds heads that know the action, and says how sure.

The reference is the procedure spelled out: for every frame, sort all allowed frames by cosine distance, weigh, average.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from knn_kit import LENGTHS, PLANTED, arrays, naive_errors, planted_run

import interp.neighbours
from interp.errors import UsageError
from interp.heads import Head
from interp.knn import KnnSettings, best_add, foreign_frames, rank, topk
from interp.neighbours import Folds, JointDistances, errors
from interp.policies import Policy
from interp.runs import Run

KS = (2, 5, 9)


def problem(lengths: Sequence[int] = (12, 15, 9), d: int = 6, shift: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    return rng.normal(size=(n, d)) + shift, rng.normal(size=(n, 3)), episode, frame


def ours(z, target, episode, frame, ks=KS, window=30, valid=None) -> np.ndarray:
    folds = Folds(torch.tensor(episode), torch.tensor(frame), window)
    mask = None if valid is None else torch.tensor(valid)
    return errors(torch.tensor(z), torch.tensor(target), folds, ks, mask).numpy()


# ---- the regression


@pytest.mark.parametrize("shift", [0, 30], ids=["all directions", "nearly one direction"])
def test_it_is_the_published_procedure(shift: float) -> None:
    """At shift 30 all distances are below 1e-3, and 1 - cosine in float32 would have few digits left."""
    z, target, episode, frame = problem(shift=shift)
    for at, k in enumerate(KS):
        expected = naive_errors(z, target, episode, frame, k)
        np.testing.assert_allclose(ours(z, target, episode, frame)[at], expected, rtol=1e-5, atol=1e-7)


def test_a_twin_is_taken_alone_and_near_twins_are_weighed_exactly() -> None:
    z, target, episode, frame = problem()
    z[20] = 2 * z[3]  # the same direction in another episode
    z[28] = z[5] + 1e-5  # distance about 1e-11 of its own
    z[30] = z[7] + 2e-3  # about 1e-6: not a twin, but far below what float32 resolves here
    rows = [3, 5, 7, 20, 28, 30]  # for the others the pairs are ties, which have no right order
    for at, k in enumerate(KS):
        found = ours(z, target, episode, frame)[at]
        expected = naive_errors(z, target, episode, frame, k)
        np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-5)
    assert found[3] == pytest.approx(((target[20] - target[3]) ** 2).mean())


def test_neighbours_that_float32_cannot_tell_apart_are_still_put_in_order() -> None:
    """Around frame 0 lie twelve frames in pairs 1e-9 apart, of which k = 5 and 9 take one: float32 resolves 7e-9."""
    z, target, episode, frame = problem((1, 24, 40), d=32)
    u, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 13)))
    z[0] = u[:, 0]
    z[1:25] *= 0.01
    z[1:25] -= u[:, 0]  # the rest of the second episode points away
    order = np.random.default_rng(2).permutation(12)
    for place, late in enumerate(order, start=1):
        cosine = 1 - (0.1 + 0.01 * (late // 2) + 1e-9 * (late % 2))
        z[place] = cosine * u[:, 0] + np.sqrt(1 - cosine**2) * u[:, place]
    for at, k in enumerate(KS):
        expected = naive_errors(z, target, episode, frame, k)
        assert ours(z, target, episode, frame)[at][0] == pytest.approx(expected[0], rel=1e-6)
        # and when the same vectors are two heads that are joined
        folds = Folds(torch.tensor(episode), torch.tensor(frame))
        joint = JointDistances(torch.tensor(z).unflatten(1, (2, 16)), folds, budget=2**30)
        joint.add(0)
        assert joint.error(1, torch.tensor(target), k, None) == pytest.approx(expected.mean(), rel=1e-6)


def test_a_single_episode_leaves_out_the_frames_around_each_frame() -> None:
    z, target, episode, frame = problem([40])
    for at, k in enumerate(KS):
        found = ours(z, target, episode, frame, window=7)[at]
        expected = naive_errors(z, target, episode, frame, k, window=7)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = naive_errors(z, target, episode, frame, 2, window=25)
    assert np.isnan(expected).sum() == 12  # frames 14 to 25 are within 25 of both ends
    np.testing.assert_allclose(ours(z, target, episode, frame, window=25)[0], expected, rtol=1e-5)
    with pytest.raises(UsageError, match=r"single episode of 40 frames: leaving out \+-39"):
        ours(z, target, episode, frame, window=39)


def test_k_beyond_the_candidates_takes_all_of_them() -> None:
    z, target, episode, frame = problem((4, 3))
    found = ours(z, target, episode, frame, ks=(100,))[0]
    np.testing.assert_allclose(found, naive_errors(z, target, episode, frame, 100), rtol=1e-5)


def test_the_euclidean_metric_counts_length_as_well() -> None:
    z, target, episode, frame = problem()
    z *= np.random.default_rng(8).uniform(0.5, 2, size=(len(z), 1))
    z[5], z[7] = 0, z[20]  # silent: no special case; and a twin of another episode
    foreign = episode[:, None] != episode[None]
    distances = np.linalg.norm(z[:, None].astype(np.float64) - z[None], axis=2)
    for k in KS:
        expected = []
        for i in range(len(z)):
            near = sorted(np.flatnonzero(foreign[i]), key=lambda j: distances[i, j])[:k]
            weights = 1 / (distances[i, near] + 1e-8)
            twin = distances[i, near[0]] < 1e-8
            predicted = target[near[0]] if twin else weights @ target[near] / weights.sum()
            expected.append(((predicted - target[i]) ** 2).mean())
        found = errors(
            torch.tensor(z), torch.tensor(target), Folds(torch.tensor(episode), torch.tensor(frame)), (k,),
            metric="euclidean",
        )[0]  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(ours(z, target, episode, frame, ks=(k,))[0], expected)


def test_silent_heads_are_at_distance_one_from_everything() -> None:
    z, target, episode, frame = problem()
    z[2] = 0
    for at, k in enumerate(KS):
        found = ours(z, target, episode, frame)[at]
        expected = naive_errors(z, target, episode, frame, k)
        others = np.arange(len(z)) != 2  # for frame 2 all neighbours are equal
        np.testing.assert_allclose(found[others], expected[others], rtol=1e-5)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, target, episode, frame = problem()
    whole = ours(z, target, episode, frame)
    monkeypatch.setattr(interp.neighbours, "_BLOCK_BYTES", 4 * len(z) * 5)
    np.testing.assert_allclose(ours(z, target, episode, frame), whole, rtol=1e-6)


# ---- on a run


@pytest.fixture(scope="module")
def run(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(policy, tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def settings() -> KnnSettings:
    return KnnSettings(ks=(3, 6, 12))


def test_planted_heads_come_first_and_beat_chance(run: Run, settings: KnnSettings) -> None:
    scores = rank(run, settings, n=2)
    assert set(scores.best(2, "expert")) == set(PLANTED)
    tower = scores.towers["expert"]
    assert tower.null is not None
    assert tower.null.best is not None
    for head in PLANTED:
        assert scores.score(head) < tower.null.best
        assert tower.high[head.layer, head.index] < tower.null.mean
    noise = [scores.score(head) for head in scores.ranked("expert")[2:]]
    # Noise scores are what the null says noise scores: nine heads, so allow a fifth more than its 95 % range.
    margin = 0.2 * (tower.null.high - tower.null.low)
    assert tower.null.low - margin < np.mean(noise) < tower.null.high + margin
    assert (scores.method, scores.higher_is_better, scores.n) == ("knn", False, {"episodes": 6, "frames": 76})
    assert (scores.policy, scores.data) == ("pi0-x", "demos-x")


def test_dead_heads_have_no_score_and_cannot_be_chosen(run: Run, settings: KnnSettings) -> None:
    scores = rank(run, settings, n=2, permutations=0, resamples=0)
    assert np.isnan(scores.score(Head("expert", 1, 3)))
    assert scores.towers["expert"].dead == ((1, 3),)
    assert Head("expert", 1, 3) not in topk(run, 11, settings=settings).heads
    assert Head("expert", 1, 3) not in best_add(run, 11, settings=settings).heads
    with pytest.raises(UsageError, match="cannot choose 12 heads: tower expert has 11 live heads"):
        topk(run, 12, settings=settings)


@pytest.mark.parametrize("target", ["current", "chunk"])
@pytest.mark.parametrize("normalised", [False, True])
def test_scores_equal_the_reference(run: Run, target: str, normalised: bool) -> None:
    settings = KnnSettings(ks=(4,), target=target, normalised=normalised)  # type: ignore[arg-type]
    scores = rank(run, settings, n=2, permutations=0)
    z, signals = arrays(run)
    action, valid = signals.action.astype(float), None
    if normalised:
        action = action / action.std(axis=0)
    if target == "chunk":
        stops = np.cumsum(LENGTHS)
        episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        chunks = [[action[min(i + s, stops[episode[i]] - 1)] for s in range(6)] for i in range(len(action))]
        inside = [[i + s < stops[episode[i]] for s in range(6)] for i in range(len(action))]
        action, valid = np.array(chunks).reshape(len(action), -1), np.repeat(np.array(inside), 7, axis=1)
    for head in PLANTED:
        expected = naive_errors(
            z[:, head.layer, head.index], action, signals.episode, signals.frame, 4, valid=valid
        )
        assert scores.score(head) == pytest.approx(expected.mean(), rel=1e-6)


def test_topk_is_the_published_choice(run: Run, settings: KnnSettings) -> None:
    z, signals = arrays(run)
    live = [(layer, head) for layer in range(3) for head in range(4) if (layer, head) != (1, 3)]

    def joint(heads: Sequence[tuple[int, int]], k: int) -> float:
        together = np.concatenate([z[:, layer, head] for layer, head in heads], axis=1)
        return naive_errors(together, signals.action, signals.episode, signals.frame, k).mean()

    per_k = {}
    for k in settings.ks:
        order = sorted(live, key=lambda head: joint([head], k))
        per_k[k] = (joint(order[:3], k), order[:3])
    best = min(per_k, key=lambda k: per_k[k][0])
    selection = topk(run, 3, settings=settings)
    assert selection.k == best
    assert [(head.layer, head.index) for head in selection.heads] == per_k[best][1]
    for k, (error, _) in per_k.items():
        assert selection.per_k[k] == pytest.approx(error, rel=1e-5)

    # and best_add: at each k, greedily the head that helps the set most
    for k in settings.ks:
        chosen: list[tuple[int, int]] = []
        for _ in range(3):
            left = [head for head in live if head not in chosen]
            chosen.append(min(left, key=lambda head: joint([*chosen, head], k)))
        per_k[k] = (joint(chosen, k), chosen)
    best = min(per_k, key=lambda k: per_k[k][0])
    greedy = best_add(run, 3, settings=settings)
    assert (greedy.k, [(head.layer, head.index) for head in greedy.heads]) == (best, per_k[best][1])
    assert greedy.error == pytest.approx(per_k[best][0], rel=1e-5)
    assert set(greedy.heads[:2]) == set(PLANTED)
    grown = [joint(per_k[best][1][:size], best) for size in (1, 2, 3)]
    assert greedy.path == pytest.approx(grown, rel=1e-5)
    saved = rank(run, settings, n=3, permutations=0, resamples=0, greedy=True).settings["greedy"]["expert"]
    assert saved == {
        "k": best,
        "heads": [str(head) for head in greedy.heads],
        "joint_error": list(greedy.path),
    }
    assert best_add(run, 3, settings=settings, budget=8 * 4 * len(signals) ** 2) == greedy  # nothing kept
    with pytest.raises(UsageError, match="76 frames need"):
        best_add(run, 3, settings=settings, budget=1000)


def test_the_interval_is_that_of_resampled_episodes(run: Run) -> None:
    settings = KnnSettings(ks=(5,))
    scores = rank(run, settings, n=2, permutations=0, resamples=4000)
    z, signals = arrays(run)
    head = PLANTED[0]
    error = naive_errors(z[:, head.layer, head.index], signals.action, signals.episode, signals.frame, 5)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = rng.choice(np.unique(signals.episode), size=6)
        means.append(np.concatenate([error[signals.episode == episode] for episode in drawn]).mean())
    tower = scores.towers["expert"]
    width = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    # 5 % of the width: two Monte Carlo quantiles from 4000 draws.
    assert tower.low[head.layer, head.index] == pytest.approx(np.quantile(means, 0.025), abs=0.05 * width)
    assert tower.high[head.layer, head.index] == pytest.approx(np.quantile(means, 0.975), abs=0.05 * width)


def test_the_same_seed_gives_the_same_scores_and_they_survive_the_disk(
    run: Run, settings: KnnSettings
) -> None:
    first, second = (rank(run, settings, n=2, seed=3) for _ in range(2))
    assert first.to_json() | {"created": ""} == second.to_json() | {"created": ""}
    run.save_scores(first, "knn-test")
    assert run.read_scores("knn-test").to_json() == first.to_json()


def test_ranking_and_selections_are_those_of_the_benchmark_reference(run: Run) -> None:
    """What benchmarks/knn.py is faster than is the same procedure, a third time written down."""
    file = Path(__file__).parents[2] / "benchmarks/knn_reference.py"
    loader = importlib.util.spec_from_file_location("knn_reference", file)
    assert loader is not None
    assert loader.loader is not None
    reference = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(reference)
    z, signals = arrays(run)
    live = [(layer, head) for layer in range(3) for head in range(4) if (layer, head) != (1, 3)]
    flat = np.stack([z[:, layer, head] for layer, head in live], axis=1)
    data = flat, signals.action.astype(float), signals.episode
    settings = KnnSettings(ks=(3, 6))
    for at_once in (None, 1):
        ranked = reference.rank(*data, settings.ks, at_once)
        error, k, heads = reference.topk(*data, ranked, 4, at_once)
        found = topk(run, 4, settings=settings)
        assert (found.k, [live.index((h.layer, h.index)) for h in found.heads]) == (k, heads)
        assert found.error == pytest.approx(error, abs=1e-6)
        for k in settings.ks:
            scores = rank(run, KnnSettings(ks=(k,)), n=1, permutations=0, resamples=0)
            best = [
                (scores.score(head), live.index((head.layer, head.index))) for head in scores.ranked("expert")
            ]
            assert [head for _, head in best] == [head for _, head in ranked[k]]
            assert [error for error, _ in best] == pytest.approx([error for error, _ in ranked[k]], abs=1e-6)
    error, k, heads = reference.best_add(*data, settings.ks, 4)
    greedy = best_add(run, 4, settings=settings)
    assert (greedy.k, [live.index((h.layer, h.index)) for h in greedy.heads]) == (k, heads)
    assert greedy.error == pytest.approx(error, abs=1e-6)


def test_the_null_gives_episodes_the_actions_of_whole_episodes_at_random() -> None:
    """Stretched to their length: the first frame meets the first, the last the last, nothing leaves its order."""
    episode = np.repeat([0, 1], [3, 5])
    drawn = {tuple(foreign_frames(episode, np.random.default_rng(seed)).tolist()) for seed in range(9)}
    assert drawn == {(0, 1, 2, 3, 4, 5, 6, 7), (3, 5, 7, 0, 0, 1, 2, 2)}


def test_bad_input_is_one_clear_line(run: Run, settings: KnnSettings) -> None:
    for attempt, message in (
        (lambda: rank(run, settings, towers=["experts"]), "unknown tower 'experts'"),
        (lambda: rank(run, settings, towers=["vlm"]), "no activations of tower 'vlm'"),
        (
            lambda: rank(run, settings, towers=[]),
            "no towers to rank: name some of those that run .* has: expert",
        ),
        (
            lambda: rank(run, replace(settings, tokens={"expert": "state"})),
            "unknown captured token .*'state'",
        ),
        (lambda: KnnSettings(ks=(0,)), "k must be distinct numbers of at least 1"),
        (lambda: KnnSettings(target="next"), "unknown target 'next'"),  # type: ignore[arg-type]
        (lambda: KnnSettings(metric="l1"), "unknown metric 'l1': known are cosine, euclidean"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=message):
            attempt()


def test_activations_that_are_not_numbers_are_refused(
    run: Run, settings: KnnSettings, tmp_path: Path
) -> None:
    import shutil

    broken = Run.open(shutil.copytree(run.path, tmp_path / "broken"))
    zarr.open_group(broken.store("expert"), mode="r+")["first_action"][5, 1, 0, 0] = np.nan
    with pytest.raises(UsageError, match="expert layer 1 are not finite"):
        rank(broken, settings)
