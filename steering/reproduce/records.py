"""Results of the reproduction as they are kept in a repository: small, and the same for the same seeds.

One file an arm and task holds all its seeds and suites. What luck and machine decide apart from the seed, seconds and
memory, is in `costs.json` beside them, so that a result file changes only if a result does.

    <results>/<task>/<arm>.json
        {"schema": 2, "command": what repeats it, "task", "arm", "kind": its recipe's name, "recipe": {...},
         "runs": [{"seed", "policy", "data", "adapted_from": {"base", "demos", "scores": {...}}, "heads",
                   "trainable_parameters", "suites": {suite: outcomes}}]}
        outcomes: {"first": seed of the first episode, "success": "1011...", "steps": [...],
                   "failures": {reason: [episodes]}, "execute": 2, "condition": what the suite changed then}
    <results>/costs.json    {task: {arm: {seed: {"train_seconds", "train_processor_seconds", "evaluate_seconds",
                                             "peak_memory_mb"}}}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from interp.runs import read_json, write_atomic
from steering.episode import Episode
from steering.results import CONDITION, Entry, Result
from steering.suites import SUITES

SCHEMA = 2
COSTS = "costs.json"


def record_path(directory: Path, task: str, arm: str) -> Path:
    return directory / task / f"{arm}.json"


def write_record(directory: Path, results: Iterable[tuple[int, Result]], command: str) -> Path | None:
    """Keep the results of one arm on one task, given with their seeds; None if there are none.

    Raises UsageError for suites of one seed that are not of one policy: whoever reads them would take them for it.
    """
    by_seed: dict[int, list[Result]] = {}
    for seed, result in results:
        by_seed.setdefault(seed, []).append(result)
    if not by_seed:
        return None
    runs = [_run(seed, by_seed[seed]) for seed in sorted(by_seed)]
    example = by_seed[min(by_seed)][0]
    record = {
        "schema": SCHEMA,
        "command": command,
        "task": example.task,
        "arm": example.name,
        "kind": example.arm,
        "recipe": example.settings.get("recipe"),
        "runs": runs,
    }
    path = record_path(directory, example.task, example.name)
    write_atomic(path, compact(record).encode())
    return path


def _run(seed: int, results: Sequence[Result]) -> dict[str, Any]:
    example, places = results[0], list(SUITES)
    if len(policies := sorted({r.policy for r in results})) > 1:
        raise UsageError(
            f"{example.name} on {example.task}, seed {seed}: its suites are of {' and '.join(policies)}; "
            "a record has one policy a seed: measure all of them with one"
        )
    return {
        "seed": seed,
        "policy": example.policy,
        "data": example.settings.get("data"),
        **_first_said("adapted_from", results),
        "heads": list(example.heads) if example.heads else None,
        "trainable_parameters": dict(example.trainable_parameters),
        "suites": {r.suite: _outcomes(r) for r in sorted(results, key=lambda r: places.index(r.suite))},
    }


def _first_said(what: str, results: Iterable[Result]) -> dict[str, Any]:
    """A setting that older results do not have."""
    said = [r.settings[what] for r in results if r.settings.get(what)]
    return {what: said[0]} if said else {}


def _outcomes(result: Result) -> dict[str, Any]:
    episodes = sorted(result.episodes, key=lambda e: e.seed)
    first = episodes[0].seed
    if [e.seed for e in episodes] != list(range(first, first + len(episodes))):
        raise UsageError(f"{result.name} on {result.task} ({result.suite}): its episodes have gaps")
    failures: dict[str, list[int]] = {}
    for episode in episodes:
        if episode.failure is not None:
            failures.setdefault(episode.failure, []).append(episode.seed)
    return {
        "first": first,
        "success": "".join(str(int(e.success)) for e in episodes),
        "steps": [e.steps for e in episodes],
        "failures": dict(sorted(failures.items())),
        "execute": result.settings.get("execute"),
        "condition": {what: value for what in CONDITION if (value := result.settings.get(what))},
    }


def write_costs(directory: Path, results: Iterable[tuple[int, Result]]) -> Path:
    """Add what these results cost to `costs.json`."""
    path = directory / COSTS
    costs = read_json(path) if path.is_file() else {}
    spent: dict[tuple[str, str, str], dict[str, Any]] = {}
    for seed, result in results:
        entry = spent.setdefault(
            (result.task, result.name, str(seed)),
            {
                "train_seconds": result.seconds.get("train", 0.0),
                "train_processor_seconds": result.seconds.get("train_processor", 0.0),
                "evaluate_seconds": 0.0,
                "peak_memory_mb": result.peak_memory_mb,
            },
        )
        entry["evaluate_seconds"] += result.seconds.get("evaluate", 0.0)
    for (task, arm, trained), entry in spent.items():
        entry["evaluate_seconds"] = round(entry["evaluate_seconds"], 3)
        costs.setdefault(task, {}).setdefault(arm, {})[trained] = entry
    write_atomic(path, compact(_sorted(costs)).encode())
    return path


def read_records(directory: str | Path) -> list[Entry]:
    """Every result kept under a directory, as `compare_entries` takes them."""
    directory = Path(directory)
    files = sorted(directory.glob("*/*.json"))
    if not files:
        raise UsageError(f"{directory} holds no results: make them with `robosteer reproduce`")
    return [entry for path in files for entry in read_record(path)]


def is_record(content: Any) -> bool:
    """Whether what a JSON file says is a record of this module."""
    return isinstance(content, dict) and {"task", "arm", "runs"} <= content.keys()


def read_record(path: Path) -> list[Entry]:
    """The results of one arm on one task."""
    record, costs_file = read_json(path), path.parent.parent / COSTS
    costs = read_json(costs_file) if costs_file.is_file() else {}
    if record.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {record.get('schema')!r}, this version reads {SCHEMA}")
    try:
        return list(_entries(record, costs))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no record of results ({type(error).__name__}: {error})") from error


def _entries(record: Mapping[str, Any], costs: Mapping[str, Any]) -> Iterable[Entry]:
    task, arm = record["task"], record["arm"]
    for run in record["runs"]:
        cost = costs.get(task, {}).get(arm, {}).get(str(run["seed"]), {})
        for name, outcomes in run["suites"].items():
            yield Entry(_result(record, run, name, outcomes, cost), task, arm)


def _result(
    record: Mapping[str, Any],
    run: Mapping[str, Any],
    suite_name: str,
    outcomes: Mapping[str, Any],
    cost: Mapping[str, Any],
) -> Result:
    suite, task = SUITES[suite_name], record["task"]
    why = {seed: reason for reason, seeds in outcomes["failures"].items() for seed in seeds}
    episodes = tuple(
        Episode(seed, won == "1", steps, why.get(seed))
        for seed, (won, steps) in enumerate(
            zip(outcomes["success"], outcomes["steps"], strict=True), start=outcomes["first"]
        )
    )
    settings = {
        "rolled_out": suite.condition(task).task,
        **outcomes["condition"],
        "execute": outcomes["execute"],
        "recipe": record["recipe"],
        "seed": run["seed"],
        "data": run["data"],
        **({"adapted_from": run["adapted_from"]} if "adapted_from" in run else {}),
    }
    return Result(
        name=record["arm"],
        arm=record["kind"],
        task=task,
        policy=run["policy"],
        episodes=episodes,
        trainable_parameters=run["trainable_parameters"],
        seconds={
            "train": cost.get("train_seconds", 0.0),
            "train_processor": cost.get("train_processor_seconds", 0.0),
            "evaluate": cost.get("evaluate_seconds", 0.0) / len(run["suites"]),  # what one took is not kept
        },
        peak_memory_mb=cost.get("peak_memory_mb"),
        heads=tuple(run["heads"]) if run["heads"] else None,
        settings=settings,
        suite=suite.name,
        factor=suite.factor,
    )


def _sorted(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _sorted(v) if isinstance(v, Mapping) else v for k, v in sorted(tree.items())}


def compact(record: Mapping[str, Any]) -> str:
    """JSON with an entry a line, but lists of numbers or words on one."""
    text = json.dumps(record, indent=1, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"
