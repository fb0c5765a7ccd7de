"""What may differ between two views of one episode: the knobs that every factor of the toolkit turns.

A `Variation` changes appearance (visual), geometry or embodiment (physical), never the task. Two variations of the
same seed keep the same layout, colours and robot start wherever they do not speak of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

RGB = tuple[float, float, float]

FORMS = ("standard", "swapped", "taller")
"""Form of the manipulated object: as is, box and cylinder swapped, or a quarter higher."""

COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.08, 0.08),
    "green": (0.08, 0.62, 0.14),
    "blue": (0.10, 0.20, 0.90),
    "yellow": (0.95, 0.82, 0.05),
    "orange": (0.95, 0.45, 0.02),
    "white": (0.95, 0.95, 0.95),
    "purple": (0.50, 0.10, 0.65),
    "cyan": (0.05, 0.75, 0.80),
}
"""Colour words and their RGB. Pretraining uses the first six; purple and cyan are kept for target tasks."""


class TestbedError(ValueError):
    """A request that the testbed cannot meet: one line naming the value, the rule and the fix."""

    __test__ = False  # the name starts with Test, but pytest must not collect it


@dataclass(frozen=True)
class Variation:
    """One setting of everything that may vary at reset. Lengths in metres, angles in radians, colours 0 to 1."""

    light: float = 1.0
    """Brightness of all lights relative to the standard scene, in (0, 3]."""
    light_direction: tuple[float, float, float] = (-0.3, 0.2, -1.0)
    """Where the lamp shines to, world frame."""
    table: RGB | None = None
    """Table colour; None keeps the task's own."""
    target_colour: str | None = None
    """Colour word for the target object; spoken in the instruction too. None draws one from the seed."""
    repaint: str | None = None
    """Colour that the target is painted *without* changing the instruction: a purely visual twin."""
    form: str = "standard"
    """Form of the target object, one of `FORMS`."""
    distractors: int = 0
    """Additional objects that no instruction speaks of, 0 to 3."""
    camera_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Displacement of the front camera; it keeps aiming at the table's centre."""
    camera_fovy: float | None = None
    """Vertical field of view of the front camera in degrees; None keeps the standard 41."""
    pose_scale: float = 1.0
    """Size of the region in which objects lie, relative to the task's own, in [0.2, 1.3]."""
    pose_shift: tuple[float, float] = (0.0, 0.0)
    """Displacement of that region on the table."""
    robot_start: float = 0.02
    """Half-range of the uniform noise on the seven start joints."""
    gripper_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """How far the hand sits from where the controller believes it to be, in the hand's frame."""

    def __post_init__(self) -> None:
        for name, size in _NUMBERS.items():
            value = getattr(self, name)
            if not (value is None and name in _OPEN) and not _holds_numbers(value, size):
                rule = f"{size} finite numbers" if size else "a finite number"
                raise TestbedError(f"{name} {value!r}: must be {rule}")
        if self.form not in FORMS:
            raise TestbedError(f"form {self.form!r}: use one of {', '.join(FORMS)}")
        if not 0 < self.light <= 3:
            raise TestbedError(f"light {self.light}: must be in (0, 3], 1 is the standard brightness")
        if not any(self.light_direction):
            raise TestbedError(f"light_direction {self.light_direction}: must point somewhere")
        if self.table is not None and not all(0 <= x <= 1 for x in self.table):
            raise TestbedError(f"table {self.table}: must be red, green and blue from 0 to 1")
        if not isinstance(self.distractors, Integral) or not 0 <= self.distractors <= 3:
            raise TestbedError(f"distractors {self.distractors}: must be 0 to 3, a whole number")
        if self.camera_fovy is not None and not 0 < self.camera_fovy < 180:
            raise TestbedError(f"camera_fovy {self.camera_fovy}: must be between 0 and 180 degrees")
        if not 0.2 <= self.pose_scale <= 1.3:
            raise TestbedError(f"pose_scale {self.pose_scale}: must be in [0.2, 1.3]")
        if not 0 <= self.robot_start <= 0.2:
            raise TestbedError(f"robot_start {self.robot_start}: must be 0 to 0.2 rad")
        if max(abs(x) for x in self.gripper_offset) > 0.03:
            raise TestbedError(f"gripper_offset {self.gripper_offset}: at most 0.03 m on each axis")
        for word in (self.target_colour, self.repaint):
            if word is not None and (not isinstance(word, str) or word not in COLOURS):
                raise TestbedError(f"colour {word!r}: use one of {', '.join(COLOURS)}")

    @classmethod
    def of(cls, value: Variation | Mapping[str, Any] | None) -> Variation:
        """Build from a mapping, as in `reset(options=...)`; an unknown knob is an error that lists the known."""
        if isinstance(value, Variation):
            return value
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(value or {}) - known):
            raise TestbedError(f"variation {unknown[0]!r}: unknown; use {', '.join(sorted(known))}")
        knobs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (value or {}).items()}
        return cls(**knobs)


_NUMBERS = {
    "light": 0, "light_direction": 3, "table": 3, "distractors": 0, "camera_offset": 3, "camera_fovy": 0,
    "pose_scale": 0, "pose_shift": 2, "robot_start": 0, "gripper_offset": 3,
}  # fmt: skip
"""Of a knob, how many numbers it holds; 0: it is one."""
_OPEN = ("table", "camera_fovy")
"""Knobs that may be None."""


def _holds_numbers(value: Any, size: int) -> bool:
    if size:
        several = isinstance(value, tuple | list) and len(value) == size
        return several and all(_holds_numbers(x, 0) for x in value)
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
