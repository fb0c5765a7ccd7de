"""Films of rollouts, put beside each other: the same episode driven by every arm.

`robosteer evaluate --video SEED` names a film after the result that it belongs to, with the episode's seed; what lies
under videos/ by another name is shown too, by its name. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.errors import UsageError
from interp.runs import Run
from steering.episode import Episode
from steering.results import IN_DOMAIN, Result

KINDS = (".gif", ".mp4", ".webm", ".png")
_NAMED = re.compile(r"(?P<result>.+)-seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Film:
    """`name` is its path under videos/; `ended` is how the episode ended, where a result says so."""

    name: str
    arm: str
    ended: str | None = None
    success: bool | None = None


@dataclass(frozen=True)
class Scene:
    """One episode: the films of it, an arm each."""

    title: str
    films: tuple[Film, ...]


def films_of(run: Run) -> list[str]:
    """Films of rollouts, as paths under videos/, the latest first."""
    folder = run.path / "videos"
    found = [path for path in folder.rglob("*") if path.suffix in KINDS and not path.name.startswith(".")]
    found = [path for path in found if path.is_file() and path.resolve().is_relative_to(folder.resolve())]
    return [str(path.relative_to(folder)) for path in sorted(found, key=lambda p: (-p.stat().st_mtime, p))]


def film(run: Run, name: str) -> Path:
    """A film by the name that `films_of` gave it: looked up, never joined."""
    if name not in films_of(run):
        raise UsageError(f"run {run.name} has no film {name!r}")
    return run.path / "videos" / name


def scenes(names: Sequence[str], results: Mapping[Path, Result], arms: Sequence[str] = ()) -> list[Scene]:
    """Films by episode: in-domain first, then by suite, task and seed, the arms in the order of `arms`."""
    by_stem = {path.stem: result for path, result in results.items()}
    place = {arm: i for i, arm in enumerate(arms)}
    scenes: dict[tuple[bool, str, str, int], list[Film]] = {}
    others = []
    for name in names:
        parts = _NAMED.fullmatch(Path(name).stem)
        result = by_stem.get(parts["result"]) if parts else None
        if parts is None or result is None:
            others.append(Scene("", (Film(name, name.rsplit(".", 1)[0]),)))
            continue
        seed = int(parts["seed"])
        episode = next((one for one in result.episodes if one.seed == seed), None)
        ended = _ended(episode) if episode else None
        shown = Film(name, result.name, ended, episode.success if episode else None)
        scenes.setdefault((result.suite != IN_DOMAIN, result.suite, result.task, seed), []).append(shown)
    known = [
        Scene(
            f"{task}, episode {seed}" + (f", {suite}" if other else ""),
            tuple(sorted(films, key=lambda f: (place.get(f.arm, len(place)), f.arm, f.name))),
        )
        for (other, suite, task, seed), films in sorted(scenes.items())
    ]
    return known + others


def _ended(episode: Episode) -> str:
    return f"success after {episode.steps} steps" if episode.success else episode.failure or "failed"
