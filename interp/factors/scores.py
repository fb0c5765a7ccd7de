"""Factor scores: a head's share of what a factor's swaps do to the action, as HeadScores.

`factor_scores`  one factor: all its pairs; by edit and by kind in `settings`
`kind_scores`    one kind, over the factors: what a head carries of swaps that should change the action (semantic), or
                 of swaps that should not (nuisance), which is where robustness is lost

settings
    edits    by edit: kind, pairs, size of the swap, and the share of every head
    control  linguistic alone: size of the words' swaps next to the size of taking the prompt away, and `blind`
    note     what a reader must know, in a sentence, if there is anything: no effect, stand-in edits

A share of nothing is no number: heads of a silent factor have no score (NaN; null in JSON).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from interp.assembly import Interval, bootstrap, grid_of, tower_scores
from interp.errors import UsageError, unknown
from interp.factors.effects import Effects, Size, of_kind
from interp.factors.pairs import KINDS
from interp.patching import UNITS
from interp.policies.protocol import Policy
from interp.scores import HeadScores

LABELS = {"patching": "activation patching", "atp": "attribution patching"}


def factor_scores(
    policy: Policy, effects: Effects, *, data: str | None = None, resamples: int = 1000
) -> HeadScores:
    """Of every measured head. `data` is the fingerprint of the run's demonstrations; the pairs' own by default."""
    pairs = effects.pairs
    sizes = {name: effects.size(pairs.where(edit=name)) for name in pairs.edits}
    settings = {
        **_how(effects, resamples),
        "factor_pairs": pairs.source,
        "size": _rounded(effects.size()),
        "edits": {
            name: {
                "kind": pairs.twins[pairs.where(edit=name)[0]].kind,
                **_rounded(size),
                "share": _grids(policy, effects, effects.share(pairs.where(edit=name))),
            }
            for name, size in sizes.items()
        },
        "kinds": {
            kind: _rounded(effects.size(pairs.where(kind=kind))) for kind in KINDS if pairs.where(kind=kind)
        },
        "control": control(effects),
        "note": note(effects),
    }
    interval = effects.interval(resamples=resamples)
    return _scores(
        policy, effects, effects.share(), interval, effects.groups, data, settings, factor=pairs.factor
    )


def kind_scores(
    policy: Policy,
    effects: Iterable[Effects],
    kind: str,
    *,
    data: str | None = None,
    resamples: int = 1000,
) -> HeadScores:
    """Over all factors' pairs of a kind; a factor counts by the size of its swaps' effect.

    A silent factor's heads were not measured: it is left out and named in `settings["unmeasured"]`.
    """
    if kind not in KINDS:
        raise unknown("kind of edit", kind, KINDS)
    parts = of_kind(effects, kind)
    if not parts:
        raise UsageError(f"no pairs are {kind}: choose edits of that kind")
    first = parts[0][0]
    measured = [(part, places) for part, places in parts if not part.silent]
    if any(part.heads != first.heads or part.method != first.method for part, _ in parts):
        raise UsageError("factors that are scored together need the same method and towers")
    counted = measured or parts
    indirect = np.concatenate([part.indirect[:, places] for part, places in counted], axis=1)
    total = np.concatenate([part.total[places] for part, places in counted])
    group = np.concatenate([part.groups[places] for part, places in counted])
    size = Size.of(total, group, first.numbers, first.seed)
    share = np.full(len(first.heads), np.nan)
    interval: Interval = (None, None)
    if measured and not size.silent:
        share = indirect.sum(axis=1) / total.sum()
        interval = bootstrap(indirect, total, group, resamples, first.seed)
    settings = {
        **_how(first, resamples),
        "pairs": [part.pairs.pairs.fingerprint for part, _ in counted],
        "kind": kind,
        "size": _rounded(size),
        "factors": {part.pairs.factor: _rounded(part.size(places)) for part, places in parts},
        "unmeasured": [part.pairs.factor for part, _ in parts if part.silent],
    }
    return _scores(policy, first, share, interval, group, data, settings, label=f", {kind} swaps")


def control(effects: Effects) -> dict[str, Any] | None:
    """The empty-prompt control of a linguistic factor."""
    if effects.empty is None:
        return None
    return {
        "words": _rounded(effects.size()),
        "empty_prompt": _rounded(effects.empty),
        "blind": effects.blind,
    }


def note(effects: Effects) -> str | None:
    """What must be said with the numbers."""
    factor, size, notes = effects.pairs.factor, effects.size(), []
    if effects.blind:
        notes.append(
            f"prompt-blind: other words move the action by {size} of its standard deviation and no words by "
            f"{effects.empty}, so no head carries the instruction"
        )
    elif effects.silent:
        notes.append(
            f"the {factor} swaps move the action by {size} of its standard deviation: there is no effect to have a "
            "share of"
        )
    if effects.pairs.source == "stand-in":
        notes.append(f"{factor} pairs are edited recordings that stand in for a change of the world")
    return "; ".join(notes) or None


def _how(effects: Effects, resamples: int) -> dict[str, Any]:
    return {
        "direction": effects.direction,
        "span": effects.span,
        "position": None,
        "step": None,
        "pairs": effects.pairs.pairs.fingerprint,
        "seed": effects.seed,
        "resamples": resamples,
    }


def _scores(
    policy: Policy,
    effects: Effects,
    share: Float[np.ndarray, " head"],
    interval: Interval,
    group: Int[np.ndarray, " pair"],
    data: str | None,
    settings: Mapping[str, Any],
    factor: str | None = None,
    label: str = "",
) -> HeadScores:
    low, high = interval
    towers = {
        tower: tower_scores(
            policy,
            tower,
            [effects.heads[at] for at in own],
            share[own],
            (None, None) if low is None or high is None else (low[own], high[own]),
        )
        for tower, own in _by_tower(effects).items()
    }
    return HeadScores(
        method=f"{effects.method}-{effects.direction}",
        label=f"{LABELS[effects.method]}, {effects.direction}{label}",
        units=UNITS,
        higher_is_better=True,
        towers=towers,
        policy=policy.fingerprint,
        data=data or effects.pairs.pairs.fingerprint,
        n={"pairs": len(group), "groups": len(np.unique(group))},
        settings=settings,
        factor=factor,
    )


def _by_tower(effects: Effects) -> dict[str, list[int]]:
    """Places of every tower's heads on the axis `head`."""
    places: dict[str, list[int]] = {}
    for at, head in enumerate(effects.heads):
        places.setdefault(head.tower, []).append(at)
    return places


def _grids(policy: Policy, effects: Effects, share: Float[np.ndarray, " head"]) -> dict[str, Any]:
    return {
        tower: [
            [round(float(x), 6) if np.isfinite(x) else None for x in row]
            for row in grid_of(policy, tower, [effects.heads[at] for at in own], share[own])
        ]
        for tower, own in _by_tower(effects).items()
    }


def _rounded(size: Size) -> dict[str, Any]:
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in asdict(size).items()}
