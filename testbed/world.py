"""A compiled scene with its state and its renderers: where a layout becomes poses, colours, lights and pixels."""

from __future__ import annotations

import atexit
import dataclasses
import weakref
from dataclasses import dataclass

import mujoco
import numpy as np

from testbed import scene
from testbed.layout import Layout
from testbed.scene import SceneSpec, kind_of
from testbed.variation import COLOURS

_open_worlds: weakref.WeakSet[World] = weakref.WeakSet()


@atexit.register
def _close_worlds() -> None:
    """MuJoCo's renderers complain when the interpreter frees them too late."""
    for world in list(_open_worlds):
        world.close()


@dataclass(eq=False)
class World:
    """A compiled scene with its state and its renderers, kept for the next episode that needs the same scene."""

    model: mujoco.MjModel
    data: mujoco.MjData
    scratch: mujoco.MjData
    renderers: dict[tuple[int, bool], mujoco.Renderer] = dataclasses.field(default_factory=dict)
    """By image size and whether it segments: a film for people is larger than what the policy sees."""

    @classmethod
    def compile(cls, spec: SceneSpec) -> World:
        model = scene.compile_scene(spec)
        world = cls(model, mujoco.MjData(model), mujoco.MjData(model))
        _open_worlds.add(world)
        return world

    def render(self, camera: str, size: int, segmentation: bool = False) -> np.ndarray:
        renderer = self.renderers.get((size, segmentation))
        if renderer is None:
            renderer = self.renderers[size, segmentation] = mujoco.Renderer(self.model, size, size)
            if segmentation:
                renderer.enable_segmentation_rendering()
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        renderer.update_scene(self.data, camera)
        return renderer.render()

    def close(self) -> None:
        for renderer in self.renderers.values():
            renderer.close()
        self.renderers.clear()

    def place(self, layout: Layout) -> None:
        """Reset the state and set bodies, colours, lights and the front camera as the layout says."""
        model, data, variation = self.model, self.data, layout.variation
        mujoco.mj_resetData(model, data)
        data.qpos[:7], data.qpos[7:9] = layout.joints, 0.04
        data.ctrl[:7], data.ctrl[7:] = layout.joints, 0.04
        for body in layout.spec.objects:
            x, y = layout.position[body]
            if kind_of(body) in ("bowl", "button"):
                data.mocap_pos[model.body(body).mocapid[0]] = [x, y, 0]
            else:
                address, half = model.joint(body).qposadr[0], layout.yaw[body] / 2
                data.qpos[address : address + 7] = [x, y, 0.0005, np.cos(half), 0, 0, np.sin(half)]
            self.paint(body, COLOURS[layout.colours[body]])
        if variation.repaint is not None:
            self.paint(layout.target, COLOURS[variation.repaint])
        model.geom("table").rgba[:3] = variation.table or scene.TABLE
        model.vis.headlight.ambient[:] = 0.45 * variation.light
        model.vis.headlight.diffuse[:] = 0.35 * variation.light
        model.light_diffuse[0] = 0.45 * variation.light
        direction = np.array(variation.light_direction)
        model.light_dir[0] = direction / np.linalg.norm(direction)
        camera = model.camera("front")
        camera.pos[:] = scene.FRONT_CAMERA + variation.camera_offset
        camera.quat[:] = scene.aim_camera(camera.pos, scene.FRONT_AIM)
        camera.fovy[:] = variation.camera_fovy or scene.FRONT_FOVY
        mujoco.mj_forward(model, data)

    def paint(self, body: str, rgb: tuple[float, float, float]) -> None:
        model = self.model
        name = f"{body}_cap" if kind_of(body) == "button" else body
        first, count = model.body(name).geomadr[0], model.body(name).geomnum[0]
        painted = slice(
            first, first + (1 if kind_of(body) == "marker" else count)
        )  # a marker keeps its dark cap
        model.geom_rgba[painted, :3] = rgb
