"""The tabletop as a user of gymnasium meets it, and what its variations promise."""

import dataclasses
import os
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from testbed.rotation import rotation_matrix, rotation_vector
from testbed.tabletop import ACTION_NAMES, CAMERAS, Tabletop
from testbed.tasks import PRETRAINING, TARGETS, TASKS, UNSEEN
from testbed.variation import TestbedError, Variation


@pytest.fixture(scope="module")
def env():
    env = Tabletop()
    yield env
    env.close()


def test_gymnasium_accepts_the_environment():
    check_env(gymnasium.make("robosteer/Tabletop-v0", task="put").unwrapped, skip_render_check=True)


def test_every_task_of_the_issue_exists():
    assert set(TASKS) == {*PRETRAINING, *TARGETS, *UNSEEN}


def test_the_same_seed_gives_the_same_episode_to_the_bit(env):
    def play(seed):
        observation, _ = env.reset(seed=seed, options={"task": "put"})
        for i in range(6):
            observation, *_ = env.step(np.array([0.02, 0.01 * i, -0.03, 0, 0, 0.05, -1]))
        return observation

    first, again, other = play(3), play(3), play(4)
    assert np.array_equal(first["state"], again["state"])
    assert all(np.array_equal(first["images"][c], again["images"][c]) for c in CAMERAS)
    assert not np.array_equal(first["images"]["front"], other["images"]["front"])


def test_an_action_moves_the_hand_by_what_it_says(env):
    env.reset(seed=0, options={"task": "pick", "variation": {"robot_start": 0.0}})
    before = env.state()
    for _ in range(5):
        env.advance(np.array([0.01, 0.02, -0.01, 0, 0, 0.05, 1]))
    for _ in range(5):
        env.advance(np.zeros(7))  # let the controller settle
    moved = env.state() - before
    # 3 mm and 0.02 rad: what the position controller lags under gravity-free load, measured at rest
    assert np.allclose(moved[:3], [0.05, 0.10, -0.05], atol=3e-3)
    assert moved[5] == pytest.approx(0.25, abs=0.02)


def test_rotation_vectors_and_matrices_are_inverse():
    vector = np.array([0.3, -0.2, 0.5])
    assert np.allclose(rotation_vector(rotation_matrix(vector)), vector)


def test_the_arm_is_a_panda():
    """Flange pose of the MJCF against Franka's published modified DH parameters, computed here."""
    env = Tabletop()
    env.reset(seed=0)
    model, data = env.world.model, env.world.data
    alpha = [0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2, 0]
    a = [0, 0, 0, 0.0825, -0.0825, 0, 0.088, 0]
    d = [0.333, 0, 0.316, 0, 0.384, 0, 0, 0.107]
    joints = np.array([0.3, -0.5, 0.2, -2.0, 0.4, 1.8, 0.6])
    data.qpos[:7] = joints
    mujoco.mj_kinematics(model, data)
    pose = np.eye(4)
    for al, ai, di, theta in zip(alpha, a, d, [*joints, 0.0], strict=True):
        ca, sa, ct, st = np.cos(al), np.sin(al), np.cos(theta), np.sin(theta)
        pose = pose @ np.array(
            [
                [ct, -st, 0, ai],
                [st * ca, ct * ca, -sa, -di * sa],
                [st * sa, ct * sa, ca, di * ca],
                [0, 0, 0, 1],
            ]
        )
    assert np.allclose(data.xpos[model.body("flange").id], pose[:3, 3], atol=1e-6)
    env.close()


def test_a_repainted_twin_differs_in_the_target_alone(env):
    env.reset(seed=5, options={"task": "pick", "variation": {"target_colour": "red"}})
    same, twin = env.twin({"target_colour": "red"}), env.twin({"target_colour": "red", "repaint": "blue"})
    here = env.observe()["images"]["front"]
    assert np.array_equal(same["images"]["front"], here)
    changed = (twin["images"]["front"] != here).any(-1)
    geoms = env.world.render("front", env.image_size, segmentation=True)[..., 0]
    body = env.world.model.body(env.layout.target).id
    target = np.isin(
        geoms, [g for g in range(env.world.model.ngeom) if env.world.model.geom_bodyid[g] == body]
    )
    assert target.any()
    assert np.array_equal(changed, target)
    assert np.array_equal(twin["state"], env.state())


@pytest.mark.parametrize(
    "variation",
    [
        {"light": 0.5},
        {"table": (0.1, 0.3, 0.1)},
        {"form": "swapped"},
        {"form": "taller"},
        {"distractors": 2},
        {"camera_offset": (0.0, 0.2, 0.0)},
        {"gripper_offset": (0.0, 0.0, 0.02)},
    ],
    ids=lambda v: next(iter(v)),
)
def test_every_variation_shows_in_a_twin_of_the_same_state(env, variation):
    env.reset(seed=6, options={"task": "put"})
    before = env.world.data.qpos.copy()
    twin = env.twin(variation)
    assert (twin["images"]["front"] != env.observe()["images"]["front"]).any()
    assert np.array_equal(env.world.data.qpos, before), "looking at a twin must not touch the episode"


def test_variations_leave_alone_what_they_do_not_speak_of(env):
    env.reset(seed=7, options={"task": "put"})
    plain = env.layout
    env.reset(
        seed=7, options={"task": "put", "variation": {"light": 0.4, "distractors": 3, "robot_start": 0.1}}
    )
    varied = env.layout
    assert varied.instruction == plain.instruction
    assert varied.target == plain.target
    assert all(np.array_equal(varied.position[b], plain.position[b]) for b in plain.position)
    assert not np.array_equal(varied.joints, plain.joints)


def test_a_knob_that_is_named_wins_over_the_tasks_own_look_also_with_its_standard_value(env):
    def reset(**knobs):
        env.reset(seed=3, options={"task": "pick-cube", "variation": knobs})
        return env.layout.variation

    own = TASKS["pick-cube"].look
    assert reset() == own
    assert own.light == 0.95
    assert reset(light=1.0) == dataclasses.replace(own, light=1.0)
    asked, own_light = (shown["images"]["front"].mean() for shown in (env.observe(), env.twin({})))
    assert asked > own_light
    assert reset(table=None) == own, "None keeps the task's own"
    assert reset(distractors=1) == dataclasses.replace(own, distractors=1)
    # an object says all knobs: that some are standard is no wish
    env.reset(seed=3, options={"variation": Variation(form="taller")})
    assert env.layout.variation == dataclasses.replace(own, form="taller")


def test_pose_knobs_move_the_region(env):
    spots = {}
    for name, variation in {
        "plain": {},
        "shifted": {"pose_shift": (0.0, 0.05)},
        "small": {"pose_scale": 0.9},
    }.items():
        layouts = []
        for seed in range(40):
            env.reset(seed=seed, options={"task": "pick-cube", "variation": variation})
            layouts += list(env.layout.position.values())
        spots[name] = np.array(layouts)
    assert (spots["shifted"] - spots["plain"]).mean(0)[1] == pytest.approx(0.05, abs=0.02)
    assert np.ptp(spots["small"], 0)[1] < np.ptp(spots["plain"], 0)[1]


def test_paraphrases_and_given_instructions(env):
    for index in range(4):
        observation, _ = env.reset(seed=1, options={"task": "pick", "paraphrase": index})
        assert env.layout.colour in observation["instruction"]
    observation, _ = env.reset(seed=1, options={"task": "pick", "instruction": ""})
    assert observation["instruction"] == ""


def test_the_controls_take_away_one_input_each(env):
    seen, _ = env.reset(seed=2)
    for option in ("blind", "mute"):
        deprived = Tabletop(**{option: True})
        observation, _ = deprived.reset(seed=2)
        same_image = np.array_equal(observation["images"]["front"], seen["images"]["front"])
        assert same_image == (option == "mute")
        assert (observation["instruction"] == "") == (option == "mute")
        assert np.array_equal(observation["state"], seen["state"])
        deprived.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "fly"}, "task 'fly'"),
        ({"variation": {"lihgt": 1}}, "lihgt"),
        ({"variation": {"light": 0}}, "light 0"),
        ({"variation": {"distractors": 9}}, "0 to 3"),
        ({"variation": {"target_colour": "mauve"}}, "mauve"),
        ({"variation": {"form": "round"}}, "standard, swapped, taller"),
        ({"variation": {"form": {"a": 1}}}, "standard, swapped, taller"),
        ({"variation": {"repaint": ["red"]}}, "use one of red"),
        ({"variation": {"light": "abc"}}, "light 'abc': must be a finite number"),
        ({"variation": {"light": True}}, "light True: must be a finite number"),
        ({"variation": {"robot_start": float("nan")}}, "robot_start nan: must be a finite number"),
        ({"variation": {"gripper_offset": 0.01}}, "gripper_offset 0.01: must be 3 finite numbers"),
        ({"variation": {"camera_offset": [0, 0]}}, r"camera_offset \(0, 0\): must be 3 finite numbers"),
        ({"variation": {"camera_offset": [0, 0, float("inf")]}}, "must be 3 finite numbers"),
        ({"variation": {"pose_shift": [0, "x"]}}, "must be 2 finite numbers"),
        ({"variation": {"table": "red"}}, "table 'red': must be 3 finite numbers"),
        ({"variation": {"table": [0, 0, 255]}}, "red, green and blue from 0 to 1"),
        ({"variation": {"distractors": 1.5}}, "distractors 1.5: must be 0 to 3, a whole number"),
        ({"variation": {"distractors": 1.0}}, "a whole number"),
        ({"variation": {"light_direction": [0, 0, 0]}}, "must point somewhere"),
        ({"variation": {"camera_fovy": 0}}, "between 0 and 180 degrees"),
        ({"colour": "red"}, "reset option 'colour'"),
        ({"paraphrase": 9}, "paraphrase 9"),
    ],
)
def test_bad_requests_name_the_value_and_the_rule(env, options, said):
    with pytest.raises(TestbedError, match=said):
        env.reset(seed=0, options={"task": "pick", **options})


def test_an_action_of_the_wrong_shape_is_refused(env):
    env.reset(seed=0)
    with pytest.raises(TestbedError, match="7 finite"):
        env.step(np.zeros(6))
    with pytest.raises(TestbedError, match="7 finite"):
        env.step(np.full(len(ACTION_NAMES), np.nan))


def test_a_missing_gl_library_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(TestbedError, match="apt-get install libosmesa6"):
        Tabletop()


def test_mujoco_imported_too_early_is_one_clear_line():
    code = "import mujoco\nfrom testbed.tabletop import Tabletop\nTabletop()"
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "import testbed first" in done.stderr.splitlines()[-1]


def test_variation_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Variation().light = 2.0  # type: ignore[misc]
