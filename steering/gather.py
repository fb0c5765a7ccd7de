"""Reading results for a comparison: from runs, directories and files, and which arm each of them counts to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from steering.reproduce.records import is_record, read_record
from steering.results import IN_DOMAIN, Entry, Result, load_result


def gather(paths: Iterable[str | Path]) -> tuple[list[tuple[Result, str]], list[Entry], list[str]]:
    """(result, source) of every result in runs, directories (all below) and files, the results that records of
    `robosteer reproduce` hold, whose arms are known, and a note a file that is broken."""
    found: list[tuple[Result, str]] = []
    recorded: list[Entry] = []
    notes: list[str] = []
    for path in map(Path, paths):
        if path.is_file():
            if is_record(_read(path)):
                recorded += read_record(path)
            else:
                found.append((load_result(path), path.parent.name))
            continue
        if not path.is_dir():
            raise UsageError(f"{path} does not exist: name runs, directories of results or result files")
        below = path / "results" if (path / "run.json").is_file() else path
        for file in sorted(below.rglob("*.json")):
            content = _read(file)
            parent = file.parent.parent if file.parent.name == "results" else file.parent
            try:
                if is_record(content):
                    recorded += read_record(file)
                elif not file.name.startswith(".") and _looks_like_a_result(content, file):
                    found.append((load_result(file), parent.name))
            except (UsageError, ValueError, TypeError, KeyError, AttributeError) as error:
                notes.append(str(error))
    if not found and not recorded:
        raise UsageError(
            f"no results in {', '.join(map(str, paths)) or 'nothing'}: `robosteer evaluate` first"
        )
    return found, recorded, notes


def _read(file: Path) -> Any:
    """What a JSON file says, None if it says nothing."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _looks_like_a_result(content: Any, file: Path) -> bool:
    if content is None:
        return file.parent.name == "results"  # broken, and where only results lie: worth a note
    return isinstance(content, dict) and "episodes" in content and "arm" in content


def as_arms(found: Sequence[tuple[Result, str]]) -> list[Entry]:
    """Decide which arm each result counts to.

    Results of one name in several sources keep apart (`source/name`) if they are of the same task and suite, unless
    they are one and the same; runs of one recipe are joined under the shortest of their names.
    """
    entries: list[Entry] = []
    same: dict[tuple[str, str, str], list[Entry]] = {}
    for result, source in found:
        key = (result.name, result.task, result.suite)
        if all(_differs(result, other.result) for other in same.get(key, ())):
            entry = Entry(result, source, result.name)
            same.setdefault(key, []).append(entry)
            entries.append(entry)
    ambiguous = {name for (name, *_), several in same.items() if len(several) > 1}
    entries = [
        Entry(e.result, e.source, f"{e.source}/{e.arm}" if e.result.name in ambiguous else e.arm)
        for e in entries
    ]
    recipes: dict[str, dict[str, int | None]] = {}
    for e in entries:
        if e.result.suite == IN_DOMAIN and "recipe" in e.result.settings:
            recipes.setdefault(_recipe(e), {})[e.arm] = e.result.settings.get("seed")
    joined: dict[tuple[str, str], str] = {}
    for recipe, runs in recipes.items():
        if len(runs) == len(set(runs.values())):  # the training seed is all that differs
            task = json.loads(recipe)[0]
            joined |= {(task, name): min(runs, key=lambda run: (len(run), run)) for name in runs}
    return [Entry(e.result, e.source, joined.get((e.result.task, e.arm), e.arm)) for e in entries]


def _differs(a: Result, b: Result) -> bool:
    return (a.policy, a.episodes, a.condition) != (b.policy, b.episodes, b.condition)


def _recipe(entry: Entry) -> str:
    r = entry.result
    heads = len(r.heads) if r.heads and r.arm == "random-k" else r.heads
    return json.dumps([r.task, r.arm, r.settings["recipe"], heads, r.settings.get("data")], sort_keys=True)
