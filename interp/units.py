"""Whether demonstrations speak of actions in the units that a policy was trained in.

Degrees for radians, another robot's joints, positions for velocities or for deltas: all fit the network's dimensions,
all train without an error, and the robot moves wrongly. What gives them away is the policy's own statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from interp.demos import Demonstrations
from interp.policies.protocol import Policy

FAR = 5.0
"""Standard deviations: of what a policy was trained on, half lies within 0.7."""


def unlike_training(policy: Policy, demos: Demonstrations) -> Iterator[str]:
    """A line for every action dimension of which half the demonstrated values lie farther than `FAR` standard
    deviations from the mean of what the policy was trained on."""
    device = next(policy.module.parameters()).device
    actions, state = (torch.from_numpy(each).float().to(device) for each in (demos.action, demos.state))
    normalised = policy.normalise_actions(actions, state).abs().cpu().double().numpy()
    for dim, distance in enumerate(np.median(normalised, axis=0)):
        if distance > FAR:
            low, middle, high = np.percentile(demos.action[:, dim], (5, 50, 95))
            yield (
                f"action {policy.spec.action_names[dim]} ({low:.3g} to {high:.3g}, median {middle:.3g}) lies "
                f"{distance:.3g} standard deviations from what the policy was trained on: other units, another robot, "
                "or a policy that acts in deltas (docs/pi0.md)?"
            )


def warn_if_unlike_training(policy: Policy, demos: Demonstrations) -> None:
    """One warning for all dimensions."""
    found = list(unlike_training(policy, demos))
    if found:
        others = f" ({len(found)} dimensions do)" if len(found) > 1 else ""
        warnings.warn(f"{found[0]}{others}", stacklevel=3)
