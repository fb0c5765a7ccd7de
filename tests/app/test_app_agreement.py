"""Agreement of methods is what a naive count says, and chance is what shuffling says."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import plotly.graph_objects as go
import pytest
from app_kit import DATA, POLICY, make_scores

from app import agreement, comparisons, theme, trust
from interp import overlap
from interp.heads import Head
from interp.scores import HeadScores, TowerScores


def scored(values: list[float], method: str = "knn", *, higher: bool = True, **more: object) -> HeadScores:
    tower = TowerScores(np.array([values], dtype=float))
    text = {"label": method, "units": "share", "n": {}, **more}
    return HeadScores(
        method=method, higher_is_better=higher, towers={"expert": tower}, policy=POLICY, data=DATA, **text
    )  # type: ignore[arg-type]


def test_rank_correlation_is_that_of_the_textbook() -> None:
    # without ties: 1 - 6 sum d^2 / n (n^2 - 1)
    a, b = np.array([3.0, 1, 4, 5, 9, 2]), np.array([2.0, 7, 1, 8, 6, 3])
    d = np.argsort(np.argsort(a)) - np.argsort(np.argsort(b))
    assert agreement.spearman(a, b)[0] == pytest.approx(1 - 6 * (d**2).sum() / (6 * 35))
    assert agreement.spearman(a, a) == pytest.approx((1, 1, 1))
    assert agreement.spearman(a, -a)[0] == pytest.approx(-1)
    assert np.isnan(agreement.spearman(a, np.ones(6))).all()


def test_interval_of_the_correlation_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    rho, n, covered, trials = 0.6, 64, 0, 400
    # Spearman's rho of a normal pair with correlation r is 6/pi asin(r/2)
    r = 2 * np.sin(np.pi * rho / 6)
    for _ in range(trials):
        x = rng.standard_normal(n)
        y = r * x + np.sqrt(1 - r * r) * rng.standard_normal(n)
        _, low, high = agreement.spearman(x, y)
        covered += low <= rho <= high
    assert 0.92 <= covered / trials <= 0.98  # 0.95 with a standard error of 0.011


def test_a_method_whose_low_scores_are_good_can_agree_with_one_whose_high_scores_are() -> None:
    files = {"up": scored([1, 2, 3, 4, 5]), "down": scored([5, 4, 3, 2, 1], higher=False)}
    ranks = agreement.rankings(files, "expert")
    assert ranks.rank[0].tolist() == ranks.rank[1].tolist() == [5, 4, 3, 2, 1]
    assert agreement.correlations(ranks)[0].value == pytest.approx(1)
    assert agreement.overlaps(ranks, 2)[0].shared == 2


def test_chance_of_an_overlap_is_that_of_all_shuffles() -> None:
    n, k = 6, 3
    shared = [len(set(p[:k]) & {0, 1, 2}) for p in permutations(range(n))]
    for x in range(k + 1):
        assert overlap.hypergeometric(x, n, k) == pytest.approx(shared.count(x) / len(shared))
        assert overlap.at_least(x, n, k) == pytest.approx(sum(s >= x for s in shared) / len(shared))
    assert overlap.chance(n, k)[0] == pytest.approx(np.mean(shared))
    mean, low, high = overlap.chance(64, 12)
    draws = np.random.default_rng(1).hypergeometric(12, 52, 12, size=200_000)
    assert mean == pytest.approx(draws.mean(), abs=0.01)
    assert ((draws >= low) & (draws <= high)).mean() >= 0.95
    assert ((draws > low) & (draws < high)).mean() < 0.95  # and no wider than it must be
    assert overlap.chance(4, 4) == (4.0, 4, 4)


def test_memberships_partition_the_heads_that_anyone_has_among_the_best() -> None:
    rng = np.random.default_rng(2)
    files = {name: scored(rng.permutation(20).tolist()) for name in "abc"}
    ranks = agreement.rankings(files, "expert")
    groups = agreement.memberships(ranks, 5)
    tops = {name: set(one.best(5, "expert")) for name, one in files.items()}
    seen: list[Head] = []
    for group in groups:
        seen += group.heads
        for head in group.heads:
            assert [head in tops[name] for name in files] == [m in group.methods for m in range(3)]
    assert len(seen) == len(set(seen))
    assert set(seen) == set.union(*tops.values())


def test_only_heads_that_all_methods_scored_are_compared() -> None:
    files = {"a": scored([3, 2, 1, np.nan]), "b": scored([np.nan, 1, 2, 3])}
    ranks = agreement.rankings(files, "expert")
    assert [h.index for h in ranks.heads] == [1, 2]
    assert ranks.rank.tolist() == [[1, 2], [2, 1]]


def test_a_factor_is_compared_with_its_own_scores_and_with_methods_that_have_none() -> None:
    files = {
        "knn": scored([1, 2]),
        "patching": scored([1, 2], "patching-denoising"),
        "patching-visual": scored([1, 2], "patching-denoising", factor="visual"),
        "atp-visual": scored([1, 2], "atp-denoising", factor="visual"),
        "atp-physical": scored([1, 2], "atp-denoising", factor="physical"),
        "knn-stability": scored([1, 0], "knn-stability"),
    }
    assert set(agreement.files_of(files, "expert", None)) == {"knn", "patching"}
    assert set(agreement.files_of(files, "expert", "visual")) == {"patching-visual", "atp-visual", "knn"}
    assert agreement.checks(files, "expert") == [("patching-visual", "atp-visual")]
    assert list(agreement.stability(files, "expert")) == ["knn-stability"]


def test_reading_says_which_agree_and_which_do_no_better_than_chance() -> None:
    rng = np.random.default_rng(3)
    base = rng.standard_normal(64)
    files = {
        "one": scored(base.tolist()),
        "two": scored((base + 0.1 * rng.standard_normal(64)).tolist()),
        "noise": scored(rng.standard_normal(64).tolist()),
    }
    lines = agreement.reading(agreement.rankings(files, "expert"), 12)
    assert lines[0].startswith("Most alike: **one** and **two** (ρ = 0.9")
    assert "No more in common than chance gives: one and noise; two and noise." in lines[1]


def test_figures_are_valid_and_carry_their_numbers() -> None:
    shape = {"expert": (5, 4)}
    files = {f"m{i}": make_scores(shape, seed=i, higher=i > 0) for i in range(4)}
    ranks = agreement.rankings(files, "expert")
    pairs, k = agreement.overlaps(ranks, 6), 6
    frequent = {
        f"s{i}": scored([1.0, 0.5, 0.0], "knn-stability", settings={"n": {"expert": 1}}) for i in range(2)
    }
    for scheme in theme.SCHEMES:
        figures = [
            comparisons.matrix(ranks, agreement.correlations(ranks), scheme),
            comparisons.overlap(ranks, pairs, k, scheme),
            comparisons.upset(ranks, agreement.memberships(ranks, k), k, scheme),
            comparisons.slope(ranks, k, scheme),
            trust.check(files["m1"], files["m2"], "expert", ("m1", "m2"), scheme),
            trust.stable(frequent, "expert", scheme),
        ]
        for figure in figures:
            go.Figure(figure)  # Plotly refuses unknown properties and values
            assert figure["layout"]["meta"]["rows"]
            for path, token in figure["layout"]["meta"]["paint"]:
                at: object = figure
                for key in path:
                    at = at[key]  # type: ignore[index]
                assert at == painted(token, scheme), (path, token)


def painted(token: str, scheme: str) -> object:
    """The colour that the browser puts in place of a token: it must be the one that the figure came with."""
    name, _, alpha = token.partition("/")
    field, _, place = name.partition(".")
    colour = getattr(theme.SCHEMES[scheme], field)
    if field == "worst_to_best":
        return theme.ramp(scheme)
    return (colour[int(place)] if place else colour) + alpha
