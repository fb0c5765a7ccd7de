"""Whether what is computed here is what LeRobot computes: asked of every policy when it is loaded.

Layers are driven one by one here, in another order than LeRobot's own, and LeRobot changes from version to version. A
version that computes something else is refused.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from interp.errors import UsageError
from interp.policies.precision import in_float32
from interp.policies.protocol import Observation

if TYPE_CHECKING:
    from interp.policies.lerobot.policy import LeRobotPolicy

LIMIT = 1e-4
"""Largest difference from LeRobot's own chunk, relative to the largest action, in float32."""


def check_parity(policy: "LeRobotPolicy") -> None:
    """On one observation, LeRobot's own chunk."""
    difference = _difference(policy)
    if not difference <= LIMIT:
        raise UsageError(
            f"policy {policy.source}: LeRobot's own chunk differs from the one computed here by {difference:.1e} "
            f"(at most {LIMIT:.0e}): this version of LeRobot computes {policy.module.config.type} differently, or "
            "the weights are broken"
        )


def _difference(policy: "LeRobotPolicy") -> float:
    """Relative to the largest action, or to 1. In bfloat16, rounding alone may be 6e-2."""
    try:
        return _difference_here(policy)
    except torch.OutOfMemoryError:  # of a GPU that has room for the weights as they are stored
        device = next(policy.module.parameters()).device
        policy.module.to("cpu")
        try:
            return _difference_here(policy)
        finally:
            policy.module.to(device)


def _difference_here(policy: "LeRobotPolicy") -> float:
    spec = policy.spec
    image = np.random.default_rng(0).integers(0, 256, (spec.image_size, spec.image_size, 3), np.uint8)
    seen = Observation(dict.fromkeys(spec.cameras, image), np.zeros(spec.state_dim), "")
    with in_float32(policy), torch.no_grad():
        noise, theirs = policy.lerobots(seen, seed=0)
        ours = policy.denoise(policy.batch([seen]), noise)[..., : spec.action_dim]
    policy.module.eval()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
