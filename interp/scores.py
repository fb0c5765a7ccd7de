"""HeadScores: the one result type. Every method that judges heads returns one, and everything that shows,
compares or chooses heads reads one.

A score is a number for each [layer, head] of a tower, with an interval, what chance would give (`null`), its
units and the direction in which it is better, and how and on what it was computed. Dead heads have no score
(NaN; null in JSON).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from interp.errors import UsageError, unknown
from interp.heads import Head

SCHEMA = 1
Grid = Float[np.ndarray, "layer head"]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Null:
    """The distribution of a single head's score when nothing relates heads to actions: mean and central 95 %.

    `best` is the mean score of the luckiest head, which is what a winner must beat.
    """

    mean: float
    low: float
    high: float
    best: float | None = None


@dataclass(frozen=True)
class TowerScores:
    """Scores of one tower. `low` and `high` bound the 95 % interval of `value`."""

    value: Grid
    low: Grid | None = None
    high: Grid | None = None
    null: Null | None = None
    dead: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.value.ndim != 2:
            raise UsageError(f"scores are [layer, head], not of shape {self.value.shape}")
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and bound.shape != self.value.shape:
                raise UsageError(f"{name} has shape {bound.shape}, value {self.value.shape}")
        if (self.low is None) != (self.high is None):
            raise UsageError("an interval has both low and high, or neither")

    def to_json(self) -> dict[str, Any]:
        return {
            "value": _listed(self.value),
            "low": _listed(self.low),
            "high": _listed(self.high),
            "null": None if self.null is None else vars(self.null),
            "dead": [list(pair) for pair in self.dead],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TowerScores":
        value = _grid(data["value"])
        assert value is not None
        return cls(
            value=value,
            low=_grid(data.get("low")),
            high=_grid(data.get("high")),
            null=Null(**data["null"]) if data.get("null") else None,
            dead=tuple((layer, head) for layer, head in data.get("dead", ())),
        )


@dataclass(frozen=True)
class HeadScores:
    """What one method says about every head, on one policy and one set of demonstrations."""

    method: str
    label: str
    units: str
    higher_is_better: bool
    towers: Mapping[str, TowerScores]
    policy: str
    data: str
    n: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    factor: str | None = None
    created: str = field(default_factory=now)

    def tower(self, name: str) -> TowerScores:
        if name not in self.towers:
            raise unknown(f"tower of the {self.method} scores", name, self.towers)
        return self.towers[name]

    def score(self, head: Head) -> float:
        """NaN for a dead head."""
        value = self.tower(head.tower).value
        if head.layer >= value.shape[0] or head.index >= value.shape[1]:
            raise UsageError(
                f"head {head}: the {self.method} scores cover {value.shape[0]} layers x {value.shape[1]}"
            )
        return float(value[head.layer, head.index])

    def ranked(self, tower: str) -> list[Head]:
        """Every live head of the tower, best first whatever the sign; ties in order of layer and index."""
        value = self.tower(tower).value
        flat = -value.ravel() if self.higher_is_better else value.ravel()
        order = np.argsort(flat, kind="stable")
        return [
            Head(tower, *map(int, divmod(at, value.shape[1])))
            for at in order.tolist()
            if np.isfinite(flat[at])
        ]

    def ranks(self, tower: str) -> Grid:
        """1 is best, whatever the sign; heads with the same score share the mean of their ranks, as nothing ranks them;
        NaN where there is no score. One scale for methods of different units."""
        value = self.tower(tower).value
        scored = np.isfinite(value)
        out = np.full(value.shape, np.nan)
        out[scored] = midranks(-value[scored] if self.higher_is_better else value[scored])
        return out

    def best(self, k: int, tower: str) -> list[Head]:
        ranked = self.ranked(tower)
        if not 1 <= k <= len(ranked):
            raise UsageError(
                f"cannot choose {k} heads: tower {tower} has {len(ranked)} live heads with a score"
            )
        return ranked[:k]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "method": self.method,
            "label": self.label,
            "units": self.units,
            "higher_is_better": self.higher_is_better,
            "n": dict(self.n),
            "settings": dict(self.settings),
            "policy": self.policy,
            "data": self.data,
            "created": self.created,
            "towers": {name: tower.to_json() for name, tower in self.towers.items()},
            "factor": self.factor,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HeadScores":
        if data.get("schema") != SCHEMA:
            raise UsageError(f"scores of schema {data.get('schema')!r}: this version reads schema {SCHEMA}")
        plain = {name: value for name, value in data.items() if name not in ("schema", "towers")}
        towers = {name: TowerScores.from_json(tower) for name, tower in data["towers"].items()}
        try:
            return cls(towers=towers, **plain)
        except TypeError as error:
            raise UsageError(f"not a scores file: {error}") from error


def midranks(values: Shaped[np.ndarray, " head"]) -> Float[np.ndarray, " head"]:
    """Ranks from 1 for the lowest, equal values sharing the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _listed(grid: Grid | None) -> list[list[float | None]] | None:
    if grid is None:
        return None
    return [[float(x) if np.isfinite(x) else None for x in row] for row in grid]


def _grid(rows: list[list[float | None]] | None) -> Grid | None:
    if rows is None:
        return None
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=np.float64)
