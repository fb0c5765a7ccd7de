"""How long the parts of the loop take here: `python benchmarks/loop.py`. Prints one JSON line a measurement."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from interp.capture import capture
from interp.demos import Demonstrations
from interp.policies import load_policy
from steering.rollouts import evaluate
from testbed.demos import record
from testbed.tasks import PRETRAINING

EPISODES = 100
"""Episodes recorded of each pretraining task."""
FRAMES = 1000
ROLLOUTS = 100


def timed(name: str, amount: int, unit: str, work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    rate = round(60 * amount / seconds)
    print(
        json.dumps({"what": name, unit: amount, "seconds": round(seconds, 1), f"{unit} a minute": rate}),
        flush=True,
    )


def main() -> None:
    print(
        json.dumps(
            {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        demos = folder / "demos"
        timed(
            "record, two processes",
            EPISODES * len(PRETRAINING),
            "episodes",
            lambda: record(PRETRAINING, EPISODES, demos, workers=2, progress=False),
        )
        policy, all_demos = load_policy("tiny-pi0"), Demonstrations.open(demos)
        few: list[int] = []
        frames = 0
        for place, episode in enumerate(all_demos.episodes):
            if frames >= FRAMES:
                break
            few.append(place)
            frames += len(episode)
        chosen = all_demos.take(few)
        timed(
            "capture, all towers",
            frames,
            "frames",
            lambda: capture(policy, chosen, folder / "run", progress=False),
        )
        timed(
            "rollouts of `put`",
            ROLLOUTS,
            "episodes",
            lambda: evaluate("tiny-pi0", "put", ROLLOUTS, progress=False),
        )


if __name__ == "__main__":
    main()
