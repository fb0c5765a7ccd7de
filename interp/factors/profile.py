"""A head's profile: how visual, how linguistic, how physical it is.

With s_f the head's share of factor f's total effect (NIE / TE, either sign: a head that pushes against a change has
noticed it too),

    profile_f = |s_f| / sum over factors |s|          sums to 1 over the factors; NaN if the head carries nothing
    strength  = sum over factors |s|

Factors are made comparable by the share itself, which is relative to what the factor's swaps do to the action. Read
the profile with the strength: of a head that carries next to nothing the profile is noise, and its interval says so. A
factor that does nothing to the action (see effects.py) counts as 0.

Axes: head, factor. Intervals resample episodes, the same ones in all factors.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float

from interp.errors import UsageError, unknown
from interp.factors.effects import Effects
from interp.factors.pairs import FACTORS
from interp.heads import Head


@dataclass(frozen=True)
class Profile:
    """Profiles of all measured heads; `low` and `high` bound 95 %."""

    heads: tuple[Head, ...]
    factors: tuple[str, ...]
    share: Float[np.ndarray, "head factor"]
    low: Float[np.ndarray, "head factor"] | None
    high: Float[np.ndarray, "head factor"] | None
    strength: Float[np.ndarray, " head"]

    def of(self, head: Head) -> dict[str, tuple[float, float | None, float | None]]:
        """(share, low, high) by factor."""
        if head not in self.heads:
            raise unknown("measured head", head, self.heads)
        at = self.heads.index(head)
        return {
            factor: (
                float(self.share[at, f]),
                None if self.low is None else float(self.low[at, f]),
                None if self.high is None else float(self.high[at, f]),
            )
            for f, factor in enumerate(self.factors)
        }

    def to_json(self) -> dict[str, Any]:
        def number(x: float | None) -> float | None:
            return round(x, 6) if x is not None and np.isfinite(x) else None

        return {
            "factors": list(self.factors),
            "heads": [
                {
                    "head": str(head),
                    "strength": number(float(self.strength[at])),
                    **{
                        factor: {"share": number(share), "low": number(low), "high": number(high)}
                        for factor, (share, low, high) in self.of(head).items()
                    },
                }
                for at, head in enumerate(self.heads)
            ],
        }


def profile(effects: Mapping[str, Effects], resamples: int = 1000, seed: int = 0) -> Profile:
    """From the measurements of at least two factors, by factor, of the same heads."""
    factors = tuple(factor for factor in FACTORS if factor in effects)
    if len(factors) < 2:
        raise UsageError(f"a profile compares factors: measure at least two, not {len(factors)}")
    chosen = [effects[factor] for factor in factors]
    heads = chosen[0].heads
    if any(each.heads != heads for each in chosen):
        raise UsageError("factors of a profile must be measured on the same heads: use the same towers")
    everything = np.unique(np.concatenate([each.groups for each in chosen]))
    numerator = np.zeros((len(factors), len(heads), len(everything)))
    denominator = np.zeros((len(factors), len(everything)))
    for f, each in enumerate(chosen):
        if not each.silent:
            places = np.searchsorted(everything, each.groups)
            np.add.at(numerator[f].T, places, each.indirect.T)
            np.add.at(denominator[f], places, each.total)
    once = np.ones((1, len(everything)))
    share, strength = _shares(numerator, denominator, once)
    low = high = None
    if len(everything) > 1 and resamples:
        uniform = np.full(len(everything), 1 / len(everything))
        draws = np.random.default_rng(seed).multinomial(len(everything), uniform, size=resamples)
        resampled = _shares(numerator, denominator, draws.astype(float))[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # heads without a profile have no interval either
            low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return Profile(heads, factors, share[0], low, high, strength[0])


def _shares(
    numerator: Float[np.ndarray, "factor head group"],
    denominator: Float[np.ndarray, "factor group"],
    draws: Float[np.ndarray, "resample group"],
) -> tuple[Float[np.ndarray, "resample head factor"], Float[np.ndarray, "resample head"]]:
    """Profile and strength under every weighting of the groups."""
    carried = rearrange(numerator @ draws.T, "factor head resample -> resample head factor")
    whole = rearrange(denominator @ draws.T, "factor resample -> resample 1 factor")
    size = np.abs(np.divide(carried, whole, out=np.zeros_like(carried), where=whole > 0))
    strength = size.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return size / strength[..., None], strength
