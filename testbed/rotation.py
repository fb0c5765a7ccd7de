"""Rotations as matrices and as axis times angle."""

from __future__ import annotations

import mujoco
import numpy as np
from jaxtyping import Float


def rotation_vector(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, 3]:
    """Axis times angle [rad] of a rotation matrix."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_matrix(vector: Float[np.ndarray, 3]) -> Float[np.ndarray, "3 3"]:
    """Inverse of `rotation_vector`."""
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, vector / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
