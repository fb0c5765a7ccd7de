"""Whether demonstrations, and robots, speak in the units that a policy was trained in.

Degrees for radians, another robot's joints, positions for velocities or for deltas: all fit the network's dimensions,
all train without an error, and the robot moves wrongly. What gives them away is the policy's own statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from interp.demos import Demonstrations
from interp.policies.protocol import Policy

FAR = 5.0
"""Standard deviations: of what a policy was trained on, half lies within 0.7."""


FAR_STATE = 10.0
"""Standard deviations: farther lies at most one in a hundred of what a policy was trained on, whatever its distribution
(Chebyshev's inequality). Where a policy normalises by extremes nothing of it does; by quantiles, the unit is half the
range between them, more than two standard deviations of a bell curve, and the limit the more lenient."""


@dataclass(frozen=True)
class FarState:
    """A number of a robot's state that is far from what a policy was trained on."""

    name: str
    value: float
    """In the robot's units."""
    distance: float
    """From the middle of training, signed, in the policy's units (`Policy.normalise_state`)."""

    def __str__(self) -> str:
        return (
            f"state {self.name} is {self.value:.6g}, {abs(self.distance):.3g} standard deviations (or half ranges, "
            "by what the policy normalises) from what it was trained on: other units, or another robot?"
        )


def far_from_training(policy: Policy, state: Float[np.ndarray, " state"]) -> list[FarState]:
    """The dimensions of a state, in the robot's units, that lie farther than `FAR_STATE`, farthest first. None where
    the policy has no statistics: what reaches the network is then the state itself."""
    device = next(policy.module.parameters()).device
    raw = torch.from_numpy(state).float().to(device)[None]
    seen = policy.normalise_state(raw)
    if torch.equal(seen, raw):
        return []
    distances = seen[0].cpu().tolist()
    found = (
        FarState(name, float(value), distance)
        for name, value, distance in zip(policy.spec.state_names, state, distances, strict=True)
        if abs(distance) > FAR_STATE
    )
    return sorted(found, key=lambda each: -abs(each.distance))


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
