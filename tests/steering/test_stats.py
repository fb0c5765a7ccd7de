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


def test_few_layouts_that_tell_arms_apart_are_no_difference_yet() -> None:
    """Nothing to resample is not certainty: the sign test of 4 against 0 has p = 0.125, of 10 against 0 p = 0.002."""
    agreed = paired_bootstrap([True, False] * 10, [True, False] * 10)
    assert agreed.low < agreed.value == 0 < agreed.high < 3 / 20  # rule of three
    for n in (25, 50, 100):
        assert 0 in paired_bootstrap(*table(n - 4, 0, 4, 0))
        assert paired_bootstrap(*table(n - 10, 0, 10, 0)).high < 0


def test_a_baseline_at_its_ceiling_is_not_surer_for_being_compared_with_five_policies() -> None:
    """It was rolled out once: its 25 successes are 25 layouts, whatever how many arms are paired with them."""
    base = np.ones((1, 25), bool)
    arms = [
        ~np.isin(np.arange(25)[None], (k, k + 1)) for k in (3, 7, 11, 16, 20)
    ]  # each fails twice, elsewhere
    found = mean_bootstrap(arms, [base] * 5, layouts=["press"] * 5)
    assert found.value == pytest.approx(-0.08)
    assert 0 in found
    assert mean_bootstrap(arms, [base] * 5).high < 0  # not the same layouts: five times the evidence


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
    """Resample one by one: the episodes, which both arms share, stratum by stratum."""
    rng, drawn = np.random.default_rng(7), []
    for _ in range(4000):
        picks = [rng.integers(0, a.shape[1], a.shape[1]) for a, _ in strata]
        differences = []
        for k, (a, b) in enumerate(strata):
            episodes = picks[0] if shared else picks[k]
            differences.append(a[:, episodes].mean() - b[:, episodes].mean())
        drawn.append(np.mean(differences))
    return np.quantile(drawn, [0.025, 0.975])


@pytest.mark.parametrize("shared", [False, True])
def test_a_mean_over_tasks_equals_resampling_one_by_one(shared: bool) -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(size=60)  # layouts that are hard for everybody, in both strata
    strata = [
        tuple(np.array([hard + rng.normal(size=60) + skill > 0]) for skill in (0.6, -0.5)) for _ in range(2)
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


def seeds(runs: int, tasks: int = 1) -> list[tuple[range, range]]:
    """Both arms were trained from seeds 0, 1, ... on every task."""
    return [(range(runs), range(runs))] * tasks


@pytest.mark.parametrize(("tasks", "runs", "least"), [(1, 3, 0.91), (5, 2, 0.91), (5, 3, 0.91), (1, 2, 0.87)])
@pytest.mark.parametrize(
    ("own", "seed", "layout"),
    [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.1, 0.2)],
    ids=["none", "own", "shared"],
)
def test_the_interval_holds_what_it_promises_under_the_luck_of_training(
    tasks: int, runs: int, least: float, own: float, seed: float, layout: float
) -> None:
    """Two equal recipes, whose trainings are luckier each for itself (own) or for both (seed): 95 % of 300 comparisons
    should find no difference, and about 90 % of those of two trainings on one task, from which luck cannot be known.
    Independent bootstraps of runs and episodes find none in all 300 without luck; one that takes no notice of runs
    finds none in 40 %, with luck of each training; one of too many degrees of freedom in 86 %, with three of a task."""
    rng, covered = np.random.default_rng(0), 0

    def arms() -> list[list[np.ndarray]]:
        of_both = rng.normal(0.6, seed, (runs, 1)) + rng.normal(0, layout, 100)
        luck = rng.normal(0, own, (2, runs, 1))
        return [rng.random((runs, 100)) < np.clip(of_both + each, 0, 1) for each in luck]

    for _ in range(300):
        treated, baseline = zip(*(arms() for _ in range(tasks)), strict=True)
        found = mean_bootstrap(treated, baseline, resamples=500, seeds=seeds(runs, tasks))
        covered += found.low <= 0 <= found.high
    assert covered / 300 >= least
    assert covered / 300 <= 0.995 or runs == 2  # of which a t quantile is wide


def test_what_all_arms_owe_to_a_seed_is_no_difference_between_them() -> None:
    rng = np.random.default_rng(1)
    layouts, luck = rng.normal(0, 0.2, 100), np.array([[0.3], [0.6], [0.9]])
    arm, other = (rng.random((3, 100)) < np.clip(luck + layouts, 0, 1) for _ in range(2))
    matched, apart = (mean_bootstrap([arm], [other], seeds=s) for s in (seeds(3), None))
    assert matched.value == pytest.approx(apart.value)
    assert matched.high - matched.low < 0.4 * (apart.high - apart.low)


def test_more_trainings_without_luck_make_it_surer() -> None:
    rng = np.random.default_rng(2)
    arms = [(rng.random((2, 3, 100)) < 0.6) for _ in range(5)]
    widths = []
    for runs in (1, 3):
        found = mean_bootstrap(
            [a[:runs] for a, _ in arms], [b[:runs] for _, b in arms], seeds=seeds(runs, len(arms))
        )
        widths.append(found.high - found.low)
    assert widths[1] < 0.9 * widths[0]  # a root of three narrower, were there nothing to estimate


def test_luck_that_all_tasks_share_does_not_average_out() -> None:
    """A seed, or random heads that it drew, is one for five tasks: taken as five, it would be found where equal recipes
    differ by luck alone, in a fifth of the comparisons."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        luck = rng.normal(0.6, 0.1, (3, 1))
        drawn = [rng.random((3, 100)) < np.clip(luck, 0, 1) for _ in range(5)]
        fixed = [rng.random((3, 100)) < 0.6 for _ in range(5)]
        found = mean_bootstrap(drawn, fixed, seeds=seeds(3, 5), resamples=500)
        covered += found.low <= 0 <= found.high
    assert covered > 0.88 * 200


def test_seeds_on_one_task_speak_for_the_luck_of_the_others() -> None:
    """Three trainings of one task that are far apart: a mean with single ones of four more tasks is no surer."""
    episodes = np.arange(100)
    lucky = np.array([episodes < 60, episodes < 45, episodes < 30])
    everywhere = mean_bootstrap([lucky] * 5, seeds=[((0, 1, 2), ())] * 5)
    partly = mean_bootstrap(
        [lucky, *[lucky[:1]] * 4],
        seeds=[((0, 1, 2), ()), *[((0,), ())] * 4],
    )
    single = mean_bootstrap([lucky[:1]] * 5, seeds=[((0,), ())] * 5)
    widths = [i.high - i.low for i in (single, everywhere, partly)]
    assert widths[0] < widths[1] < widths[2]


def test_runs_are_matched_by_their_seeds_not_by_their_place() -> None:
    """One task has seeds 0 and 1, the other 2 and 1, in which order is all the same; seed 1 is the lucky one."""
    episodes = np.arange(100)
    usual, lucky = episodes < 40, episodes < 70
    one, other = np.array([usual, lucky]), np.array([lucky, usual])
    named = mean_bootstrap([one, other], seeds=[((0, 1), ()), ((1, 0), ())])
    assert named == mean_bootstrap([one, one], seeds=[((0, 1), ()), ((0, 1), ())])
    assert named.high - named.low > mean_bootstrap([one, other]).high - mean_bootstrap([one, other]).low


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
    with pytest.raises(UsageError, match=r"2 runs of seeds \[0\]: name each run's, once"):
        mean_bootstrap([np.ones((2, 3), bool)], seeds=[((0,), ())])
    with pytest.raises(UsageError, match="confidence 95"):
        wilson(1, 2, confidence=95)
