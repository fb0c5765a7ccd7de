"""Every head with everything that is known of it: the table of the Heads page, and one head's own page. Pure.

Rows are flat, as tables and CSV want them: score, rank and interval of file i are `s<i>`, `r<i>`, `l<i>`, `h<i>`.

A head's frames are those in which its output z is furthest from its own mean, relative to its spread: what the head
does there it does not do all the time. That needs nothing but the capture. Axis names: frame, d_head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from app import raw
from app.library import Library, scores_of
from app.views import cell, named, ordered, ranks, span
from interp.errors import UsageError
from interp.footage import Footage, footage_of
from interp.heads import Head
from interp.runs import Run
from interp.scores import HeadScores


@dataclass(frozen=True)
class Column:
    """A score file as columns of the table."""

    file: str
    scores: HeadScores
    at: int

    @property
    def fields(self) -> tuple[str, str, str, str]:
        """Names of score, rank, low, high in a row."""
        return f"s{self.at}", f"r{self.at}", f"l{self.at}", f"h{self.at}"

    @property
    def label(self) -> str:
        return named(self.scores)

    def scale(self) -> dict[str, Any]:
        """Ends of all towers' intervals, and chance by tower, for the cells that draw."""
        low, high = span(self.scores.towers.values())
        chance = {name: t.null.mean for name, t in self.scores.towers.items() if t.null is not None}
        return {"low": low, "high": high, "chance": chance}


def columns(scores: Mapping[str, HeadScores]) -> list[Column]:
    return [Column(file, one, i) for i, (file, one) in enumerate(ordered(scores).items())]


def profile_columns(found: Sequence[Column]) -> list[Column]:
    """The files of one method's factors: the method that has most factors, and of those the first."""
    by_method: dict[str, list[Column]] = {}
    for column in found:
        if column.scores.factor:
            by_method.setdefault(column.scores.method, []).append(column)
    return max(by_method.values(), key=len, default=[])


def rows(run: Run, found: Sequence[Column]) -> list[dict[str, Any]]:
    """A row for each live head of each tower that was scored, best first by the first file."""
    spec = run.spec
    towers = [name for name in spec.towers if any(name in column.scores.towers for column in found)]
    rank_of = {
        (c.at, tower): ranks(c.scores, tower) for c in found for tower in towers if tower in c.scores.towers
    }
    out = []
    for head in spec.live_heads(towers):
        row: dict[str, Any] = {"id": str(head), "tower": head.tower, "layer": head.layer, "head": head.index}
        for column in found:
            grid = column.scores.towers.get(head.tower)
            score, rank, low, high = column.fields
            row[score] = cell(grid.value, head.layer, head.index) if grid else None
            row[rank] = cell(rank_of.get((column.at, head.tower)), head.layer, head.index) or None
            row[low] = cell(grid.low, head.layer, head.index) if grid else None
            row[high] = cell(grid.high, head.layer, head.index) if grid else None
        out.append(row)
    worst = len(out) + 1
    return sorted(out, key=lambda row: (row[found[0].fields[1]] or worst, row["tower"])) if found else out


@dataclass(frozen=True)
class Standing:
    """What one score file says of one head: its rank (see `views.ranks`) among the `of` heads of its tower, `tied` of
    which, itself among them, have its score."""

    column: Column
    score: float
    low: float | None
    high: float | None
    rank: float
    tied: int
    of: int

    @property
    def beaten(self) -> float:
        """The fraction of the tower's other heads below it; of those that are tied with it, half."""
        return (self.of - self.rank) / (self.of - 1) if self.of > 1 else 1.0

    @property
    def place(self) -> str:
        """`7`, or `61–1024` for heads that share these ranks."""
        half = (self.tied - 1) / 2
        return f"{self.rank - half:.0f}–{self.rank + half:.0f}" if half else f"{self.rank:.0f}"

    @property
    def among(self) -> str:
        """`7 of 20`, or `tied 61–1024 of 1024`."""
        return f"{'tied ' if self.tied > 1 else ''}{self.place} of {self.of}"


def standings(head: Head, found: Sequence[Column]) -> list[Standing]:
    """Of every file that scored the head."""
    out = []
    for column in found:
        grid = column.scores.towers.get(head.tower)
        if grid is None or cell(grid.value, head.layer, head.index) is None:
            continue
        rank = ranks(column.scores, head.tower)
        own = float(rank[head.layer, head.index])
        low, high = (cell(g, head.layer, head.index) for g in (grid.low, grid.high))
        tied, of = int((rank == own).sum()), int((rank > 0).sum())
        out.append(Standing(column, column.scores.score(head), low, high, own, tied, of))
    return out


# ---- a head's frames and where it looks


@dataclass(frozen=True)
class Frame:
    """A captured frame in which a head stands out, and its thumbnails by camera."""

    episode: int
    frame: int
    strength: float
    pictures: Mapping[str, str]


def top_frames(run: Run, head: Head, n: int = 6) -> list[Frame]:
    """Frames in which the head's output is least like its mean; at most two of one episode. None without a capture."""
    tokens = run.tokens(head.tower)
    if not tokens:
        return []
    try:
        store = run.store(head.tower)
        strength = _strength(run.path, str(head), tokens[-1], raw.version(store / "zarr.json"))
        signals = run.signals()
    except (UsageError, OSError, ValueError, KeyError):
        return []
    out: list[Frame] = []
    for at in np.argsort(-strength, kind="stable").tolist():
        episode, frame = int(signals.episode[at]), int(signals.frame[at])
        if sum(other.episode == episode for other in out) == 2:
            continue
        pictures = {}
        for camera in run.spec.cameras:
            path = run.frame_path(episode, camera, frame)
            if path.is_file():
                pictures[camera] = raw.frame_url(run.name, episode, camera, frame, raw.version(path))
        out.append(Frame(episode, frame, float(strength[at]), pictures))
        if len(out) == n:
            break
    return out


@lru_cache(maxsize=256)
def _strength(path: Path, head: str, token: str, stamp: str) -> Float[np.ndarray, " frame"]:
    """Distance of z from its mean, in units of its root mean square distance."""
    wanted = Head.parse(head)
    array = Run.open(path).activations(wanted.tower, token)
    z = np.asarray(array[:, wanted.layer, wanted.index], dtype=np.float32)
    distance = np.linalg.norm(z - z.mean(axis=0), axis=1)
    return distance / max(float(np.sqrt((distance**2).mean())), 1e-12)


def mass(run: Run, head: Head) -> dict[str, float]:
    """Mean share of the head's attention on each part of the input, over the frames that have footage."""
    total: dict[str, float] = {}
    frames = 0
    for episode in footage_of(run):
        try:
            seen = Footage.open(run, episode)
            shares = np.asarray(seen.mass(head)).sum(axis=0)
        except (UsageError, OSError):
            continue
        frames += seen.frames
        for part, share in zip(seen.parts, shares.tolist(), strict=True):
            total[part] = total.get(part, 0.0) + share
    return {part: share / frames for part, share in total.items()} if frames else {}


# ---- the same head elsewhere


@dataclass(frozen=True)
class Neighbour:
    """The same head in another run, by the same method and factor."""

    run: str
    same_policy: bool
    same_data: bool
    standing: Standing


def neighbours(library: Library, run: Run, head: Head, most: int = 12) -> list[Neighbour]:
    """Runs whose policy has this head: of the same policy and data first, the newest of them at the top. A run that
    cannot be read has nothing to say."""
    ours = {(c.scores.method, c.scores.factor) for c in columns(scores_of(run)[0])}
    runs = [(e.name, e.run) for e in library.entries() if e.run is not None and e.run.path != run.path]
    out = []
    for name, other in sorted(runs, key=lambda named: str(named[1].info.get("created", "")), reverse=True):
        for standing in standings(head, columns(scores_of(other)[0])):
            one = standing.column.scores
            if (one.method, one.factor) in ours:
                same = other.policy == run.policy, other.data == run.data
                out.append(Neighbour(name, *same, standing))
    return sorted(out, key=lambda n: (not n.same_policy, not n.same_data))[:most]
