"""Where everything lies at the start of an episode: drawn from the seed, before any physics.

Separate random streams for places, colours and the robot's start keep what a variation does not speak of identical
between twins of one seed. Positions are x, y on the table in metres, yaw in radians.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from testbed import scene
from testbed.scene import HOME, SceneSpec, kind_of
from testbed.tasks import Task
from testbed.variation import COLOURS, TestbedError, Variation

WORKSPACE = np.array([[0.28, -0.34, 0.012], [0.70, 0.34, 0.45]])
"""Limits of the controller's position target: lower and upper x, y, z."""
REGION = np.array([[0.38, -0.21], [0.62, 0.21]])
"""Where objects lie at reset: lower and upper x, y of their centres."""
OTHER_COLOURS = ("red", "green", "blue", "yellow")
"""Palette of objects that are not of the target's kind."""


@dataclass(frozen=True)
class Layout:
    """Where everything lies at the start of an episode: a pure function of task, seed and variation."""

    task: Task
    variation: Variation
    spec: SceneSpec
    target: str
    colour: str
    """The target's colour word, as spoken."""
    colours: Mapping[str, str]
    position: Mapping[str, Float[np.ndarray, 2]]
    yaw: Mapping[str, float]
    joints: Float[np.ndarray, 7]
    instruction: str


def lay_over(look: Variation, given: Variation | Mapping[str, Any] | None) -> Variation:
    """A variation laid over a task's own look: the knobs that it names win, also with their standard value.

    A mapping names its keys, those with None apart; a `Variation` names the knobs that differ from the standard.
    """
    variation = Variation.of(given)
    if isinstance(given, Mapping):
        named = {name for name, value in given.items() if value is not None}
    else:
        knobs = dataclasses.fields(Variation)
        named = {f.name for f in knobs if getattr(variation, f.name) != f.default}
    return dataclasses.replace(look, **{name: getattr(variation, name) for name in named})


def spec_of(task: Task, variation: Variation, target: str) -> SceneSpec:
    distractors = tuple(f"cube{7 + i}" for i in range(variation.distractors))
    form_of = () if variation.form == "standard" else ((target, variation.form),)
    return SceneSpec(
        task.objects + distractors,
        form_of,
        variation.gripper_offset,
        task.button_stiffness,
        task.shapes,
    )


def plan_layout(
    task: Task,
    seed: int,
    given: Variation | Mapping[str, Any] | None = None,
    paraphrase: int | None = None,
    other_object: bool = False,
) -> Layout:
    """Draw an episode. Separate random streams keep what a variation does not speak of identical between twins.

    With `other_object` the instruction names another object of the very same scene, and that one is judged. Only
    pushing may draw other places, because the lane must be free for the object that is pushed.
    """
    variation = lay_over(task.look, given)
    place, paint, start = (np.random.default_rng([seed, stream]) for stream in range(3))
    candidates = [b for b in task.objects if kind_of(b) == task.target]
    target = candidates[int(paint.integers(len(candidates)))]
    colours = _draw_colours(task, target, variation, paint)
    if other_object:
        target = _another(task, target)
    spoken = colours[target]
    if paraphrase is None:
        paraphrase = int(paint.integers(len(task.instructions) - 1))
    if not 0 <= paraphrase < len(task.instructions):
        raise TestbedError(
            f"paraphrase {paraphrase}: task {task.name} has {len(task.instructions)} (0 is the first)"
        )
    layout = Layout(
        task=task,
        variation=variation,
        spec=spec_of(task, variation, target),
        target=target,
        colour=spoken,
        colours=colours,
        position=_draw_positions(task, target, variation, place),
        yaw={b: float(start.uniform(-0.6, 0.6)) for b in task.objects},
        joints=HOME + start.uniform(-1, 1, 7) * variation.robot_start,
        instruction=_instruct(task, paraphrase, spoken, kind_of(target)),
    )
    return with_distractors(layout)


def _another(task: Task, target: str) -> str:
    """The object that an instruction can name instead: of the target's kind if there is one, else one that the verb
    can act on."""
    buttons = task.kind == "press"
    rest = [b for b in task.objects if b not in (target, task.goal) and (kind_of(b) == "button") == buttons]
    rest = [b for b in rest if kind_of(b) != "bowl"]
    return min(rest, key=lambda b: (kind_of(b) != task.target, b))


def _instruct(task: Task, paraphrase: int, colour: str, kind: str) -> str:
    template = task.instructions[paraphrase].replace(f"{{colour}} {task.target}", f"{{colour}} {kind}")
    return template.format(colour=colour)


def _draw_colours(task: Task, target: str, variation: Variation, rng: np.random.Generator) -> dict[str, str]:
    """Objects of one kind never share a colour; bowls and mugs stay white unless they are the target."""
    colours: dict[str, str] = {}
    for kind in sorted({kind_of(b) for b in task.objects}):
        bodies = sorted(b for b in task.objects if kind_of(b) == kind)
        palette = task.colours if kind == task.target else OTHER_COLOURS
        words = [str(c) for c in rng.permutation(palette)]
        if kind == "bowl" or (kind == "mug" and task.target != "mug"):
            words = ["white"]
        if variation.target_colour is not None and target in bodies:
            rest = [w for w in words if w != variation.target_colour]
            words = [variation.target_colour if b == target else rest.pop() for b in bodies]
        colours |= dict(zip(bodies, words, strict=False))
    return colours


def _draw_positions(
    task: Task, target: str, variation: Variation, rng: np.random.Generator
) -> dict[str, Float[np.ndarray, 2]]:
    """Rejection-sample centres that keep every object's clearance, and a free lane for pushing."""
    centre = REGION.mean(0) + variation.pose_shift
    half = (REGION[1] - REGION[0]) / 2 * variation.pose_scale
    bodies = sorted(task.objects, key=lambda b: -scene.CLEARANCE[kind_of(b)])
    for _ in range(20_000):
        placed: dict[str, np.ndarray] = {}
        for body in bodies:
            for _ in range(12):
                spot = rng.uniform(centre - half, centre + half)
                room = scene.CLEARANCE[kind_of(body)]
                if all(
                    np.linalg.norm(spot - p) > room + scene.CLEARANCE[kind_of(b)] for b, p in placed.items()
                ):
                    placed[body] = spot
                    break
            else:
                break
        if len(placed) == len(bodies) and (task.kind != "push" or _lane_is_free(task, target, placed)):
            return {b: placed[b] for b in task.objects}
    raise TestbedError(f"pose_scale {variation.pose_scale}: no layout found for task {task.name}; enlarge it")


def _lane_is_free(task: Task, target: str, placed: Mapping[str, Float[np.ndarray, 2]]) -> bool:
    """Whether the target can be pushed straight to the goal: far enough away, nothing in the way or behind it."""
    assert task.goal is not None
    lane = placed[task.goal] - placed[target]
    length = float(np.linalg.norm(lane))
    if length < 0.17:
        return False
    direction = lane / length
    behind = placed[target] - 0.075 * direction
    if np.any(behind < WORKSPACE[0, :2] + 0.02) or np.any(behind > WORKSPACE[1, :2] - 0.02):
        return False
    for body, spot in placed.items():
        if body in (target, task.goal):
            continue
        along = float(np.clip((spot - behind) @ direction, 0, length))
        if np.linalg.norm(spot - behind - along * direction) < 0.085:
            return False
    return True


def with_distractors(layout: Layout) -> Layout:
    """Give distractors (cubes 7 to 9) a place, colour and yaw that depend on the layout alone."""
    names = [b for b in layout.spec.objects if b not in layout.position]
    if not names:
        return layout
    rng = np.random.default_rng(_seed_from(np.concatenate(list(layout.position.values()))))
    position, yaw, colours = dict(layout.position), dict(layout.yaw), dict(layout.colours)
    palette = [c for c in COLOURS if c not in layout.colours.values()]
    for name in names:
        spots = rng.uniform([0.34, -0.27], [0.66, 0.27], (400, 2))
        gap = [
            min(np.linalg.norm(s - p) - scene.CLEARANCE[kind_of(b)] for b, p in position.items())
            for s in spots
        ]
        position[name] = spots[int(np.argmax(gap))]
        yaw[name], colours[name] = float(rng.uniform(-0.6, 0.6)), palette[int(rng.integers(len(palette)))]
    return dataclasses.replace(layout, position=position, yaw=yaw, colours=colours)


def _seed_from(values: np.ndarray) -> int:
    """A seed from numbers, stable between processes."""
    return zlib.crc32(np.ascontiguousarray(values, np.float64).tobytes())
