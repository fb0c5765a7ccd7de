"""The frames that the published code of Robotic Steering (arXiv 2511.22697) ranks heads on: those where the arm is
nearly still or the gripper acts, and the ends.

    DROID    the commanded gripper position changes, or |step of the joints| x 15 Hz < 0.03 rad/s, or first or last
    LIBERO   the gripper action changes its sign, or |step of the end effector's pose| < 0.05, or first or last

A step is the difference to the frame before. Both take the gripper's action to be the last dimension.
"""

import numpy as np
from jaxtyping import Bool, Float

from interp.data.recordings import Recording

DROID_HZ, DROID_STILL = 15, 0.03
LIBERO_STILL = 0.05


def droid(recording: Recording) -> Bool[np.ndarray, " frame"]:
    gripper = recording.action[:, -1]
    speed = _step(recording.state[:, :7]) * DROID_HZ
    return _with_ends((np.diff(gripper) != 0) | (speed < DROID_STILL))


def libero(recording: Recording) -> Bool[np.ndarray, " frame"]:
    gripper = recording.action[:, -1]
    return _with_ends((np.diff(np.sign(gripper)) != 0) | (_step(recording.state[:, :6]) < LIBERO_STILL))


RULES = {"droid": droid, "libero": libero}


def _step(values: Float[np.ndarray, "frame dim"]) -> Float[np.ndarray, " step"]:
    return np.linalg.norm(np.diff(values.astype(np.float64), axis=0), axis=1)


def _with_ends(of_step: Bool[np.ndarray, " step"]) -> Bool[np.ndarray, " frame"]:
    kept = np.concatenate([[True], of_step])
    kept[-1] = True
    return kept
