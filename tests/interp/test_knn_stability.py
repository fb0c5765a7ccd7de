"""Promises of the stability of a ranking: heads that know the action come first in any half, and chance is called so.

The reference ranks every half of the episodes with the naive procedure of knn_kit.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from knn_kit import LENGTHS, PLANTED, arrays, naive_errors, planted_run

import robosteer
from interp.errors import UsageError
from interp.knn import KnnSettings, rank
from interp.policies import Policy
from interp.runs import Run
from interp.scores import HeadScores
from interp.stability import kendall, spearman, stability


@pytest.fixture(scope="module")
def run(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(policy, tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def ranking(run: Run) -> HeadScores:
    return rank(run, KnnSettings(ks=(3,)), n=4, permutations=0, resamples=0)


def test_frequencies_are_those_of_ranking_every_half_by_itself(run: Run, ranking: HeadScores) -> None:
    """Six episodes have twenty halves; with many splits each comes about as often."""
    z, signals = arrays(run)
    live = [(layer, head) for layer in range(3) for head in range(4) if (layer, head) != (1, 3)]
    chosen = np.zeros(len(live))
    for half in combinations(np.unique(signals.episode), 3):
        rows = np.isin(signals.episode, half)
        data = signals.action[rows], signals.episode[rows], signals.frame[rows]
        scores = [naive_errors(z[rows][:, layer, head], *data, 3).mean() for layer, head in live]
        chosen[np.argsort(scores)[:4]] += 1 / 20
    found = stability(run, ranking, splits=150)
    value = np.array([found.tower("expert").value[place] for place in live])
    # 150 splits are 300 halves: three standard errors of a share.
    assert np.abs(value - chosen).max() < 3 * np.sqrt(0.25 / 150)
    assert value.sum() == pytest.approx(4)
    assert all(found.score(head) == 1 for head in PLANTED)
    assert np.isnan(found.tower("expert").value[1, 3])
    assert (found.method, found.higher_is_better, found.tower("expert").low) == ("knn-stability", True, None)


def test_noise_is_chosen_as_often_as_chance_says(run: Run, ranking: HeadScores) -> None:
    found = stability(run, ranking, splits=20)
    null = found.tower("expert").null
    assert null is not None
    assert null.mean == pytest.approx(4 / 11)
    # Forty draws of 4 of 11: a binomial share, whose central 95 % is about 0.364 +- 1.96 * 0.076.
    assert (null.low, null.high) == pytest.approx((0.22, 0.51), abs=0.03)
    noise = [found.score(head) for head in found.ranked("expert")[2:]]
    assert np.mean(noise) == pytest.approx(2 / 9)  # the planted two take half of the places
    agreement = found.settings["agreement"]["expert"]
    assert agreement["shared"]["chance"] == pytest.approx(16 / 11)
    assert agreement["shared"]["mean"] >= 2
    assert (
        -1 <= agreement["kendall"]["low"] <= agreement["kendall"]["mean"] <= agreement["kendall"]["high"] <= 1
    )


def test_rank_correlations_are_the_textbook_formulas() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.permutation(9), rng.permutation(9)
    assert spearman(a, b) == pytest.approx(1 - 6 * ((a - b) ** 2).sum() / (9 * 80))
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in combinations(range(9), 2)]
    assert kendall(a, b) == pytest.approx(np.mean(signs))
    assert spearman(a, a) == pytest.approx(1)
    tied, reversed_ties = np.array([0, 1, 1, 2]), np.array([2, 1, 1, 0])
    assert spearman(tied, tied) == -spearman(tied, reversed_ties) == pytest.approx(1)
    assert kendall(a, 8 - a) == pytest.approx(-1)


def test_the_same_seed_gives_the_same_answer_and_it_survives_the_disk(run: Run, ranking: HeadScores) -> None:
    first, second = (stability(run, ranking, splits=2, seed=5) for _ in range(2))
    assert first.to_json() | {"created": ""} == second.to_json() | {"created": ""}
    run.save_scores(first)
    assert run.read_scores("knn-stability").to_json() == first.to_json()


def test_whole_chunks_and_normalised_actions_are_ranked_by_halves_too(run: Run) -> None:
    scores = rank(
        run, KnnSettings(ks=(3,), target="chunk", normalised=True), n=4, permutations=0, resamples=0
    )
    assert stability(run, scores, splits=1).tower("expert").value.shape == (3, 4)


def test_bad_input_is_one_clear_line(run: Run, ranking: HeadScores, policy: Policy, tmp_path: Path) -> None:
    few = planted_run(policy, tmp_path / "few", LENGTHS[:3])
    few_ranked = rank(few, KnnSettings(ks=(3,)), n=4, permutations=0, resamples=0)
    other = HeadScores("direct", "", "", True, {}, run.policy, run.data, {})
    foreign = HeadScores.from_json({**ranking.to_json(), "data": "demos-y"})
    for attempt, message in (
        (lambda: stability(few, few_ranked), "at least 4 episodes, two for each half; the run has 3"),
        (lambda: stability(run, other), "'direct' are no k-NN ranking"),
        (lambda: stability(run, foreign), "the scores are not of run"),
        (lambda: stability(run, ranking, splits=0), "splits must be at least 1"),
        (lambda: stability(run, ranking, n=11), "top 11: tower expert has 11 live heads"),
    ):
        with pytest.raises(UsageError, match=message):
            attempt()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--top", "0"), "top 0: at least one head chooses k"),
        (("--top", "4", "--stability", "0"), "splits must be at least 1, not 0"),
        (("--top", "4", "--stability", "-1"), "splits must be at least 1, not -1"),
        (("--top", "11", "--stability"), "top 11: tower expert has 11 live heads"),
    ],
)
def test_what_has_no_stability_is_refused_before_anything_is_ranked(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr("interp.knn.Problem", lambda *_: pytest.fail("ranked"))
    assert robosteer.main(["rank", "--run", str(run.path), "--k", "3", "--name", "bad", *words]) == 2
    assert says in capsys.readouterr().err
    assert "bad" not in run.files("scores")
