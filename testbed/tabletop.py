"""`Tabletop`: the simulated Franka as a `gymnasium.Env`.

Observation: `images` (by camera, uint8 [height, width, 3]), `state` float32 [8] and `instruction`.
State: tool centre xyz [m], rotation vector relative to pointing straight down [rad], two finger positions [m].
Action float32 [7] at 10 Hz: delta xyz [m], delta rotation vector [rad], both in the world frame and relative to the
controller's last target, and the gripper (negative closes, positive opens). Targets are clipped to the workspace.

An episode ends with success, with a failure that cannot be undone (wrong object, object lifted while pushing, object
toppled or off the table), or after the task's `max_steps`.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from testbed import scene
from testbed.gl import require_gl
from testbed.layout import WORKSPACE, Layout, lay_over, plan_layout, spec_of, with_distractors
from testbed.rotation import rotation_matrix, rotation_vector
from testbed.scene import HOME, SceneSpec, kind_of
from testbed.tasks import get_task
from testbed.variation import TestbedError, Variation
from testbed.world import World

CAMERAS = ("front", "wrist")
RATE_HZ = 10
STATE_NAMES = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "finger_left", "finger_right")
ACTION_NAMES = ("dx", "dy", "dz", "drotation_x", "drotation_y", "drotation_z", "gripper")
MAX_STEP, MAX_TURN = 0.04, 0.2
POINTING_DOWN = np.diag([1.0, -1.0, -1.0])
KEPT_WORLDS = 24
RENDER_SIZE = 256
RESET_OPTIONS = ("task", "variation", "instruction", "paraphrase", "other_object")
LIFT_HEIGHT = 0.08
GRASPED_RISE, MOVED, TOUCHED_DEPTH = 0.02, 0.01, 0.002
"""From when on, in metres, an object counts as grasped, as moved, and a button as touched: for reasons of failure."""
OPEN_FINGER, CLOSED_FINGER = 0.03, 0.012


class Tabletop(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A Franka Panda at a table. See the module's docstring for units, and `Variation` for what may differ.

    `reset(seed=..., options={"task": name, "variation": {...}, "instruction": text, "paraphrase": i, "other_object":
    True})`: the episode is a function of these alone (`other_object` names and judges another object of the scene).
    `info` carries `success`, `failure` (None or the reason, also of an episode that runs out of time) and, at reset,
    the `layout`.
    `blind` shows grey images and `mute` an empty instruction: controls for whether a policy uses its inputs.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012 (gymnasium's own form)

    def __init__(
        self,
        task: str = "pick",
        image_size: int = 64,
        render_mode: str | None = None,
        blind: bool = False,
        mute: bool = False,
    ) -> None:
        require_gl()
        if not 16 <= image_size <= 640:
            raise TestbedError(f"image_size {image_size}: must be 16 to 640 pixels")
        self.task = get_task(task)
        self.image_size, self.render_mode, self.blind, self.mute = image_size, render_mode, blind, mute
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "state": spaces.Box(-np.inf, np.inf, (len(STATE_NAMES),), np.float32),
                "instruction": spaces.Text(200, min_length=0, charset=string.printable),
            }
        )
        limit = np.array([MAX_STEP] * 3 + [MAX_TURN] * 3 + [1.0], np.float32)
        self.action_space = spaces.Box(-limit, limit, dtype=np.float32)
        self._worlds: dict[SceneSpec, World] = {}

    @property
    def max_steps(self) -> int:
        return self.task.max_steps

    # -- episode ------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        if unknown := sorted(set(options) - set(RESET_OPTIONS)):
            raise TestbedError(f"reset option {unknown[0]!r}: use one of {', '.join(RESET_OPTIONS)}")
        if "task" in options:
            self.task = get_task(options["task"])
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self.layout = plan_layout(
            self.task,
            seed,
            options.get("variation"),
            options.get("paraphrase"),
            bool(options.get("other_object")),
        )
        self.instruction = options.get("instruction", self.layout.instruction)
        self.world = self._place(self.layout)
        model, data = self.world.model, self.world.data
        self._tcp, self._grip = model.site("tcp").id, model.site("grip").id
        self._joint_target = data.qpos[:7].copy()
        self._position_target = data.site_xpos[self._tcp].copy()
        self._rotation_target = data.site_xmat[self._tcp].reshape(3, 3).copy()
        self._jacobian = np.zeros((6, model.nv))
        movable = [b for b in self.layout.spec.objects if kind_of(b) != "button"]
        self._start = {b: self.position_of(b) for b in movable}
        self._rest_height = {b: position[2] for b, position in self._start.items()}
        self._highest = self._deepest = 0.0
        self.steps, self._held, self.success = 0, 0, False
        self.failure: str | None = None
        return self.observe(), {**self._info(), "layout": self.layout}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """`step` without rendering its observation: for actions inside an executed chunk. `observe` looks later."""
        action = np.asarray(action, float)
        if action.shape != (len(ACTION_NAMES),) or not np.isfinite(action).all():
            raise TestbedError(f"action of shape {action.shape}: must be {len(ACTION_NAMES)} finite numbers")
        model, data = self.world.model, self.world.data
        move = np.clip(action[:3], -MAX_STEP, MAX_STEP)
        self._position_target = np.clip(self._position_target + move, *WORKSPACE)
        turn = np.clip(action[3:6], -MAX_TURN, MAX_TURN)
        self._rotation_target = rotation_matrix(turn) @ self._rotation_target
        before, self._joint_target = self._joint_target, self._inverse_kinematics()
        data.ctrl[7:] = 0.04 if action[6] > 0 else 0.0
        substeps = round(1 / RATE_HZ / scene.TIMESTEP)
        for i in range(substeps):
            data.ctrl[:7] = before + (self._joint_target - before) * (i + 1) / substeps
            mujoco.mj_step(model, data)
        self.steps += 1
        self._judge()
        done = self.success or self.failure is not None
        truncated = not done and self.steps >= self.max_steps
        info = self._info()
        if truncated:
            info["failure"] = self._shortfall()
        return float(self.success), done, truncated, info

    def observe(self) -> dict[str, Any]:
        images = {c: self.world.render(c, self.image_size) for c in CAMERAS}
        if self.blind:
            images = {c: np.full_like(image, 128) for c, image in images.items()}
        return {"images": images, "state": self.state(), "instruction": "" if self.mute else self.instruction}

    def state(self) -> Float[np.ndarray, 8]:
        data = self.world.data
        turn = rotation_vector(data.site_xmat[self._tcp].reshape(3, 3) @ POINTING_DOWN.T)
        return np.concatenate([data.site_xpos[self._tcp], turn, data.qpos[7:9]]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, "failure": self.failure}

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """All cameras side by side, as large as people like; what the policy sees stays `image_size`."""
        if self.render_mode != "rgb_array":
            return None
        size = max(self.image_size, RENDER_SIZE)
        return np.concatenate([self.world.render(camera, size) for camera in CAMERAS], axis=1)

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()
        self._worlds.clear()

    # -- twins --------------------------------------------------------------------------------------------------

    def twin(
        self, variation: Variation | Mapping[str, Any], instruction: str | None = None
    ) -> dict[str, Any]:
        """The observation of this very simulator state under another variation (and instruction).

        Joint angles, object poses and finger positions are copied body by body, so only what the variation speaks of
        differs. `pose_scale`, `pose_shift` and `robot_start` act at reset and therefore change nothing here.
        """
        seed_layout = self.layout
        other = lay_over(seed_layout.task.look, variation)
        layout = dataclasses.replace(
            seed_layout, variation=other, spec=spec_of(seed_layout.task, other, seed_layout.target)
        )
        layout = with_distractors(layout)
        source, target = self.world, World.compile(layout.spec)
        target.place(layout)
        for i in range(source.model.njnt):
            joint = source.model.joint(i)
            same = target.model.joint(joint.name)
            n = 7 if joint.type[0] == mujoco.mjtJoint.mjJNT_FREE else 1
            target.data.qpos[same.qposadr[0] : same.qposadr[0] + n] = source.data.qpos[
                joint.qposadr[0] : joint.qposadr[0] + n
            ]
        mujoco.mj_forward(target.model, target.data)
        images = {c: target.render(c, self.image_size) for c in CAMERAS}
        target.close()
        return {"images": images, "state": self.state(), "instruction": instruction or self.instruction}

    # -- what the expert and the success tests may know ---------------------------------------------------------

    def position_of(self, body: str) -> Float[np.ndarray, 3]:
        """World position [m] of a body's base centre (buttons: of the cap's centre)."""
        name = f"{body}_cap" if kind_of(body) == "button" else body
        return self.world.data.xpos[self.world.model.body(name).id].copy()

    def rotation_of(self, body: str) -> Float[np.ndarray, "3 3"]:
        return self.world.data.xmat[self.world.model.body(body).id].reshape(3, 3).copy()

    def grip(self) -> tuple[Float[np.ndarray, 3], Float[np.ndarray, "3 3"]]:
        """True position and rotation of the point between the fingertips."""
        data = self.world.data
        return data.site_xpos[self._grip].copy(), data.site_xmat[self._grip].reshape(3, 3).copy()

    @property
    def commanded(self) -> Float[np.ndarray, 3]:
        """The controller's position target [m], which actions add to."""
        return self._position_target.copy()

    def finger(self) -> float:
        """Finger position [m]: 0.04 is open, 0 is closed."""
        return float(self.world.data.qpos[7])

    def _is_closed(self) -> bool:
        """Whether the gripper was told to close and did; a crash can shut open fingers too."""
        return self.world.data.ctrl[7] == 0 and self.finger() < CLOSED_FINGER

    def press_depth(self, button: str) -> float:
        return float(self.world.data.qpos[self.world.model.joint(button).qposadr[0]])

    def segment(self, patch: int) -> UInt8[np.ndarray, "camera patches 3"]:
        """Share (0-255) of every image patch that shows the target, the goal and the hand."""
        model = self.world.model
        label = np.zeros(model.ngeom + 1, int)
        owners = {
            self.layout.target: 1,
            f"{self.layout.target}_cap": 1,
            "hand": 3,
            "left_finger": 3,
            "right_finger": 3,
        }
        if self.task.goal:
            owners[self.task.goal] = 2
        for g in range(model.ngeom):
            label[g] = owners.get(model.body(model.geom_bodyid[g]).name, 0)
        side = self.image_size // patch
        shares = []
        for camera in CAMERAS:
            geoms = self.world.render(camera, self.image_size, segmentation=True)[..., 0]
            classes = label[np.where(geoms < 0, model.ngeom, geoms)].reshape(side, patch, side, patch)
            shares.append(np.stack([(classes == c).mean((1, 3)).ravel() for c in (1, 2, 3)], -1))
        return (np.stack(shares) * 255).astype(np.uint8)

    # -- internals ----------------------------------------------------------------------------------------------

    def _place(self, layout: Layout) -> World:
        """The world of a layout's scene, compiled once and kept for later episodes, set as the layout says."""
        if layout.spec not in self._worlds:
            if len(self._worlds) >= KEPT_WORLDS:
                self._worlds.pop(next(iter(self._worlds))).close()
            self._worlds[layout.spec] = World.compile(layout.spec)
        world = self._worlds[layout.spec]
        world.place(layout)
        return world

    def _inverse_kinematics(self) -> Float[np.ndarray, 7]:
        """Damped least squares towards the target pose, with the null space pulled home."""
        model, data, scratch = self.world.model, self.world.data, self.world.scratch
        scratch.qpos[:] = data.qpos
        scratch.qpos[:7] = self._joint_target
        for _ in range(6):
            mujoco.mj_kinematics(model, scratch)
            mujoco.mj_comPos(model, scratch)
            turn = self._rotation_target @ scratch.site_xmat[self._tcp].reshape(3, 3).T
            error = np.concatenate(
                [self._position_target - scratch.site_xpos[self._tcp], rotation_vector(turn)]
            )
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jacSite(model, scratch, self._jacobian[:3], self._jacobian[3:], self._tcp)
            jacobian = self._jacobian[:, :7]
            inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-4 * np.eye(6))
            move = inverse @ error + (np.eye(7) - inverse @ jacobian) @ (0.05 * (HOME - scratch.qpos[:7]))
            limits = model.jnt_range[:7]
            scratch.qpos[:7] = np.clip(
                scratch.qpos[:7] + np.clip(move, -0.3, 0.3), limits[:, 0], limits[:, 1]
            )
        return scratch.qpos[:7].copy()

    def _judge(self) -> None:
        if self.success or self.failure is not None:
            return
        target = self.layout.target
        if self.task.kind == "press":
            self._deepest = max(self._deepest, self.press_depth(target))
        else:
            self._highest = max(self._highest, self._rise(target))
        self.failure = self._failure()
        self._held = self._held + 1 if self.failure is None and self._condition() else 0
        self.success = self._held >= self.task.hold

    def _condition(self) -> bool:
        """Whether the task's goal is met at this instant."""
        task, target, data = self.task, self.layout.target, self.world.data
        if task.kind == "press":
            grip, rotation = self.grip()
            above = (
                np.linalg.norm((grip - self.position_of(target))[:2])
                < self.layout.spec.shape(target).half_width
            )
            upright = rotation[2, 2] < -0.9  # pressed with the fingertips, not with whatever part came by
            pressed = self.press_depth(target) > task.press_depth
            return bool(pressed and above and upright and self._is_closed())
        position = self.position_of(target)
        if task.kind == "pick":
            return position[2] - self._rest_height[target] > LIFT_HEIGHT and self.finger() < 0.99 * 0.04
        assert task.goal is not None
        offset = np.linalg.norm(position[:2] - self.position_of(task.goal)[:2])
        if task.kind == "push":
            reach = scene.BOWL_RADIUS + 0.004 + self.layout.spec.shape(target).half_width + 0.015
            return bool(offset < reach and self._is_closed())
        inside = (
            0.05
            if kind_of(task.goal) == "bowl"
            else self.layout.spec.shape(task.goal).half_width - scene.MUG_WALL
        )
        low = position[2] < 0.03 and np.abs(data.qvel[:7]).max() < 10
        return bool(offset < inside and low and self.finger() > OPEN_FINGER)

    def _failure(self) -> str | None:
        """Reason why the episode can no longer succeed, or None."""
        target = self.layout.target
        for body in self.layout.spec.objects:
            if kind_of(body) == "button":
                if self.task.kind == "press" and body != target and self.press_depth(body) > 0.008:
                    return "wrong button"
                continue
            rise = self._rise(body)
            if rise < -0.02:
                return "object off the table"
            if body != target and body != self.task.goal and rise > LIFT_HEIGHT:
                return "wrong object"
            if self.task.kind == "push" and body == target and rise > 0.03:
                return "lifted instead of pushed"
        if self.task.kind == "push" and kind_of(target) != "cube" and self.rotation_of(target)[2, 2] < 0.8:
            return "object toppled"
        return None

    def _shortfall(self) -> str:
        """How far an episode came that ran out of time: the reason of its failure."""
        target = self.layout.target
        if self.task.kind == "press":
            if self._deepest > TOUCHED_DEPTH:
                return "not held down" if self._deepest > self.task.press_depth else "pressed too lightly"
            return "never pressed"
        moved = {b: float(np.linalg.norm((self.position_of(b) - p)[:2])) for b, p in self._start.items()}
        others = max((m for b, m in moved.items() if b not in (target, self.task.goal)), default=0.0)
        if self._highest < GRASPED_RISE and moved[target] < MOVED and others > 3 * MOVED:
            return "wrong object"
        if self.task.kind == "push":
            return "pushed astray" if moved[target] > MOVED else "never pushed"
        if self._highest < GRASPED_RISE:
            return "never grasped"
        if self._rise(target) > GRASPED_RISE:
            return "not lifted high enough" if self.task.kind == "pick" else "not put down"
        return "dropped"

    def _rise(self, body: str) -> float:
        """Height [m] of a body above where it lay at the start."""
        return float(self.position_of(body)[2] - self._rest_height[body])


gymnasium.register("robosteer/Tabletop-v0", entry_point="testbed.tabletop:Tabletop")
