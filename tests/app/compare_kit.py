"""Results for the tests of the Compare page, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from app_kit import POLICY

from app import outcomes
from interp.runs import Run
from steering.results import Result, result_path, save_result
from steering.rollouts import Episode
from steering.suites import SUITES


def half(run: Run, arm: str, successes: int, n: int = 20, **more: Any) -> Result:
    """An arm of which the first `successes` of n episodes succeed, in-domain or under a suite, saved.

    With `seed` one of the arm's trainings, as `finetune` names them: `aligned`, `aligned-s1`.
    """
    suite = SUITES[more.pop("suite", "in-domain")]
    first = more.pop("first", 0)
    episodes = tuple(
        Episode(first + i, i < successes, 30, None if i < successes else "dropped") for i in range(n)
    )
    settings: Mapping[str, Any] = {
        "rolled_out": suite.task or "marker-in-mug",
        "variation": dict(suite.options),
    }
    name = arm
    if (seed := more.pop("seed", None)) is not None:
        name = f"{arm}-s{seed}" if seed else arm
        settings = {**settings, "recipe": {"name": arm}, "seed": seed}
        more = {"trainable_parameters": {"query rows": 24_576}, **more}
    more = {"policy": f"{POLICY}-{name}", **more}
    result = Result(
        name=name, arm=arm, task="marker-in-mug", episodes=episodes, suite=suite.name, factor=suite.factor,
        settings={**settings, **more.pop("settings", {})}, **more,
    )  # fmt: skip
    path = result_path(run.path / "results", name, suite.name)
    save_result(path, result)
    return result


def pinned(client: Any, run: Run, against: str) -> dict[str, str]:
    """What the page shows with that baseline: the children of its parts, as JSON."""
    parts = ("compare-notes", "compare-reading", "compare-tasks", "compare-suites", "compare-costs")
    outputs = [{"id": part, "property": "children"} for part in parts] + [
        {"id": "results", "property": "rowData"}
    ]
    body = {
        "output": f"..{'...'.join('.'.join(output.values()) for output in outputs)}..",
        "outputs": outputs,
        "inputs": [{"id": "compare-against", "property": "value", "value": against}],
        "state": [
            {"id": "run", "property": "value", "value": run.name},
            {"id": "scheme", "property": "data", "value": "light"},
        ],
        "changedPropIds": ["compare-against.value"],
    }
    answer = client.post("/_dash-update-component", json=body, headers={"Host": "localhost"})
    assert answer.status_code == 200, answer.text
    found = answer.json["response"]
    return {part: json.dumps(found[part]["children"], ensure_ascii=False) for part in parts if part in found}


def compared(run: Run, against: str | None = None) -> Any:
    return outcomes.compared(outcomes.read(run)[0], against)


def wilson_roots(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval in per cent, from the quadratic that defines it."""
    z, rate = 1.959963985, successes / n
    ends = np.roots([1 + z * z / n, -(2 * rate + z * z / n), rate**2])
    return 100 * ends.min(), 100 * ends.max()
