"""Result files with made-up outcomes, for tests of what is computed from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from steering.episode import Episode
from steering.results import Result, result_path, save_result
from steering.suites import SUITES

TASKS = ("pick-cube", "cube-in-bowl")
N = 40


def outcomes(*what: object) -> np.ndarray:
    """Made-up outcomes that depend on what is asked for alone."""
    seed = [ord(letter) for letter in "/".join(map(str, what))]
    return np.random.default_rng(seed).random(N) < 0.3 + 0.4 * ("aligned" in what)


def save(
    folder: Path, name: str, task: str, suite: str = "in-domain", won: Any = None, **changes: Any
) -> np.ndarray:
    """A result file, and its outcomes."""
    known = SUITES[suite]
    won = outcomes(name, task, suite) if won is None else np.array(won)
    settings = {
        "rolled_out": known.task or task,
        **json.loads(json.dumps(dict(known.options))),
        **changes.pop("settings", {}),
    }
    episodes = tuple(
        Episode(i, bool(w), 20, None if w else ("dropped" if i % 3 else "time ran out"))
        for i, w in enumerate(won)
    )
    result = Result(
        **{
            "name": name, "arm": name, "task": task, "policy": f"pi0-{name}-{task}", "episodes": episodes,
            "settings": settings, "suite": suite, "factor": known.factor,
            "trainable_parameters": {} if name == "base" else {"expert query rows": 768, "expert output columns": 256},
            "seconds": {"train": 0.0 if name == "base" else 41.4, "evaluate": 60.0},
            "peak_memory_mb": None if name == "base" else 611.0,
            **changes,
        }
    )  # fmt: skip
    save_result(result_path(folder, name, suite), result)
    return won
