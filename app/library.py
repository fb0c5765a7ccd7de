"""The runs that the dashboard can show: every run under one folder, or one run given directly.

The only way from a name in a URL to a path on disk: a name is looked up among the runs that are there, never joined
to a path. A run that cannot be read is listed with what is wrong, so that the others still work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.errors import UsageError, unknown
from interp.runs import Run
from interp.scores import HeadScores


@dataclass(frozen=True)
class Entry:
    """A run on the list: either open, or with the one line that says why not."""

    name: str
    run: Run | None
    problem: str | None = None


class Library:
    """The runs under `root`, looked up anew each time: runs appear while the dashboard is open."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise UsageError(
                f"no folder {root}: make a run with `robosteer capture`, or name the folder that has runs"
            )

    @property
    def paths(self) -> dict[str, Path]:
        """Run directories by name, the one written last first."""
        if (self.root / "run.json").is_file():
            return {self.root.name: self.root}
        found = [path.parent for path in self.root.glob("*/run.json") if not path.parent.name.startswith(".")]
        return {path.name: path for path in sorted(found, key=lambda p: (-_written(p), p.name))}

    def entry(self, name: str) -> Entry:
        paths = self.paths
        if name not in paths:
            raise unknown(f"run in {self.root}", name, paths)
        try:
            run = Run.open(paths[name])
            run.spec  # noqa: B018  a run whose policy cannot be described cannot be shown
        except UsageError as error:
            return Entry(name, None, str(error))
        except (KeyError, TypeError, ValueError, OSError) as error:
            return Entry(name, None, f"{paths[name]}/run.json is broken: {type(error).__name__}: {error}")
        return Entry(name, run)

    def entries(self) -> list[Entry]:
        return [self.entry(name) for name in self.paths]

    def open(self, name: str) -> Run:
        entry = self.entry(name)
        if entry.run is None:
            raise UsageError(entry.problem or f"run {name} cannot be read")
        return entry.run


def scores_of(run: Run) -> tuple[dict[str, HeadScores], list[str]]:
    """The run's scores by file name, and a line for each file that cannot be read."""
    scores, problems = {}, []
    for name, path in run.files("scores").items():
        try:
            scores[name] = _read(run.path, name, _stamp(path))
        except UsageError as error:
            problems.append(str(error))
        except (OSError, ValueError) as error:
            problems.append(f"{path} cannot be read: {error}")
    return scores, problems


def shape_of(run: Run) -> dict[str, Any]:
    """What the browser must know to tell which heads can be chosen: heads per layer of each tower, dead heads."""
    towers = run.spec.towers
    return {
        "policy": run.policy,
        "towers": {name: list(tower.heads_per_layer) for name, tower in towers.items()},
        "dead": [f"{name}.L{layer}H{head}" for name, tower in towers.items() for layer, head in tower.dead],
    }


@lru_cache(maxsize=512)
def _read(path: Path, name: str, stamp: tuple[int, int]) -> HeadScores:
    return Run.open(path).read_scores(name)


def _stamp(path: Path) -> tuple[int, int]:
    """Changes whenever the file is replaced, which is how runs are written."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _written(run: Path) -> float:
    try:
        return (run / "run.json").stat().st_mtime
    except OSError:
        return 0.0
