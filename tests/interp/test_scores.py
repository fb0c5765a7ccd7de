"""What scores of heads promise: an order that is the same for every reader, and none where nothing ranks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from interp.scores import HeadScores, TowerScores, midranks
from interp.stability import spearman


def scores_of(value: np.ndarray, higher: bool) -> HeadScores:
    return HeadScores(
        method="made-up", label="made up", units="share", higher_is_better=higher,
        towers={"expert": TowerScores(value)}, policy="p", data="d", n={},
    )  # fmt: skip


@pytest.mark.parametrize("higher", [True, False])
def test_heads_with_one_score_share_the_mean_of_their_ranks_and_dead_ones_have_none(higher: bool) -> None:
    value = np.random.default_rng(0).integers(0, 9, (4, 8)).astype(float)
    value[-1, :3] = np.nan
    found, live = scores_of(value, higher).ranks("expert"), np.isfinite(value)
    assert found[live].tolist() == rankdata(-value[live] if higher else value[live]).tolist()
    assert np.isnan(found[~live]).all()


def test_ties_are_those_of_the_textbook_wherever_they_stand() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, (2, 40))
    assert midranks(a).tolist() == rankdata(a).tolist()
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    shuffled = rng.permutation(40)
    assert spearman(a[shuffled], b[shuffled]) == pytest.approx(spearman(a, b))
