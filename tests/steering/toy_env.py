"""A gymnasium environment with the testbed's contract and no simulator, whose episodes end as a test asks.

Tasks: `sum` succeeds if the actions of the episode sum above zero (so the outcome depends on every action),
`crash` exits the process in the episode of seed 3, `bug` raises there, `hang` never ends, and leaves a file
named after its process in $TOY_STARTED. The variation's `offset` is added to every action's sum.
"""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class ToyError(ValueError):
    """Bad input, in one line, as the testbed says it."""


class Toy(gymnasium.Env[dict[str, Any], np.ndarray]):
    observation_space = gymnasium.spaces.Dict({})
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32)

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, task: str, image_size: int, render_mode: str | None = None) -> None:
        if task not in ("sum", "crash", "bug", "hang"):
            raise ToyError(f"task {task!r}: unknown; use sum, crash, bug or hang")
        self.task, self.size, self.render_mode = task, image_size, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.number, self.total, self.steps = seed, 0.0, 0
        self.random = np.random.default_rng(seed)
        self.offset = ((options or {}).get("variation") or {}).get("offset", 0.0)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        if self.task == "hang":
            Path(os.environ["TOY_STARTED"], str(os.getpid())).touch()
            time.sleep(0.05)
        if self.number == 3 and self.task == "crash":
            os._exit(7)
        if self.number == 3 and self.task == "bug":
            raise ValueError("operands could not be broadcast together")
        self.total += float(action.sum()) + self.offset
        self.steps += 1
        over = self.steps >= 5 and self.task != "hang"
        success = over and self.total > 0
        return (
            self._observation(),
            0.0,
            success,
            over,
            {"success": success, "failure": None if success else "sum below zero"},
        )

    def render(self) -> Any:
        return np.full((24, 48, 3), 20 * self.steps, np.uint8) if self.render_mode else None

    def _observation(self) -> dict[str, Any]:
        images = {
            c: self.random.integers(0, 256, (self.size, self.size, 3), np.uint8) for c in ("front", "wrist")
        }
        return {"images": images, "state": self.random.normal(size=8), "instruction": "pick up the red cube"}


gymnasium.register("Toy-v0", entry_point=Toy, disable_env_checker=True, order_enforce=False)
