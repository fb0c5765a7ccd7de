"""The MuJoCo world: a Franka Panda from primitives on a table, and the objects of a task.

World frame: x away from the robot's base, y to its left, z up; the table top is z = 0. Lengths in metres. The arm's
kinematics and inertias follow Franka's published DH parameters; geometry is primitive so that no mesh is needed.
The hand's nominal tool centre point is the site `tcp` (what the controller believes), the true one is `grip`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

HOME = np.array([0.0, 0.0, 0.0, -2.30, 0.0, 2.30, math.pi / 4])
"""Start joint angles, hand pointing straight down."""

FRONT_CAMERA, FRONT_AIM, FRONT_FOVY = np.array([1.05, 0.0, 0.52]), np.array([0.49, 0.0, 0.07]), 41.0
TABLE = (0.62, 0.52, 0.42)
TIMESTEP = 0.004


@dataclass(frozen=True)
class Shape:
    """Size of a graspable object: half-width or radius, full height, and whether it is round."""

    half_width: float
    height: float
    round: bool
    mass: float
    friction: float = 1.0

    def formed(self, form: str) -> Shape:
        if form == "swapped":
            return Shape(self.half_width, self.height, not self.round, self.mass, self.friction)
        if form == "taller":
            return Shape(self.half_width, 1.25 * self.height, self.round, self.mass, self.friction)
        return self


SHAPES = {
    "cube": Shape(0.020, 0.040, False, 0.05),
    "marker": Shape(0.018, 0.045, False, 0.05),
    "cup": Shape(0.030, 0.060, True, 0.06, friction=0.5),
    "mug": Shape(0.033, 0.070, True, 0.25),
    "button": Shape(0.026, 0.018, True, 0.02),
}
CLEARANCE = {"bowl": 0.085, "cube": 0.062, "button": 0.055, "marker": 0.058, "cup": 0.075, "mug": 0.085}
"""Radius around an object's centre that other objects keep free: its size and room for the open fingers."""

BOWL_RADIUS, MUG_WALL = 0.062, 0.005
BUTTON_TRAVEL = 0.012


@dataclass(frozen=True)
class SceneSpec:
    """All that must be known when the model is compiled; everything else is set on the running model."""

    objects: tuple[str, ...]
    """Body names, kind plus number: `cube0`, `cube1`, `bowl`, `button0`, `marker0`."""
    form_of: tuple[tuple[str, str], ...] = ()
    """(body, form) of bodies that are not of standard form."""
    gripper_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    button_stiffness: float = 120.0
    shapes: tuple[tuple[str, Shape], ...] = ()
    """(kind, shape) of kinds that are not as in `SHAPES`."""

    def shape(self, body: str) -> Shape:
        shape = dict(self.shapes).get(kind_of(body), SHAPES[kind_of(body)])
        return shape.formed(dict(self.form_of).get(body, "standard"))


def kind_of(body: str) -> str:
    """`cube1` -> `cube`."""
    return body.rstrip("0123456789")


def _ring(radius: float, height: float, wall: float, sides: int) -> str:
    """Upright walls of a vessel as a ring of thin boxes; `radius` is that of their middle line."""
    half_length = radius * math.tan(math.pi / sides) + wall / 2
    parts = []
    for i in range(sides):
        a = 2 * math.pi * i / sides
        parts.append(
            f'<geom type="box" size="{wall / 2} {half_length:.5f} {height / 2}" euler="0 0 {a:.5f}" '
            f'pos="{radius * math.cos(a):.5f} {radius * math.sin(a):.5f} {height / 2}"/>'
        )
    return "".join(parts)


def _object_xml(body: str, spec: SceneSpec) -> str:
    kind = kind_of(body)
    if kind == "bowl":
        floor = f'<geom type="cylinder" size="{BOWL_RADIUS + 0.004} .003" pos="0 0 .003"/>'
        return f'<body name="{body}" mocap="true" childclass="paint">{floor}{_ring(BOWL_RADIUS, 0.035, 0.008, 12)}</body>'
    shape = spec.shape(body)
    r, h = shape.half_width, shape.height
    if kind == "button":
        cap = f'type="cylinder" size="{r} {h / 2}"' if shape.round else f'type="box" size="{r} {r} {h / 2}"'
        return (
            f'<body name="{body}" mocap="true"><geom type="cylinder" size=".036 .008" pos="0 0 .008" rgba=".16 .16 .18 1"/>'
            f'<body name="{body}_cap" pos="0 0 {0.013 + h / 2}" childclass="paint">'
            f'<joint name="{body}" type="slide" axis="0 0 -1" range="0 {BUTTON_TRAVEL}" limited="true" '
            f'stiffness="{spec.button_stiffness}" damping="4" armature=".02"/><geom {cap} mass="{shape.mass}"/></body></body>'
        )
    if kind == "mug":
        side = 16 if shape.round else 4
        wall = _ring(r - MUG_WALL / 2, h, MUG_WALL, side)
        handle = f'<geom type="box" size=".012 .004 .018" pos="{r + 0.010:.4f} 0 {h / 2}"/>'
        floor = f'<geom type="cylinder" size="{r - MUG_WALL:.4f} .003" pos="0 0 .003"/>'
        # Fingers would sink through thin walls: for them alone the mug is solid (contact bit 2), so they cannot enter it.
        outside = (
            f'type="cylinder" size="{r} {h / 2}"' if shape.round else f'type="box" size="{r} {r} {h / 2}"'
        )
        solid = f'<geom {outside} pos="0 0 {h / 2}" contype="2" conaffinity="0" rgba="0 0 0 0" condim="4" mass="0"/>'
        inertia = f'<inertial pos="0 0 {h / 2}" mass="{shape.mass}" diaginertia=".0003 .0003 .0003"/>'
        inner = inertia + wall + handle + floor + solid
    else:
        dims = f'type="cylinder" size="{r} {h / 2}"' if shape.round else f'type="box" size="{r} {r} {h / 2}"'
        mu = shape.friction
        inner = f'<geom {dims} pos="0 0 {h / 2}" mass="{shape.mass}" condim="4" friction="{mu} .01 .0001"/>'
        if kind == "marker":  # a dark cap on top, so that a camera can tell it from a slim cube
            inner += f'<geom type="cylinder" size="{r * 0.8:.4f} .006" pos="0 0 {h - 0.004}" mass=".001" contype="0" conaffinity="0" rgba=".1 .1 .1 1"/>'
    return f'<body name="{body}" childclass="paint"><freejoint name="{body}"/>{inner}</body>'


def _arm_xml(gripper_offset: tuple[float, float, float]) -> str:
    ox, oy, oz = gripper_offset
    finger = '<geom class="touch" type="box" size=".0105 .0075 .027" pos="0 {y} .027" mass=".015" rgba=".05 .05 .05 1" condim="4" friction="1.5 .02 .0001"/>'
    return f"""
<body name="link0" childclass="link"><geom type="cylinder" size=".07 .07" pos="-.02 0 .07"/>
<body name="link1" pos="0 0 .333" gravcomp="1"><joint name="joint1" axis="0 0 1" range="-2.8973 2.8973" damping="1" armature=".1"/>
 <inertial mass="4.97" pos=".004 .002 -.048" diaginertia=".0703 .0707 .0091"/><geom type="capsule" size=".06" fromto="0 0 -.2 0 0 0"/>
<body name="link2" euler="-1.5707963 0 0" gravcomp="1"><joint name="joint2" axis="0 0 1" range="-1.7628 1.7628" damping="1" armature=".1"/>
 <inertial mass=".647" pos="-.003 -.029 .003" diaginertia=".008 .0281 .026"/><geom class="dark" type="capsule" size=".06" fromto="0 0 -.04 0 0 .04"/>
<body name="link3" pos="0 -.316 0" euler="1.5707963 0 0" gravcomp="1"><joint name="joint3" axis="0 0 1" range="-2.8973 2.8973" damping="1" armature=".1"/>
 <inertial mass="3.23" pos=".0275 .039 -.0665" diaginertia=".0372 .0362 .0108"/><geom type="capsule" size=".055" fromto="0 0 -.26 0 0 -.03"/>
<body name="link4" pos=".0825 0 0" euler="1.5707963 0 0" gravcomp="1"><joint name="joint4" axis="0 0 1" range="-3.0718 -.0698" damping="1" armature=".1"/>
 <inertial mass="3.59" pos="-.053 .104 .027" diaginertia=".0259 .0196 .0283"/><geom class="dark" type="capsule" size=".055" fromto="0 0 -.035 0 0 .035"/>
 <geom type="capsule" size=".05" fromto="-.0825 .06 0 -.0825 .30 0"/>
<body name="link5" pos="-.0825 .384 0" euler="-1.5707963 0 0" gravcomp="1"><joint name="joint5" axis="0 0 1" range="-2.8973 2.8973" damping="1" armature=".1"/>
 <inertial mass="1.226" pos="-.012 .041 -.0384" diaginertia=".0355 .0295 .0086"/><geom type="capsule" size=".045" fromto="0 .06 -.16 0 .07 -.03"/>
<body name="link6" euler="1.5707963 0 0" gravcomp="1"><joint name="joint6" axis="0 0 1" range="-.0175 3.7525" damping="1" armature=".1"/>
 <inertial mass="1.667" pos=".06 -.014 -.0105" diaginertia=".002 .0044 .0054"/><geom class="dark" type="capsule" size=".045" fromto="0 0 -.03 0 0 .03"/>
 <geom type="capsule" size=".042" fromto=".03 0 0 .088 0 0"/>
<body name="link7" pos=".088 0 0" euler="1.5707963 0 0" gravcomp="1"><joint name="joint7" axis="0 0 1" range="-2.8973 2.8973" damping="1" armature=".1"/>
 <inertial mass=".736" pos=".0105 -.004 .0616" diaginertia=".0125 .01 .0048"/><geom type="cylinder" size=".042 .05" pos="0 0 .055"/>
 <body name="flange" pos="0 0 .107" euler="0 0 -.7853982"><site name="tcp" pos="0 0 .1034" rgba="0 0 0 0"/>
 <body name="hand" pos="{ox} {oy} {oz}" gravcomp="1"><inertial mass=".73" pos="-.01 0 .03" diaginertia=".001 .0025 .0017"/>
  <geom class="touch" name="palm" type="box" size=".024 .075 .033" pos="0 0 .033" rgba=".95 .95 .95 1"/><site name="grip" pos="0 0 .1034" rgba="0 0 0 0"/>
  <camera name="wrist" pos=".075 0 .045" euler="3.1415927 .42 1.5707963" fovy="80"/>
  <body name="left_finger" pos="0 0 .0584" gravcomp="1"><joint name="finger1" type="slide" axis="0 1 0" range="0 .04" damping="10" armature=".1"/>{finger.format(y=".0075")}</body>
  <body name="right_finger" pos="0 0 .0584" gravcomp="1"><joint name="finger2" type="slide" axis="0 -1 0" range="0 .04" damping="10" armature=".1"/>{finger.format(y="-.0075")}</body>
 </body></body></body></body></body></body></body></body></body></body>"""


def _actuators_xml() -> str:
    gains = [(4500, 135, 87)] * 2 + [(3500, 105, 87)] * 2 + [(2000, 60, 12)] * 3
    arm = "".join(
        f'<position name="motor{i + 1}" joint="joint{i + 1}" kp="{kp}" kv="{kv}" forcerange="-{f} {f}"/>'
        for i, (kp, kv, f) in enumerate(gains)
    )
    finger = 'kp="800" kv="20" forcerange="-15 15" ctrlrange="0 .04"'
    return (
        arm
        + f'<position name="grip1" joint="finger1" {finger}/><position name="grip2" joint="finger2" {finger}/>'
    )


def scene_xml(spec: SceneSpec) -> str:
    """The MJCF text of a scene."""
    objects = "".join(_object_xml(b, spec) for b in spec.objects)
    return f"""<mujoco model="tabletop">
<compiler angle="radian" autolimits="true"/>
<option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
<visual><global offwidth="640" offheight="640"/><quality shadowsize="0" offsamples="0" numslices="12" numstacks="8" numquads="1"/>
 <headlight ambient=".45 .45 .45" diffuse=".35 .35 .35" specular="0 0 0"/><map znear=".02" zfar="20"/></visual>
<default>
 <default class="link"><geom contype="0" conaffinity="0" rgba=".92 .92 .92 1" group="2"/>
  <default class="dark"><geom rgba=".2 .2 .22 1"/></default><default class="touch"><geom contype="1" conaffinity="3"/></default></default>
 <default class="paint"><geom rgba=".93 .93 .95 1"/></default>
</default>
<worldbody>
 <light name="lamp" directional="true" pos="0 0 2" dir="-.3 .2 -1" diffuse=".45 .45 .45" specular="0 0 0" castshadow="false"/>
 <geom name="table" type="box" size=".5 .6 .02" pos=".4 0 -.02" friction=".6 .005 .0001"/>
 <geom name="floor" type="plane" size="3 3 1" pos="0 0 -.4" rgba=".35 .38 .42 1"/>
 <camera name="front" pos="1.05 0 .52" fovy="{FRONT_FOVY}"/>
 {_arm_xml(spec.gripper_offset)}{objects}
</worldbody>
<contact><exclude body1="left_finger" body2="right_finger"/><exclude body1="hand" body2="left_finger"/><exclude body1="hand" body2="right_finger"/></contact>
<equality><joint joint1="finger1" joint2="finger2" solref=".005 1" solimp=".95 .99 .001"/></equality>
<actuator>{_actuators_xml()}</actuator>
</mujoco>"""


def compile_scene(spec: SceneSpec) -> mujoco.MjModel:
    """Compile a scene; colours, lights and the front camera are then set on the returned model."""
    return mujoco.MjModel.from_xml_string(scene_xml(spec))


def aim_camera(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Quaternion (w, x, y, z) of a camera at `position` that looks at `target` with z up."""
    back = (position - target) / np.linalg.norm(position - target)  # a MuJoCo camera looks along its -z
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], axis=1).ravel())
    return quaternion
