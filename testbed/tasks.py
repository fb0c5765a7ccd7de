"""The tasks of the tabletop: what is said, what lies on the table, and what counts as done.

Pretraining teaches four verbs over six colours and random layouts. The five targets mirror the tasks of Robotic
Steering (arXiv 2511.22697): each changes something that the policy has not acted on before. `pick-mug` is the unseen
task on which a finetuned policy is tested for generalisation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from testbed.scene import SHAPES, Shape
from testbed.variation import COLOURS, TestbedError, Variation

Kind = Literal["pick", "place", "press", "push"]

PRETRAINING_COLOURS = ("red", "green", "blue", "yellow", "orange", "white")


@dataclass(frozen=True)
class Task:
    """One task: its scene, its instruction and the parameters of its success test (see `Tabletop`)."""

    name: str
    kind: Kind
    target: str
    """Kind of the object to act on: `cube`, `marker`, `mug`, `cup`, `button`."""
    objects: tuple[str, ...]
    """Bodies on the table; the target is drawn among those of its kind."""
    instructions: tuple[str, ...]
    """Paraphrases of the instruction; `{colour}` is the target's. Demonstrations use all but the last, which only
    rearranges known words."""
    goal: str | None = None
    """Body that the target is brought to."""
    colours: tuple[str, ...] = PRETRAINING_COLOURS
    look: Variation = field(default_factory=Variation)
    """The task's own look; a variation at reset is laid over it."""
    max_steps: int = 60
    hold: int = 3
    """Consecutive steps for which the condition must hold."""
    press_depth: float = 0.008
    button_stiffness: float = 120.0
    shapes: tuple[tuple[str, Shape], ...] = ()
    """(kind, shape) of kinds that look different in this task."""


_PICK = ("pick up the C O", "lift the C O", "grab the C O", "pick the C O up")
_PLACE = ("put the C O in the G", "place the C O in the G", "drop the C O in the G", "place in the G the C O")
_PRESS = ("press the C O", "push the C O", "press down the C O", "push down the C O")
_PUSH = ("push the C O to the G", "slide the C O to the G", "move the C O to the G", "slide to the G the C O")


def _say(templates: tuple[str, ...], target: str, goal: str = "", ending: str = "") -> tuple[str, ...]:
    """Fill object (O) and goal (G) into templates; the colour (C) stays open."""
    words = {"C": "{colour}", "O": target, "G": goal}
    return tuple(" ".join(words.get(w, w) for w in t.split()) + ending for t in templates)


_COMMON = ("bowl", "cube0", "cube1", "button0", "button1")

_TASKS = (
    Task("pick", "pick", "cube", _COMMON, _say(_PICK, "cube")),
    Task(
        "put", "place", "cube", _COMMON,
        _say(_PLACE, "cube", "bowl"),
        goal="bowl",
    ),
    Task(
        "press", "press", "button", _COMMON,
        _say(_PRESS, "button"),
        hold=1, max_steps=40,
    ),
    Task(
        "push", "push", "cube", _COMMON,
        _say(_PUSH, "cube", "bowl"),
        goal="bowl", hold=1,
    ),
    Task(
        "marker-in-mug", "place", "marker", ("mug0", "marker0", "cube0"),
        _say(_PLACE, "marker", "mug"),
        goal="mug0",
        shapes=(("mug", Shape(0.045, 0.050, True, 0.25)),),  # wider than the hand opens: it stays where it is
    ),
    Task(
        "press-button-hard", "press", "button", ("button0", "button1", "cube0"),
        _say(_PRESS, "button", ending=" hard"),
        hold=5, press_depth=0.0105, button_stiffness=900.0,
        shapes=(("button", replace(SHAPES["button"], half_width=0.015)),), max_steps=40,
    ),
    Task(
        "pick-cube", "pick", "cube", ("cube0", "cube1", "bowl"),
        _say(_PICK, "cube"),
        colours=("purple", "cyan"), look=Variation(table=(0.50, 0.47, 0.41), light=0.95),
    ),
    Task(
        "cube-in-bowl", "place", "cube", ("bowl", "cube0", "cube1"),
        _say(_PLACE, "cube", "bowl"),
        goal="bowl",
        look=Variation(camera_offset=(-0.05, 0.30, 0.08), camera_fovy=44.0, pose_shift=(0.0, 0.04), pose_scale=1.15),
    ),
    Task(
        "push-cup-to-bowl", "push", "cup", ("bowl", "cup0", "cube0"),
        _say(_PUSH, "cup", "bowl"),
        goal="bowl", hold=1,
    ),
    Task(
        "pick-mug", "pick", "mug", ("mug0", "cube0", "bowl"),
        _say(_PICK, "mug"),
    ),
)  # fmt: skip

TASKS: dict[str, Task] = {t.name: t for t in _TASKS}
PRETRAINING = ("pick", "put", "press", "push")
TARGETS = ("marker-in-mug", "press-button-hard", "pick-cube", "cube-in-bowl", "push-cup-to-bowl")
UNSEEN = ("pick-mug",)


def get_task(name: str) -> Task:
    """Look a task up by name; unknown names list the known ones."""
    if name not in TASKS:
        raise TestbedError(f"task {name!r}: unknown; use one of {', '.join(TASKS)}")
    return TASKS[name]


def vocabulary() -> list[str]:
    """Every word that an instruction of the testbed can contain, sorted."""
    words = set(COLOURS)
    for task in _TASKS:
        for text in task.instructions:
            words |= set(text.replace("{colour}", "").split())
    return sorted(words)
