"""Layouts: under which keys a kind of robot sends its observation.

    droid     openpi's DROID client: two cameras, 7 joint positions and 1 gripper position; 8 actions
    libero    openpi's LIBERO client: two cameras, a state of 8; 7 actions
    testbed   an observation of our simulated tabletop, as gymnasium gives it; 7 actions
    FILE.json another robot's: {"outside": key, "wrist": key, "state": {key: numbers, ...}, "prompt": key, "actions": 7}

A layout knows cameras by their role, a policy by its own names; `Reader` brings the two together once, when the
server starts, and refuses a policy that the layout cannot feed. A policy's camera whose name says wrist or hand is
the wrist camera, any other one looks from outside; `cameras` (policy's camera -> key) says it otherwise.

As in openpi's own transforms, images may be floats in [0, 1] or have their channels first, and keys that the
policy does not need are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from interp.errors import UsageError, unknown
from interp.policies import Observation, PolicySpec
from interp.runs import read_json
from steering.fit import is_wrist

LONGEST_PROMPT = 4096


@dataclass(frozen=True)
class Layout:
    """Keys of an observation. A key may lead into maps: `images/front` is `{"images": {"front": ...}}`, unless the
    whole text is a key itself, as openpi's are. `state` parts are joined in order. `actions` is how many numbers the
    robot takes a step; None: any. Robots whose states are equally long often differ in it."""

    name: str
    outside: str
    wrist: str
    state: Mapping[str, int]
    prompt: str = "prompt"
    actions: int | None = None


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "droid",
            outside="observation/exterior_image_1_left",
            wrist="observation/wrist_image_left",
            state={"observation/joint_position": 7, "observation/gripper_position": 1},
            actions=8,
        ),
        Layout(
            "libero",
            outside="observation/image",
            wrist="observation/wrist_image",
            state={"observation/state": 8},
            actions=7,
        ),
        Layout(
            "testbed",
            outside="images/front",
            wrist="images/wrist",
            state={"state": 8},
            prompt="instruction",
            actions=7,
        ),
    )
}


def layout_of(name: str) -> Layout:
    """A layout by its name, or from a JSON file with the fields of `Layout`; `prompt` and `actions` may be missing."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UsageError(f"{unknown('layout', name, LAYOUTS)}; or name a JSON file of your own")
    found = read_json(path)
    keys = {"outside": str, "wrist": str, "state": dict, "prompt": str}
    for key, kind in keys.items():
        if key == "prompt" and key not in found:
            continue
        if not isinstance(found.get(key), kind):
            raise UsageError(
                f"{path}: {key} is {found.get(key)!r}; it must be {'a map' if kind is dict else 'a key'}"
            )
    if wrong := sorted(found.keys() - keys - {"actions"}):
        raise UsageError(f"{path}: {unknown('field of a layout', wrong[0], [*keys, 'actions'])}")
    for part, n in found["state"].items():
        if not isinstance(n, int) or n < 1:
            raise UsageError(f"{path}: state {part} is {n!r}; say how many numbers are under that key")
    actions = found.get("actions", 1)
    if not isinstance(actions, int) or actions < 1:
        raise UsageError(f"{path}: actions is {actions!r}; say how many numbers the robot takes a step")
    return Layout(path.stem, **found)


class Reader:
    """Reads observations in a layout for one policy. `prompt` stands in where a robot sends none."""

    def __init__(
        self,
        layout: str | Layout,
        spec: PolicySpec,
        cameras: Mapping[str, str] | None = None,
        prompt: str | None = None,
    ) -> None:
        layout = layout_of(layout) if isinstance(layout, str) else layout
        self.layout, self.prompt = layout, prompt
        _check_robot(layout, spec)
        for camera in cameras or {}:
            if camera not in spec.cameras:
                raise unknown("camera of the policy", camera, spec.cameras)
        self.cameras = {
            camera: (cameras or {}).get(camera) or _key(layout, camera) for camera in spec.cameras
        }
        twice = [key for key in self.cameras.values() if list(self.cameras.values()).count(key) > 1]
        if twice:
            names = ", ".join(camera for camera, key in self.cameras.items() if key == twice[0])
            first_of = {key: camera for camera, key in reversed(self.cameras.items())}
            raise UsageError(
                f"layout {layout.name} gives {twice[0]} to cameras {names}: name the key of each that the robot has, "
                f"CAMERA=KEY{spec.without_camera(first_of.values())}"
            )

    def __call__(self, message: Mapping[str, Any]) -> Observation:
        """The observation in a client's message; a UsageError names the key that is missing or wrong."""
        images = {camera: _image(key, self._found(message, key)) for camera, key in self.cameras.items()}
        parts = [_vector(key, self._found(message, key), n) for key, n in self.layout.state.items()]
        prompt = _at(message, self.layout.prompt)
        prompt = self.prompt if prompt is None else prompt
        if not isinstance(prompt, str):
            what = "is missing" if prompt is None else f"is a {type(prompt).__name__}"
            raise UsageError(f"{self.layout.prompt} {what}: send the instruction as text")
        if len(prompt) > LONGEST_PROMPT:
            raise UsageError(
                f"{self.layout.prompt} has {len(prompt)} characters: at most {LONGEST_PROMPT} are read"
            )
        return Observation(images, np.concatenate(parts), str(prompt))

    def _found(self, message: Mapping[str, Any], key: str) -> object:
        value = _at(message, key)
        if value is None:
            sent = ", ".join(str(name)[:40] for name in list(message)[:12]) or "nothing"
            raise UsageError(
                f"{key} is missing: layout {self.layout.name} needs it, the observation has {sent}"
            )
        return value


def _check_robot(layout: Layout, spec: PolicySpec) -> None:
    """Refuse a policy of a robot with another state or other actions."""
    sent = sum(layout.state.values())
    parts = ", ".join(f"{key} ({n})" for key, n in layout.state.items())
    fix = "serve a policy of this robot, or choose the --layout of the policy's (docs/serve.md)"
    if sent != spec.state_dim:
        raise UsageError(
            f"layout {layout.name} sends a state of {sent}, {parts}: the policy needs {spec.state_dim} numbers; {fix}"
        )
    if layout.actions not in (None, spec.action_dim):
        raise UsageError(
            f"layout {layout.name} is of a robot that takes {layout.actions} actions: the policy gives "
            f"{spec.action_dim}; {fix}"
        )


def _key(layout: Layout, camera: str) -> str:
    return layout.wrist if is_wrist(camera) else layout.outside


def _at(message: Mapping[str, Any], key: str) -> object:
    if key in message or "/" not in key:
        return message.get(key)
    first, _, rest = key.partition("/")
    inner = message.get(first)
    return _at(inner, rest) if isinstance(inner, Mapping) else None


def _image(key: str, value: object) -> UInt8[np.ndarray, "height width 3"]:
    image = np.asarray(value)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = rearrange(image, "c h w -> h w c")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype.kind not in "uf":
        raise UsageError(f"{key} is {image.dtype} {image.shape}: send uint8 (height, width, 3)")
    if image.dtype.kind == "f":
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise UsageError(f"{key} holds floats outside 0 to 1: send uint8, or floats from 0 to 1")
        image = (image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UsageError(f"{key} is {image.dtype} {image.shape}: send uint8 (height, width, 3)")
    return np.ascontiguousarray(image)


def _vector(key: str, value: object, length: int) -> Float[np.ndarray, " state"]:
    try:
        vector = np.asarray(value, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        vector = np.empty(0, np.float32)
    if len(vector) != length or not np.isfinite(vector).all():
        raise UsageError(f"{key} must be {length} finite number{'s' * (length > 1)}, not {_shown(value)}")
    return vector


def _shown(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
