"""Results of an arm, made up, as records keep them."""

from __future__ import annotations

from dataclasses import replace

from steering.episode import Episode
from steering.results import Result
from steering.suites import SUITES


def result(
    arm: str, suite: str, wins: str, first: int = 0, task: str = "cube-in-bowl", **changes: object
) -> Result:
    """Episodes that end as `wins` says, the first with seed `first`."""
    episodes = [
        Episode(first + i, won == "1", 10 + i, None if won == "1" else ("time ran out", "dropped")[i % 2])
        for i, won in enumerate(wins)
    ]
    condition = SUITES[suite].condition(task)
    return replace(
        Result(
            name=arm,
            arm=arm.split("-k")[0],
            task=task,
            policy=f"pi0-{arm}",
            episodes=tuple(episodes),
            trainable_parameters={"expert query rows": 24, "expert output columns": 24},
            seconds={"train": 12.5, "evaluate": 3.25},
            peak_memory_mb=800.5,
            heads=("expert.L0H3", "expert.L1H2"),
            settings={
                "rolled_out": condition.task,
                **condition.options,
                "execute": 2,
                "recipe": {"name": "aligned", "betas": [0.9, 0.95]},
                "seed": 0,
                "data": "demos-x",
            },
            suite=suite,
            factor=SUITES[suite].factor,
            created="2026-01-01T00:00:00Z",
        ),
        **changes,
    )
