"""Promises: intervals are right where a closed form says what right is, and pairing is respected."""

import math

import numpy as np
import pytest

from interp.errors import UsageError
from steering.stats import mean_bootstrap, paired_bootstrap, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (7, 10), (61, 100), (100, 100), (3, 1000)])
def test_wilson_bounds_are_the_rates_at_which_the_score_test_just_rejects(successes: int, n: int) -> None:
    """The definition, not the formula: |rate - p| = 1.96 standard errors *under p* at both bounds."""
    interval = wilson(successes, n)
    for p in (interval.low, interval.high):
        if 0 < p < 1:  # at 0 and 1 the bound is the end of the scale
            z = abs(successes / n - p) / math.sqrt(p * (1 - p) / n)
            assert z == pytest.approx(1.959964, abs=1e-5)


def test_wilson_reproduces_published_values() -> None:
    # Newcombe (Statistics in Medicine 17:857, 1998), table I, method 3, to the four digits printed
    for (successes, n), (low, high) in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        interval = wilson(successes, n)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def newcombe_paired(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Newcombe's closed form for paired proportions (Stat. Med. 17:2635, 1998, method 10, 95 %)."""
    n = both + first + second + neither
    a, b = both + first, both + second
    p1, p2 = a / n, b / n
    one, two = wilson(a, n), wilson(b, n)
    margins = a * (n - a) * b * (n - b)
    phi = 0.0 if margins == 0 else (both * neither - first * second) / math.sqrt(margins)
    dl1, du1, dl2, du2 = p1 - one.low, one.high - p1, p2 - two.low, two.high - p2
    lower = math.sqrt(dl1**2 - 2 * phi * dl1 * du2 + du2**2)
    upper = math.sqrt(du1**2 - 2 * phi * du1 * dl2 + dl2**2)
    return p1 - p2 - lower, p1 - p2 + upper


def table(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    treated = [True] * both + [True] * first + [False] * second + [False] * neither
    baseline = [True] * both + [False] * first + [True] * second + [False] * neither
    return treated, baseline


@pytest.mark.parametrize("counts", [(40, 25, 10, 25), (20, 55, 5, 20), (50, 12, 13, 25), (5, 30, 30, 35)])
def test_paired_bootstrap_agrees_with_newcombes_closed_form(counts: tuple[int, int, int, int]) -> None:
    interval = paired_bootstrap(*table(*counts))
    assert interval.value == pytest.approx((counts[1] - counts[2]) / sum(counts))
    # two different asymptotic methods at n = 100: within two episodes of each other
    assert (interval.low, interval.high) == pytest.approx(newcombe_paired(*counts), abs=0.021)


def test_paired_bootstrap_equals_resampling_the_episodes_one_by_one() -> None:
    treated, baseline = map(np.array, table(40, 25, 10, 25))
    rng = np.random.default_rng(1)
    picks = rng.integers(0, 100, (20_000, 100))
    naive = np.quantile((treated[picks].astype(float) - baseline[picks]).mean(axis=1), [0.025, 0.975])
    interval = paired_bootstrap(list(treated), list(baseline))
    # both are quantiles of the same lattice of hundredths: at most one point apart through Monte Carlo error
    assert (interval.low, interval.high) == pytest.approx(tuple(naive), abs=0.0101)


def test_equal_arms_have_an_interval_around_zero() -> None:
    assert 0.0 in paired_bootstrap(*table(30, 15, 15, 40))
    agreed = paired_bootstrap([True, False] * 10, [True, False] * 10)
    assert (agreed.low, agreed.value, agreed.high) == (0, 0, 0)


def test_pairing_matters() -> None:
    """The same two rates, once on shared layouts and once unrelated: pairing narrows the interval."""
    same, unrelated = paired_bootstrap(*table(60, 10, 0, 30)), paired_bootstrap(*table(42, 28, 18, 12))
    assert same.value == unrelated.value == pytest.approx(0.1)
    assert same.low > 0 > unrelated.low


def test_a_mean_over_one_task_and_run_is_the_paired_bootstrap() -> None:
    treated, baseline = (np.array([arm]) for arm in table(40, 25, 10, 25))
    mean, paired = mean_bootstrap([treated], [baseline]), paired_bootstrap(treated[0], baseline[0])
    assert mean.value == pytest.approx(paired.value)
    # quantiles of the same lattice of hundredths: at most one point apart through Monte Carlo error
    assert (mean.low, mean.high) == pytest.approx((paired.low, paired.high), abs=0.0101)


def naive_mean(strata: list[tuple[np.ndarray, np.ndarray]], shared: bool) -> np.ndarray:
    """Resample one by one: runs of both arms and the episodes, which both arms share, stratum by stratum."""
    rng, drawn = np.random.default_rng(7), []
    for _ in range(4000):
        picks = [rng.integers(0, a.shape[1], a.shape[1]) for a, _ in strata]
        differences = []
        for k, (a, b) in enumerate(strata):
            episodes = picks[0] if shared else picks[k]
            means = []
            for arm in (a[:, episodes], b[:, episodes]):
                runs = len(arm)
                off = arm[rng.integers(0, runs, runs)].mean() - arm.mean()
                means.append(arm.mean() + off * (math.sqrt(runs / (runs - 1)) if runs > 1 else 1))
            differences.append(means[0] - means[1])
        drawn.append(np.mean(differences))
    return np.quantile(drawn, [0.025, 0.975])


@pytest.mark.parametrize("shared", [False, True])
def test_a_mean_over_tasks_and_runs_equals_resampling_one_by_one(shared: bool) -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(size=60)  # layouts that are hard for everybody, in both strata
    strata = [
        (
            np.array([hard + rng.normal(size=60) + skill > 0 for skill in (0.1, 0.6, 1.0)]),
            np.array([hard + rng.normal(size=60) - 0.5 > 0]),
        )
        for _ in range(2)
    ]
    mean = mean_bootstrap(
        [a for a, _ in strata], [b for _, b in strata], layouts=["same", "same"] if shared else None
    )
    assert mean.value == pytest.approx(np.mean([a.mean() - b.mean() for a, b in strata]))
    # 4000 draws place a 2.5 % quantile of a spread of 0.07 within half a point; two such quantiles, twice over
    assert (mean.low, mean.high) == pytest.approx(tuple(naive_mean(strata, shared)), abs=0.015)


def test_sharing_layouts_does_not_count_the_same_luck_twice() -> None:
    """Ten suites on the same twenty episodes, all alike: no surer than one of them."""
    arm = np.array([[True] * 9 + [False] * 11])
    one = mean_bootstrap([arm])
    ten, apart = mean_bootstrap([arm] * 10, layouts=["put"] * 10), mean_bootstrap([arm] * 10)
    assert ten.high - ten.low == pytest.approx(one.high - one.low, abs=0.05)  # one episode of twenty
    assert apart.high - apart.low < 0.5 * (one.high - one.low)


def test_the_luck_of_training_counts_where_it_is_known() -> None:
    lucky, unlucky = [True] * 80 + [False] * 20, [True] * 20 + [False] * 80
    several = mean_bootstrap([np.array([lucky, unlucky])])
    assert several.value == 0.5
    assert several.low < 0.3
    assert several.high > 0.7


@pytest.mark.parametrize("runs", [2, 3])
def test_the_interval_holds_what_it_promises_under_the_luck_of_training(runs: int) -> None:
    """Two equal recipes on five tasks, whose trainings are up to twenty points better or worse: 95 % of 200
    comparisons should find no difference. The unwidened bootstrap finds none in 90 % with two runs."""
    rng, covered = np.random.default_rng(0), 0

    def arm() -> list[np.ndarray]:
        return [
            np.array([rng.random(100) < np.clip(0.6 + rng.normal(0, 0.1), 0, 1) for _ in range(runs)])
            for _ in range(5)
        ]

    for _ in range(200):
        found = mean_bootstrap(arm(), arm(), resamples=500)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 200 <= 0.99


def test_bootstrap_is_a_function_of_its_seed() -> None:
    arms = table(40, 25, 10, 25)
    assert paired_bootstrap(*arms, seed=3) == paired_bootstrap(*arms, seed=3)


def test_bad_input_is_named() -> None:
    with pytest.raises(UsageError, match="11 successes of 10 episodes"):
        wilson(11, 10)
    with pytest.raises(UsageError, match="at least one episode"):
        wilson(0, 0)
    with pytest.raises(UsageError, match="2 and 1 episodes"):
        paired_bootstrap([True, False], [True])
    with pytest.raises(UsageError, match="at least one stratum"):
        mean_bootstrap([])
    with pytest.raises(UsageError, match="same episodes"):
        mean_bootstrap([np.ones((1, 3), bool)], [np.ones((1, 2), bool)])
    with pytest.raises(UsageError, match="confidence 95"):
        wilson(1, 2, confidence=95)
