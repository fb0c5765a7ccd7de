"""Promises: intervals are right where a closed form says what right is, and pairing is respected."""

import math

import numpy as np
import pytest

from interp.errors import UsageError
from steering.stats import paired_bootstrap, wilson


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
    with pytest.raises(UsageError, match="confidence 95"):
        wilson(1, 2, confidence=95)
