"""Choose and check MuJoCo's off-screen renderer before MuJoCo is imported."""

from __future__ import annotations

import ctypes.util
import os

from testbed.variation import TestbedError

LIBRARIES = {"osmesa": "OSMesa", "egl": "EGL"}


def choose_gl() -> None:
    """Set MUJOCO_GL (and PyOpenGL's platform) to OSMesa or EGL, unless the user already chose."""
    backend = os.environ.get("MUJOCO_GL")
    if not backend:
        backend = next((b for b, lib in LIBRARIES.items() if ctypes.util.find_library(lib)), "osmesa")
        os.environ["MUJOCO_GL"] = backend
    if backend in LIBRARIES:
        os.environ.setdefault("PYOPENGL_PLATFORM", backend)


def require_gl() -> None:
    """Raise one clear line if the chosen library is not on this machine."""
    backend = os.environ.get("MUJOCO_GL", "")
    library = LIBRARIES.get(backend)
    if library and ctypes.util.find_library(library) is None:
        raise TestbedError(
            f"MUJOCO_GL={backend}: lib{library} is not installed; "
            "install it with `apt-get install libosmesa6` (or libegl1 and MUJOCO_GL=egl)"
        )
    from mujoco import gl_context

    if library and backend not in gl_context.GLContext.__module__:
        raise TestbedError(
            f"MUJOCO_GL={backend} came too late: mujoco was imported before testbed; import testbed first or set it"
        )
