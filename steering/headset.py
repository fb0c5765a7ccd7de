"""Head sets: which heads are to be trained, as a value and as a file.

A head set names its heads, where their scores came from and the policy that they belong to. Indices mean
nothing without that policy, so a file carries the policy's fingerprint and is refused for any other.

Heads file (JSON):
    {"schema": 1, "policy": fingerprint, "heads": [{"tower": "expert", "layer": 3, "head": 5, "score": 0.81}],
     "method": "knn", "factor": null, "data": fingerprint, "trainable_head_indices": [[3, 5]]}

`trainable_head_indices` is the form published with Robotic Steering (Mitra et al., arXiv 2511.22697): bare
(layer, head) pairs without a tower. A file that has only those is read for the tower that the reader names;
we write them too, whenever all heads lie in one tower, so that the published code reads our files.

Selections of one tower: `best_heads`, `worst_heads` from scores, `generic_heads` from the scores of several tasks,
`random_heads` from the policy's shape and a seed; `united` makes one set of several, `random_everywhere` one of
several towers' random heads. Dead heads (output without
effect, such as the last vlm layer's) are never chosen and never accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy, PolicySpec
from interp.runs import read_json, write_json
from interp.scores import HeadScores
from interp.seeds import check_seed

SCHEMA = 1


@dataclass(frozen=True)
class HeadSet:
    """Heads to train, best first, with their provenance. `policy` None: a published file that names none."""

    heads: tuple[Head, ...]
    policy: str | None = None
    method: str | None = None
    factor: str | None = None
    data: str | None = None
    scores: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.heads:
            raise UsageError("empty head set: choose at least one head")
        repeated = [str(head) for head, n in Counter(self.heads).items() if n > 1]
        if repeated:
            raise UsageError(f"head set names {', '.join(repeated)} more than once: name each head once")
        if self.scores and len(self.scores) != len(self.heads):
            raise UsageError(
                f"{len(self.scores)} scores for {len(self.heads)} heads: give one a head, or none"
            )

    @property
    def towers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(head.tower for head in self.heads))

    def check(self, spec: PolicySpec, fingerprint: str, source: str = "head set") -> None:
        """Refuse a set that was made for another policy, or that names heads which cannot be trained."""
        if self.policy is not None and self.policy != fingerprint:
            raise UsageError(
                f"{source} is for policy {self.policy}, but this policy is {fingerprint}: "
                "select heads again on this policy"
            )
        for head in self.heads:
            spec.check(head)

    def to_json(self) -> dict[str, Any]:
        scores = self.scores or (None,) * len(self.heads)
        entries = [
            {"tower": h.tower, "layer": h.layer, "head": h.index, "score": score}
            for h, score in zip(self.heads, scores, strict=True)
        ]
        out: dict[str, Any] = {
            "schema": SCHEMA,
            "policy": self.policy,
            "heads": entries,
            "method": self.method,
            "factor": self.factor,
            "data": self.data,
        }
        if len(self.towers) == 1:  # pairs without a tower would be ambiguous otherwise
            out["trainable_head_indices"] = [[h.layer, h.index] for h in self.heads]
        return out


# selections


def best_heads(scores: HeadScores, k: int, tower: str) -> HeadSet:
    """The k heads that a method ranks first, best first (whatever the sign of its score)."""
    return _scored(scores, scores.best(k, tower), scores.method)


def worst_heads(scores: HeadScores, k: int, tower: str) -> HeadSet:
    """The k heads that a method ranks last, worst first: they should lose if the method is right."""
    ranked = scores.ranked(tower)
    _check_k(k, len(ranked), tower)
    return _scored(scores, ranked[::-1][:k], f"{scores.method} (bottom)")


def random_heads(
    spec: PolicySpec, k: int, tower: str, seed: int, policy: str | None = None, place: int = 0
) -> HeadSet:
    """k live heads of a tower, uniformly and without replacement: the control for whether choice matters.

    `place`: which draw of the seed; two towers that share one get the same indices (`random_everywhere`).
    """
    live = spec.live_heads([tower])
    _check_k(k, len(live), tower)
    generator = np.random.default_rng([check_seed(seed), place] if place else check_seed(seed))
    picks = generator.choice(len(live), size=k, replace=False)
    return HeadSet(tuple(live[i] for i in picks), policy=policy, method=f"random (seed {seed})")


def random_everywhere(
    spec: PolicySpec, per_tower: Mapping[str, int], seed: int, policy: str | None = None
) -> HeadSet:
    """So many live heads of each tower, every tower's drawn independently; the first's are `random_heads`'s."""
    return united(
        [
            random_heads(spec, k, tower, seed, policy, place)
            for place, (tower, k) in enumerate(per_tower.items())
        ]
    )


def generic_heads(others: Sequence[HeadScores], k: int, tower: str) -> HeadSet:
    """The k heads with the best mean rank over the scores of several tasks: what is good everywhere.

    A function of the scores alone, in whatever order they come; ties go to the lower layer, then index. A
    head's score is its mean rank, 1 for a head that is first on every task.
    """
    if not others:
        raise UsageError("generic heads need the scores of at least one other task")
    if repeated := [data for data, n in Counter(scores.data for scores in others).items() if n > 1]:
        raise UsageError(f"two score files are of the same demonstrations {repeated[0]}: give one a task")
    if len(policies := {scores.policy for scores in others}) > 1:
        raise UsageError(f"score files are of several policies ({', '.join(sorted(policies))}): give one's")
    ranked = [scores.ranked(tower) for scores in others]
    everywhere = set(ranked[0]).intersection(*ranked[1:])
    _check_k(k, len(everywhere), tower)
    places = [{head: place for place, head in enumerate(order, start=1)} for order in ranked]
    mean = {head: float(np.mean([place[head] for place in places])) for head in everywhere}
    chosen = sorted(mean, key=lambda head: (mean[head], head))[:k]
    methods = ", ".join(sorted({scores.method for scores in others}))
    return HeadSet(
        tuple(chosen),
        policy=others[0].policy,
        method=f"generic ({methods}, mean rank over {len(others)} tasks)",
        scores=tuple(mean[head] for head in chosen),
    )


def united(parts: Sequence[HeadSet]) -> HeadSet:
    """Sets of several towers as one, in their order; what is said of the first is said of all."""
    return replace(
        parts[0],
        heads=tuple(head for part in parts for head in part.heads),
        scores=tuple(score for part in parts for score in part.scores),
    )


def _scored(scores: HeadScores, heads: Sequence[Head], method: str) -> HeadSet:
    return HeadSet(
        tuple(heads),
        policy=scores.policy,
        method=method,
        factor=scores.factor,
        data=scores.data,
        scores=tuple(scores.score(head) for head in heads),
    )


def _check_k(k: int, n: int, tower: str) -> None:
    if not 1 <= k <= n:
        raise UsageError(f"cannot choose {k} heads: tower {tower} has {n} live heads (1-{n})")


# files


def write_heads(path: str | Path, heads: HeadSet) -> Path:
    """Write a heads file, whole or not at all."""
    write_json(path, heads.to_json())
    return Path(path)


def is_heads_file(text: str) -> bool:
    """Whether there is such a file; heads that are written out can be longer than any file's name."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def read_heads(path: str | Path, policy: Policy, tower: str = "expert") -> HeadSet:
    """Read a heads file and check it against the policy that it is to be used on.

    `tower` places the bare pairs of a file in the published form; a file with towers of its own ignores it.
    """
    path = Path(path)
    heads = parse_heads(read_json(path), tower=tower, source=f"heads file {path}")
    heads.check(policy.spec, policy.fingerprint, source=f"heads file {path}")
    return heads


def parse_heads(record: Mapping[str, Any], tower: str = "expert", source: str = "heads file") -> HeadSet:
    """A HeadSet from the JSON of a heads file, ours or the published form; no policy is asked."""
    schema = record.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise UsageError(f"{source}: schema {schema}, but this version reads schema {SCHEMA}")
    try:
        if "heads" in record:
            entries = [
                (Head(str(e["tower"]), _index(e["layer"]), _index(e["head"])), e.get("score"))
                for e in record["heads"]
            ]
        else:
            entries = [
                (Head(tower, _index(layer), _index(index)), None)
                for layer, index in record["trainable_head_indices"]
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f'{source}: needs "heads": [{{"tower", "layer", "head"}}, ...] or '
            f'"trainable_head_indices": [[layer, head], ...] ({type(error).__name__}: {error})'
        ) from None
    return HeadSet(
        tuple(head for head, _ in entries),
        policy=record.get("policy"),
        method=record.get("method"),
        factor=record.get("factor"),
        data=record.get("data"),
        scores=tuple(score for _, score in entries) if any(s is not None for _, s in entries) else (),
    )


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"index {value!r} is not an integer")
    return value
