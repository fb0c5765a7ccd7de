"""What Robotic Steering (Mitra et al., arXiv 2511.22697, and its project site) reports, to stand beside our numbers.

A real Franka arm, 20 demonstrations, TRIALS rollouts a cell; success in percent, LoRA and then Robotic Steering. The
tasks are named as ours that mirror them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from interp.errors import UsageError
from steering.stats import Interval, wilson

TRIALS = 40
SUCCESS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "pi0": {
        "marker-in-mug": (75, 80),
        "press-button-hard": (45, 75),
        "pick-cube": (75, 90),
        "cube-in-bowl": (60, 85),
        "push-cup-to-bowl": (10, 17.5),
    },
    "pi0.5": {
        "marker-in-mug": (62.5, 72.5),
        "press-button-hard": (90, 85),
        "pick-cube": (70, 77.5),
        "cube-in-bowl": (65, 80),
        "push-cup-to-bowl": (20, 27.5),
    },
}
VARIED: Mapping[str, tuple[float, float]] = {
    "lighting": (25, 47.5),
    "form": (22.5, 37.5),
    "distractors": (30, 40),
    "unseen:pick-mug": (42.5, 65),
}
"""By our suite."""
TRAINING_MINUTES: Mapping[str, tuple[float, float]] = {"pi0": (239, 189), "pi0.5": (214, 185)}
TRAINABLE_MILLIONS = (1786, 79)
CHOICE_MINUTES: Mapping[str, float] = {"k-NN": 0.2, "causal mediation": 58, "REINFORCE": 93}
LAYERS, HEADS_A_LAYER = 18, 8


def rate(percent: float) -> Interval:
    """A published success rate with its Wilson interval."""
    return wilson(round(TRIALS * percent / 100), TRIALS)


def advantage(policy: str) -> float:
    """Mean over the tasks of Robotic Steering less LoRA, a fraction of one."""
    pairs = SUCCESS[policy].values()
    return sum(theirs - lora for lora, theirs in pairs) / len(pairs) / 100


MARGIN = min(advantage(policy) for policy in SUCCESS)
"""What makes a difference here: the smaller of the two advantages over LoRA that are claimed."""


def time_ratio() -> tuple[float, float]:
    """Training time of LoRA over that of Robotic Steering: the lowest and the highest published."""
    ratios = [lora / theirs for lora, theirs in TRAINING_MINUTES.values()]
    return min(ratios), max(ratios)


def head_sets(path: str | Path) -> dict[str, dict[str, frozenset[tuple[int, int]]]]:
    """The published (layer, head) sets by policy and task."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file} does not exist: it comes with the repository, in notebooks/data")
    sets = json.loads(file.read_text())["sets"]
    return {
        policy: {task: frozenset((layer, head) for layer, head in heads) for task, heads in tasks.items()}
        for policy, tasks in sets.items()
    }
