"""Edits of the testbed: ways to make a twin of a scene in which one thing differs.

visual      the same state under another look: `Tabletop.twin`
linguistic  the same state with another instruction of the same length in tokens
physical    the state with one body, the arm, the fingers or the hand's mount moved, and everything else where it was

Every edit says whether the right action differs (semantic) or not (nuisance). Another colour of the target, painted or
said, is a nuisance where its noun alone tells which object is meant; where a rival of its kind lies on the table,
exchanging their colours, or saying the rival's, changes which one the instruction means.

Lengths in metres, angles in radians, as in testbed/variation.py.
"""

import testbed  # noqa: F401, I001 (chooses the renderer, which must happen before mujoco is imported)

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from interp.factors.pairs import Edit, as_long
from interp.policies.protocol import Observation, Policy
from testbed.layout import REGION
from testbed.scene import CLEARANCE, kind_of
from testbed.tabletop import Tabletop
from testbed.tasks import TASKS, Task
from testbed.variation import COLOURS

ARM_NUDGE, BODY_NUDGE, MOUNT_NUDGE = 0.08, (0.04, 0.07), 0.02
OPEN, CLOSED = 0.04, 0.004
"""Finger positions of the gripper edit."""


@dataclass(frozen=True)
class Scene:
    """An episode, stopped: what an edit works on."""

    env: Tabletop
    policy: Policy
    clean: Observation
    rng: np.random.Generator

    @property
    def task(self) -> Task:
        return self.env.task

    @property
    def rivals(self) -> list[str]:
        """Bodies of the target's kind that the instruction does not mean: only its colour tells them apart."""
        return [body for body in self.task.objects if self.is_rival(body)]

    def is_rival(self, body: str) -> bool:
        return kind_of(body) == self.task.target and body != self.env.layout.target

    @property
    def bystanders(self) -> list[str]:
        """Bodies that the task does not touch."""
        return [body for body in self.task.objects if body not in (self.env.layout.target, self.task.goal)]

    @property
    def held(self) -> bool:
        """Whether the hand carries the target."""
        target = self.env.layout.target
        if kind_of(target) == "button":
            return False
        grip, body = self.env.grip()[0], self.env.position_of(target)
        return bool(body[2] > 0.01 and np.linalg.norm((grip - body)[:2]) < 0.05)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]


Corrupt = Callable[[Scene], Observation | None]
"""The corrupt twin; None where the edit does not apply."""


# ---- visual: the same state, another look


def _look(**knobs: Callable[[Scene], Any]) -> Corrupt:
    def corrupt(scene: Scene) -> Observation | None:
        return _observation(scene.env.twin({name: draw(scene) for name, draw in knobs.items()}))

    return corrupt


def _aside(scene: Scene) -> tuple[float, float, float]:
    x, y, z = scene.rng.uniform(-1, 1, 3) * (0.05, 0.2, 0.06)
    return float(x), float(y), float(z)


def _shining(scene: Scene) -> tuple[float, float, float]:
    x, y = scene.rng.uniform(-1, 1, 2)
    return float(x), float(y), -1.0


def _repaint(scene: Scene) -> Observation | None:
    """The target in a colour that nothing on the table has; where its noun alone tells which object is meant."""
    if scene.rivals:
        return None
    free = [colour for colour in COLOURS if colour not in scene.env.layout.colours.values()]
    return _observation(scene.env.twin({"repaint": scene.pick(free)}))


def _swap_colours(scene: Scene) -> Observation | None:
    """The target and its rival exchange their colours, so that the instruction now means the other one."""
    if not scene.rivals:
        return None
    target, rival, colours = scene.env.layout.target, scene.rivals[0], scene.env.layout.colours
    return _painted(scene, {**colours, target: colours[rival], rival: colours[target]})


def _paint_bystander(scene: Scene) -> Observation | None:
    """Another colour on an object that the instruction does not speak of."""
    bodies = [body for body in scene.bystanders if not scene.is_rival(body)]
    if not bodies:
        return None
    colours = scene.env.layout.colours
    free = [colour for colour in COLOURS if colour not in colours.values()]
    return _painted(scene, {**colours, scene.pick(bodies): scene.pick(free)})


def _painted(scene: Scene, colours: dict[str, str]) -> Observation:
    env, layout = scene.env, scene.env.layout
    env.layout = dataclasses.replace(layout, colours=colours)
    try:
        return _observation(env.twin({}))
    finally:
        env.layout = layout


# ---- linguistic: the same state, other words


def _colour_word(scene: Scene) -> list[str]:
    """A rival's colour: the instruction now means the rival."""
    return _of_colours(scene, [scene.env.layout.colours[body] for body in scene.rivals])


def _absent_colour(scene: Scene) -> list[str]:
    """A colour that nothing on the table has; where the noun alone tells which object is meant."""
    if scene.rivals:
        return []
    return _of_colours(scene, [c for c in COLOURS if c not in scene.env.layout.colours.values()])


def _of_colours(scene: Scene, colours: Sequence[str]) -> list[str]:
    return [_replaced(scene.clean.instruction, scene.env.layout.colour, colour) for colour in colours]


def _object_word(scene: Scene) -> list[str]:
    task = scene.task
    kinds = {kind_of(body) for body in task.objects} - {task.target, kind_of(task.goal or "")}
    kinds = kinds or {kind_of(body) for one in TASKS.values() for body in one.objects} - {task.target}
    return [_replaced(scene.clean.instruction, task.target, kind) for kind in sorted(kinds)]


def _verb(scene: Scene) -> list[str]:
    """What the other verbs' tasks say, about this task's target (and goal, if it has one)."""
    colour, task = scene.env.layout.colour, scene.task
    said = []
    for other in TASKS.values():
        if other.kind != task.kind:
            for text in other.instructions:
                text = _replaced(text.format(colour=colour), other.target, task.target)
                if other.goal and task.goal:
                    text = _replaced(text, kind_of(other.goal), kind_of(task.goal))
                said.append(text)
    known = {text.format(colour=colour) for text in task.instructions}
    return [text for text in said if text not in known]


def _paraphrase(scene: Scene) -> list[str]:
    return [text.format(colour=scene.env.layout.colour) for text in scene.task.instructions]


def _say(options: Callable[[Scene], list[str]]) -> Corrupt:
    """One of the instructions, among those that are as long as the clean one."""

    def corrupt(scene: Scene) -> Observation | None:
        fitting = as_long(scene.policy, scene.clean, options(scene))
        return dataclasses.replace(scene.clean, instruction=scene.pick(fitting)) if fitting else None

    return corrupt


def _replaced(text: str, word: str, by: str) -> str:
    """Whole words; the first occurrence, which is the object and not the goal."""
    words = text.split()
    if word in words:
        words[words.index(word)] = by
    return " ".join(words)


# ---- physical: another state


def _move_object(scene: Scene) -> Observation | None:
    """What the hand heads for: the target, or the goal once the target is carried."""
    body = scene.task.goal if scene.held else scene.env.layout.target
    return None if body is None else _moved(scene, body)


def _move_bystander(scene: Scene) -> Observation | None:
    return _moved(scene, scene.pick(scene.bystanders)) if scene.bystanders else None


def _move_arm(scene: Scene) -> Observation | None:
    with _another_state(scene.env):
        data = scene.env.world.data
        before, held = scene.env.grip(), scene.held
        data.qpos[:7] += scene.rng.uniform(-ARM_NUDGE, ARM_NUDGE, 7)
        mujoco.mj_forward(scene.env.world.model, data)
        if held:
            _carry_along(scene, *before)
        return seen(scene.env)


def _move_fingers(scene: Scene) -> Observation | None:
    with _another_state(scene.env):
        qpos = scene.env.world.data.qpos
        qpos[7:9] = CLOSED if qpos[7] > (OPEN + CLOSED) / 2 else OPEN
        return seen(scene.env)


def _mount(scene: Scene) -> tuple[float, float, float]:
    angle = scene.rng.uniform(0, 2 * np.pi)
    return MOUNT_NUDGE * float(np.cos(angle)), MOUNT_NUDGE * float(np.sin(angle)), 0.0


def _moved(scene: Scene, body: str) -> Observation | None:
    """The body a few centimetres aside, clear of all others, with everything else where it was."""
    env = scene.env
    start = env.position_of(body)[:2]
    others = [other for other in env.layout.spec.objects if other != body]

    def room(spot: Float[np.ndarray, " 2"]) -> float:
        return min(
            float(np.linalg.norm(spot - env.position_of(other)[:2])) - CLEARANCE[kind_of(other)]
            for other in others
        )

    angles, reach = scene.rng.uniform(0, 2 * np.pi, 200), scene.rng.uniform(*BODY_NUDGE, 200)
    spots = start + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    inside = ((spots > REGION[0] - 0.02) & (spots < REGION[1] + 0.02)).all(axis=1)
    free = [spot for spot in spots[inside] if room(spot) > CLEARANCE[kind_of(body)]]
    if not free:
        return None
    with _another_state(env):
        model, data = env.world.model, env.world.data
        if kind_of(body) in ("bowl", "button"):
            data.mocap_pos[model.body(body).mocapid[0], :2] = free[0]
        else:
            data.qpos[model.joint(body).qposadr[0] + np.arange(2)] += free[0] - start
        return seen(env)


def _carry_along(scene: Scene, grip: Float[np.ndarray, " 3"], rotation: Float[np.ndarray, "3 3"]) -> None:
    """Move the carried target with the hand, which stood at grip and rotation before."""
    env, target = scene.env, scene.env.layout.target
    address = env.world.model.joint(target).qposadr[0]
    new_grip, new_rotation = env.grip()
    turn = new_rotation @ rotation.T
    pose = env.world.data.qpos[address : address + 7]
    quaternion, orientation = np.empty(4), np.empty(4)
    mujoco.mju_mat2Quat(quaternion, turn.ravel())
    mujoco.mju_mulQuat(orientation, quaternion, pose[3:].copy())
    pose[:3], pose[3:] = new_grip + turn @ (pose[:3] - grip), orientation


@contextmanager
def _another_state(env: Tabletop) -> Iterator[None]:
    """Positions may be changed inside; afterwards the episode stands where it stood."""
    model, data = env.world.model, env.world.data
    qpos, mocap = data.qpos.copy(), data.mocap_pos.copy()
    try:
        yield
    finally:
        data.qpos[:], data.mocap_pos[:] = qpos, mocap
        mujoco.mj_forward(model, data)


def seen(env: Tabletop) -> Observation:
    """The observation of the positions as they are: after a step, MuJoCo's poses are still those from before its last
    4 ms, which would be a difference between twins."""
    mujoco.mj_forward(env.world.model, env.world.data)
    return _observation(env.observe())


def _observation(shown: Mapping[str, Any]) -> Observation:
    return Observation(shown["images"], shown["state"], shown["instruction"])


EDITS: dict[str, dict[str, Edit[Scene]]] = {
    "visual": {
        "light": Edit("nuisance", _look(light=lambda scene: scene.pick((0.55, 0.7, 1.4)))),
        "colours-swapped": Edit("semantic", _swap_colours),
        "repaint": Edit("nuisance", _repaint),
        "table": Edit("nuisance", _look(table=lambda scene: tuple(scene.rng.uniform(0.25, 0.75, 3)))),
        "camera": Edit("nuisance", _look(camera_offset=_aside)),
        "distractors": Edit("nuisance", _look(distractors=lambda scene: scene.pick((1, 2, 3)))),
        "form": Edit("nuisance", _look(form=lambda scene: "swapped")),
        "bystander-colour": Edit("nuisance", _paint_bystander),
        "lamp": Edit("nuisance", _look(light_direction=_shining)),
    },
    "linguistic": {
        "colour-word": Edit("semantic", _say(_colour_word)),
        "absent-colour": Edit("nuisance", _say(_absent_colour)),
        "object-word": Edit("semantic", _say(_object_word)),
        "verb": Edit("semantic", _say(_verb)),
        "paraphrase": Edit("nuisance", _say(_paraphrase)),
    },
    "physical": {
        "object-pose": Edit("semantic", _move_object),
        "arm": Edit("semantic", _move_arm),
        "gripper": Edit("semantic", _move_fingers),
        "hand-offset": Edit("semantic", _look(gripper_offset=_mount)),
        "bystander-pose": Edit("nuisance", _move_bystander),
    },
}
"""By factor and name; pairs take them in this order."""
