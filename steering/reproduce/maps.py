"""What every head of the base policy does on every task: the scores that figures show, kept as small files.

    <results>/scores/<task>/<method>-<tower>.json      HeadScores: knn, ablation, patching, atp
    <results>/scores/<task>/stability-<tower>.json     how often k-NN chooses a head from half the demonstrations
    <results>/scores/<task>/<factor>.json              HeadScores of both towers: visual, linguistic, physical
    <results>/scores/<task>/profile.json               how visual, linguistic and physical every head is

They are of the first seed's demonstrations. Numbers have four digits, and no file says when it was written, so that the
same seed gives the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.factors.pairs import FACTORS
from interp.factors.profile import Profile
from interp.factors.study import pairs_for, study
from interp.heads import Head
from interp.policies import load_policy
from interp.runs import Run, alone, read_json, write_atomic
from interp.scores import HeadScores
from interp.stability import stability
from steering.reproduce.plan import FIRST, HEADS, Arm, Plan
from steering.reproduce.records import compact
from steering.reproduce.scores import PAIRS
from steering.reproduce.work import POLICY, prepare, scored

METHODS = ("knn", "ablation", "patching", "atp")
TOWERS = ("expert", "vlm")
DIGITS = 4
RESAMPLES = 300


def missing(plan: Plan, results: Path) -> Iterator[tuple[str, str]]:
    """(task, what) of every part that is not there: a method, or `factors`."""
    for task in plan.tasks:
        for what in (*METHODS, "factors"):
            if not all(path(results, task, name).is_file() for name in names(what)):
                yield task, what


def names(what: str) -> tuple[str, ...]:
    """The files that a part consists of."""
    if what == "factors":
        return (*FACTORS, "profile")
    of = (what, "stability") if what == "knn" else (what,)
    return tuple(f"{name}-{tower}" for name in of for tower in TOWERS)


def make(plan: Plan, work: Path, results: Path, task: str, what: str) -> str:
    """Compute one part and keep it; returns what was done, for people."""
    kept = _factors(plan, work, task) if what == "factors" else _method(plan, work, task, what)
    for name, record in kept.items():
        write_atomic(path(results, task, name), compact(_rounded(record)).encode())
    return f"{task}: {', '.join(kept)}"


def path(results: str | Path, task: str, name: str) -> Path:
    return Path(results) / "scores" / task / f"{name}.json"


def read_map(results: str | Path, task: str, name: str) -> HeadScores:
    return HeadScores.from_json(_read(results, task, name))


def read_profile(results: str | Path, task: str) -> Profile:
    record = _read(results, task, "profile")
    share, low, high = (np.array(record[name], float) for name in ("share", "low", "high"))  # null is NaN
    heads = tuple(map(Head.parse, record["heads"]))
    return Profile(heads, tuple(record["factors"]), share, low, high, np.array(record["strength"], float))


def _read(results: str | Path, task: str, name: str) -> dict[str, Any]:
    file = path(results, task, name)
    if not file.is_file():
        raise UsageError(f"{file} does not exist: make it with `robosteer reproduce --scores`")
    return read_json(file)


def _method(plan: Plan, work: Path, task: str, by: str) -> dict[str, dict[str, Any]]:
    adapted = prepare(work, task, FIRST, plan.demos)
    kept = {}
    for tower in TOWERS:
        scores = scored(plan, Arm("aligned", by=by, tower=tower), adapted)
        kept[f"{by}-{tower}"] = scores.to_json()
        if by == "knn":
            often = stability(Run.open(adapted.run.path), scores, n=HEADS)
            kept[f"stability-{tower}"] = often.to_json()
    return {name: _without_clock(record) for name, record in kept.items()}


def _factors(plan: Plan, work: Path, task: str) -> dict[str, dict[str, Any]]:
    run, demos = prepare(work, task, FIRST, plan.demos)
    policy = load_policy(POLICY)
    with alone(run.path / ".factors.lock"):
        pairs = pairs_for(run, policy, lambda: demos, FACTORS, plan.settings.get("pairs", PAIRS))
        found = study(run, policy, pairs, towers=TOWERS, resamples=RESAMPLES)
    assert found.profile is not None
    kept = {
        factor: _without_clock(replace(scores, settings=_brief(scores.settings)).to_json())
        for factor, scores in found.scores.items()
    }
    return {**kept, "profile": _tabulated(found.profile)}


def _tabulated(profile: Profile) -> dict[str, Any]:
    """A row a head: a quarter of the size of `Profile.to_json`."""
    assert profile.low is not None
    assert profile.high is not None
    return {
        "schema": 1,
        "factors": list(profile.factors),
        "heads": list(map(str, profile.heads)),
        "share": profile.share.tolist(),
        "low": profile.low.tolist(),
        "high": profile.high.tolist(),
        "strength": profile.strength.tolist(),
    }


def _brief(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what every head carries of every single edit."""
    edits = {
        name: {key: value for key, value in edit.items() if key != "share"}
        for name, edit in settings["edits"].items()
    }
    return {**settings, "edits": edits}


def _without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "created"}


def _rounded(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.{DIGITS}g}") if np.isfinite(tree) else None
    return tree
