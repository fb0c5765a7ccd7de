"""How many heads two sets share by chance: a hypergeometric number.

Two sets of k of n heads, each drawn at random, share k * k / n on average. `chance` gives that and where 95 % of the
draws lie, which is what an overlap of real head sets has to leave before it says anything.
"""

from math import comb

import numpy as np


def chance(n: int, k: int) -> tuple[float, int, int]:
    """Heads that two random sets of k of n share: mean, and the ends of the central 95 %."""
    if n == 0 or k == 0:
        return 0.0, 0, 0
    cumulative = np.cumsum([hypergeometric(x, n, k) for x in range(k + 1)])
    low = int(np.searchsorted(cumulative, 0.025, side="right"))
    high = int(np.searchsorted(cumulative, 0.975 - 1e-12, side="left"))
    return k * k / n, min(low, k), min(high, k)


def hypergeometric(x: int, n: int, k: int) -> float:
    """Probability that two random sets of k of n share exactly x."""
    if n - k < k - x:
        return 0.0
    return comb(k, x) * comb(n - k, k - x) / comb(n, k)


def at_least(x: int, n: int, k: int) -> float:
    return min(1.0, sum(hypergeometric(i, n, k) for i in range(x, k + 1)))
