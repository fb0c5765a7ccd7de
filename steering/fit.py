"""Does a policy fit an environment: which image is which of its cameras, and do state and action have its size?

Told before the first episode, by the policy's spec and the environment's spaces. What an environment does not declare
is not checked. A camera sees the image of its own name; else, if its name says wrist or hand, the one image whose name
does too; else the one whose name does not. Where names do not tell, the user says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

from interp.errors import UsageError, unknown
from interp.policies import Observation, PolicySpec


def fit(env: gymnasium.Env[Any, Any], spec: PolicySpec, given: Mapping[str, str]) -> Mapping[str, str]:
    """The environment's image for each camera of the policy; a UsageError if the two do not go together."""
    declared = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {}
    _same_size("action", env.action_space, spec.action_dim)
    _same_size("state", declared.get("state"), spec.state_dim)
    for camera in given:
        if camera not in spec.cameras:
            raise unknown("camera of the policy", camera, spec.cameras)
    images = declared.get("images")
    if not isinstance(images, spaces.Dict):
        return {camera: given.get(camera, camera) for camera in spec.cameras}
    names = list(images.spaces)
    seen = {camera: given.get(camera) or _by_name(camera, names) for camera in spec.cameras}
    for camera, image in seen.items():
        if image not in names:
            raise unknown("image of the environment", image, names)
        if list(seen.values()).count(image) > 1 and camera not in given:
            raise UsageError(
                f"camera {camera} of the policy: which of the environment's images ({', '.join(names)}) it sees, "
                f"its name does not tell; say --camera {camera}=IMAGE"
            )
    return seen


def seen_by(observation: Mapping[str, Any], cameras: Mapping[str, str] | None) -> Observation:
    """The observation with the policy's names for the environment's images; None leaves them as they are."""
    if cameras is None:
        return Observation(**observation)
    images = {camera: observation["images"][image] for camera, image in cameras.items()}
    return Observation(images, observation["state"], observation["instruction"])


def is_wrist(camera: str) -> bool:
    """Cameras on the hand, by what people call them."""
    return any(word in camera for word in ("wrist", "hand"))


def _by_name(camera: str, images: list[str]) -> str:
    if camera in images:
        return camera
    alike = [image for image in images if is_wrist(image) == is_wrist(camera)]
    if len(alike) != 1:
        raise UsageError(
            f"camera {camera} of the policy is none of the environment's ({', '.join(images)}), and its name does "
            f"not tell which; say --camera {camera}=IMAGE"
        )
    return alike[0]


def _same_size(what: str, space: spaces.Space[Any] | None, needed: int) -> None:
    if isinstance(space, spaces.Box) and space.shape != (needed,):
        size = " x ".join(map(str, space.shape))
        raise UsageError(
            f"the environment's {what} has {size} numbers, the policy's {needed}: "
            "this policy was made for another robot or controller"
        )
