"""How many actions a second [Hz] a policy's robot carries out: as many as the demonstrations have that it learnt from.

At another rate the robot moves at another speed, and no layout but ours has a place for it: robosteer.json may say it
(`fps`). A policy that says nothing has none (`PolicySpec.fps` is None); training gives it that of its demonstrations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from interp.demos import Demonstrations
from interp.policies.preprocessing import FILE
from interp.policies.spec import PolicySpec
from interp.runs import read_json, write_json

_SAME = 0.01
"""Relative: 29.97 frames a second are 30."""


def other_rate(spec: PolicySpec, demos: Demonstrations) -> Iterator[str]:
    """A line if the policy says a rate that is not the demonstrations'."""
    if spec.fps is not None and not _same(spec.fps, demos.fps):
        yield (
            f"the policy acts at {spec.fps:g} Hz ({FILE}), the demonstrations {demos.path} are of {demos.fps:g} Hz, at "
            "which the same movement takes other actions: record at the policy's rate, or if the file is wrong, write "
            f'{{"fps": {demos.fps:g}}} into it'
        )


def warn_if_other_rate(spec: PolicySpec, demos: Demonstrations) -> None:
    for line in other_rate(spec, demos):
        warnings.warn(line, stacklevel=3)


def say_rate(directory: Path, fps: float) -> None:
    """Writes the rate into robosteer.json in a policy's directory, unless it stands there."""
    file = directory / FILE
    said = read_json(file) if file.is_file() else {}
    if said.get("fps") is None or not _same(said["fps"], fps):
        write_json(file, {**said, "fps": fps})


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME)
