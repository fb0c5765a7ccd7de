"""The scripted expert: waypoints from the simulator's true state, a phase at a time.

The expert sees what no policy sees (object poses, the true grip point). Its actions are closed-loop, so noise on the
executed action puts recoveries into the demonstrations while the recorded action stays clean (as in DART, Laskey 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from testbed.scene import kind_of
from testbed.tabletop import Tabletop

SPEED, TURN = 0.035, 0.15
"""Largest move [m] and turn [rad] of one action."""
HOVER, CARRY = 0.11, 0.16
PUSH_REACH = 0.012
"""From the centre of the closed fingers to their pushing face."""


class Expert:
    """Call with the environment after `reset`; every call returns the action for its present state."""

    def __init__(self, env: Tabletop) -> None:
        self.env = env
        task, shape = env.task, env.layout.spec.shape(env.layout.target)
        self._shape = shape
        self._grasp_height = max(0.02, min(shape.height / 2, 0.03), shape.height - 0.034)
        self._plan = {"pick": self._pick, "place": self._place, "press": self._press, "push": self._push}[
            task.kind
        ]()

    def __call__(self) -> Float[np.ndarray, 7]:
        return next(self._plan)

    # -- one generator a verb: each `yield` is one action -----------------------------------------------------------

    def _pick(self) -> Iterator[np.ndarray]:
        yield from self._grasp()
        while True:
            yield self._to(np.r_[self.env.grip()[0][:2], CARRY + 0.06], gripper=-1)
            if not self._holds():
                yield from self._grasp()

    def _place(self) -> Iterator[np.ndarray]:
        env = self.env
        assert env.task.goal is not None
        vessel = env.task.goal
        rim = 0.035 if kind_of(vessel) == "bowl" else env.layout.spec.shape(vessel).height
        drop = rim + max(0.04, self._shape.height / 2 + 0.015) if kind_of(vessel) == "mug" else rim + 0.04
        while True:
            yield from self._grasp()
            while self._holds() and env.grip()[0][2] < 0.12:
                yield self._to(np.r_[env.grip()[0][:2], CARRY], gripper=-1)
            while self._holds() and self._aside(self._over(vessel, CARRY)) > 0.008:
                yield self._to(self._over(vessel, CARRY - 0.01), gripper=-1)
            while self._holds() and env.grip()[0][2] > drop + 0.008:
                yield self._to(self._over(vessel, drop), gripper=-1)
            if self._holds():
                for _ in range(6):
                    yield self._to(env.grip()[0], gripper=1)
                for _ in range(4):
                    yield self._to(self._over(vessel, CARRY), gripper=1)
            yield self._to(np.r_[env.grip()[0][:2], CARRY], gripper=1)

    def _press(self) -> Iterator[np.ndarray]:
        button = self.env.layout.target
        while True:
            while self._away(self._at(button, HOVER)) > 0.012:
                yield self._to(self._at(button, HOVER), gripper=-1)
            while self._aside(self._at(button, 0)) < 0.02:
                yield self._to(self._at(button, 0.013), gripper=-1)

    def _push(self) -> Iterator[np.ndarray]:
        env, target, goal = self.env, self.env.layout.target, self.env.task.goal
        assert goal is not None
        height = max(0.022, self._shape.height - 0.033)
        while True:
            while self._away(self._behind(target, goal, 0.028, HOVER)) > 0.012:
                yield self._to(self._behind(target, goal, 0.028, HOVER), gripper=-1)
            while env.grip()[0][2] > height + 0.008:
                yield self._to(self._behind(target, goal, 0.028, height), gripper=-1)
            while self._lateral_error(target, goal) < 0.02:
                yield self._to(self._behind(target, goal, -0.03, height), gripper=-1, speed=0.02)
            for _ in range(4):
                yield self._to(np.r_[env.grip()[0][:2], HOVER], gripper=-1)

    def _grasp(self) -> Iterator[np.ndarray]:
        env, target = self.env, self.env.layout.target
        while True:
            while self._away(self._at(target, HOVER)) > 0.012 or abs(self._turn()) > 0.06:
                yield self._to(self._at(target, HOVER), gripper=1, turn=self._turn())
            while (
                self._away(self._at(target, self._grasp_height)) > 0.007
                and self._aside(self._at(target, 0)) < 0.03
            ):
                yield self._to(self._at(target, self._grasp_height), gripper=1, turn=self._turn())
            for _ in range(3):
                yield self._to(self._at(target, self._grasp_height), gripper=-1)
            if self._holds():
                return
            for _ in range(4):
                yield self._to(np.r_[env.grip()[0][:2], HOVER], gripper=1)

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _to(
        self, waypoint: Float[np.ndarray, 3], gripper: float, turn: float = 0.0, speed: float = SPEED
    ) -> Float[np.ndarray, 7]:
        """Move the controller's target so that the true grip point heads for the waypoint."""
        env = self.env
        offset = env.grip()[0] - env.state()[:3]
        move = waypoint - offset - env.commanded
        move *= min(1.0, speed / max(float(np.linalg.norm(move)), 1e-9))
        return np.r_[move, 0.0, 0.0, np.clip(turn, -TURN, TURN), gripper]

    def _at(self, body: str, height: float) -> Float[np.ndarray, 3]:
        return np.r_[self.env.position_of(body)[:2], height]

    _over = _at

    def _behind(self, target: str, goal: str, gap: float, height: float) -> Float[np.ndarray, 3]:
        """Point on the line from goal to target, `gap` metres behind the target's far face."""
        start, end = self.env.position_of(target)[:2], self.env.position_of(goal)[:2]
        direction = (end - start) / np.linalg.norm(end - start)
        return np.r_[start - direction * (self._shape.half_width + PUSH_REACH + gap), height]

    def _lateral_error(self, target: str, goal: str) -> float:
        """Distance [m] of the grip from the line through target and goal; large once it has slipped past."""
        start, end = self.env.position_of(target)[:2], self.env.position_of(goal)[:2]
        direction = (end - start) / np.linalg.norm(end - start)
        offset = self.env.grip()[0][:2] - start
        along = float(offset @ direction)
        return float("inf") if along > 0 else abs(float(offset @ np.array([-direction[1], direction[0]])))

    def _away(self, waypoint: Float[np.ndarray, 3]) -> float:
        return float(np.linalg.norm(self.env.grip()[0] - waypoint))

    def _aside(self, waypoint: Float[np.ndarray, 3]) -> float:
        return float(np.linalg.norm((self.env.grip()[0] - waypoint)[:2]))

    def _turn(self) -> float:
        """Remaining yaw [rad] until the fingers close across the target: modulo a quarter turn, none if it is round."""
        body, hand = self.env.rotation_of(self.env.layout.target), self.env.grip()[1]
        if kind_of(self.env.layout.target) != "mug" and self._shape.round:
            return 0.0
        error = math.atan2(body[1, 0], body[0, 0]) - math.atan2(hand[1, 0], hand[0, 0])
        period = math.pi if kind_of(self.env.layout.target) == "mug" else math.pi / 2  # a mug has one handle
        return (error + period / 2) % period - period / 2

    def _holds(self) -> bool:
        """Whether the target is between the closed fingers."""
        grip, body = self.env.grip()[0], self.env.position_of(self.env.layout.target)
        middle = body + self.env.rotation_of(self.env.layout.target) @ np.r_[0, 0, self._shape.height / 2]
        near = np.linalg.norm((grip - middle)[:2]) < 0.03 and abs(grip[2] - middle[2]) < 0.05
        return bool(near and self.env.finger() > 0.004)
