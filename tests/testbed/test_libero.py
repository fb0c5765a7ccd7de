"""Promises of the LIBERO environment: the benchmark's own observations, physics and verdict, and its variants."""

import gc
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from libero_kit import INSTALLED, BowlCarrier, needs_libero

from steering.rollouts import rollout
from testbed.libero import (
    CAMERAS,
    SETTLE_STEPS,
    STEPS,
    STILL,
    VARIANTS,
    Libero,
    Problem,
    parse,
    quiet,
    seeded,
)
from testbed.variation import TestbedError

SIZE = 64
SHIPPED = [s for s in STEPS if s != "libero_90"]  # suites of which LIBERO-PRO has variants


Step = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def official() -> list[Step]:
    """Observations of the loop that published evaluations run: a fresh model, the official state, ten still steps,
    then random actions. Recorded first and closed: robosuite's renderers cannot die beside living ones."""
    from libero.libero.envs import OffScreenRenderEnv
    from robosuite.utils.transform_utils import quat2axisangle

    problem = Problem.find("libero_spatial:0")
    with quiet():
        loop = OffScreenRenderEnv(bddl_file_name=str(problem.bddl), camera_heights=SIZE, camera_widths=SIZE)
        with seeded(53):
            loop.reset()
    seen, steps = loop.set_init_state(problem.initial_states[3]), list[Step]()
    for _ in range(SETTLE_STEPS):
        seen, *_ = loop.step(list(STILL))
    for action in [None, *np.random.default_rng(0).uniform(-1, 1, (4, 7))]:
        if action is not None:
            seen, *_ = loop.step(action)
        rotation = quat2axisangle(np.array(seen["robot0_eef_quat"]))
        state = np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]])
        images = {camera: np.rot90(seen[f"{camera}_image"], 2).copy() for camera in CAMERAS}
        physics = loop.get_sim_state().copy()
        steps.append({**images, "state": state.astype(np.float32), "physics": physics})
    loop.close()
    gc.collect()
    return steps


@pytest.fixture(scope="module")
def env(official: list[Step]) -> Iterator[Libero]:
    """`pick up the black bowl between the plate and the ramekin and place it on the plate`"""
    env = Libero("libero_spatial:0", image_size=SIZE)
    yield env
    env.close()


@needs_libero
def test_episodes_are_the_benchmarks_own_bit_for_bit(env: Libero, official: list[Step]) -> None:
    env.reset(seed=7)  # an episode before must leave nothing behind
    for _ in range(3):
        env.advance(np.ones(7))
    seen, info = env.reset(seed=53)
    assert info["initial_state"] == 3
    actions = [None, *np.random.default_rng(0).uniform(-1, 1, (4, 7))]
    for theirs, action in zip(official, actions, strict=True):
        if action is not None:
            seen, *_ = env.step(action)
        for camera in CAMERAS:
            np.testing.assert_array_equal(seen["images"][camera], theirs[camera])
        np.testing.assert_array_equal(seen["state"], theirs["state"])
        np.testing.assert_array_equal(env.scene._env.get_sim_state(), theirs["physics"])


@needs_libero
def test_a_bowl_that_is_carried_to_the_plate_is_a_success_and_replays_as_one(env: Libero) -> None:
    env.reset(seed=0)
    carrier = BowlCarrier(env)
    assert carrier.run()
    assert env.steps == len(carrier.actions) < env.max_steps
    episode = rollout(Replay(carrier.actions), env, 0, execute=10)  # type: ignore[arg-type]  # what rollout calls
    assert (episode.success, episode.steps, episode.failure) == (True, len(carrier.actions), None)
    assert np.ptp([env.reset(seed=s)[0]["state"] for s in (0, 0)], axis=0).max() == 0


@needs_libero
def test_the_same_movements_with_an_open_hand_fail_and_say_what_was_not_met(
    env: Libero, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.reset(seed=0)
    carrier = BowlCarrier(env, closes=False)
    assert not carrier.run()
    monkeypatch.setattr(env, "max_steps", len(carrier.actions))
    episode = rollout(Replay(carrier.actions), env, 0, execute=10)  # type: ignore[arg-type]  # what rollout calls
    assert not episode.success
    assert episode.failure is not None
    assert episode.failure.endswith("not on(akita_black_bowl_1, plate_1)")
    monkeypatch.setattr(env, "max_steps", 2)
    episode = rollout(Replay([np.array(STILL)] * 2), env, 0, execute=2)  # type: ignore[arg-type]  # what rollout calls
    assert (episode.steps, episode.failure) == (2, "nothing moved; not on(akita_black_bowl_1, plate_1)")


@needs_libero
def test_the_seed_chooses_the_initial_state_and_where_fixtures_stand(env: Libero) -> None:
    def start(seed: int) -> tuple[Any, Any]:
        _, info = env.reset(seed=seed)
        sim = env.scene._env.sim
        return info["initial_state"], sim.model.body_pos[
            sim.model.body_name2id("wooden_cabinet_1_main")
        ].copy()

    state_of = np.random.get_state()[1][:4].tolist()  # noqa: NPY002 (the global one must stay as it was)
    (first, here), (again, there), (other, _) = start(4), start(54), start(5)
    assert (first, again, other) == (4, 4, 5)
    assert 0 < np.abs(here - there).max() < 0.03
    assert np.random.get_state()[1][:4].tolist() == state_of  # noqa: NPY002


@needs_libero
def test_variants_change_what_they_say_and_leave_nothing_behind(env: Libero) -> None:
    plain, _ = env.reset(seed=1)
    seen = {v: env.reset(seed=1, options={"variant": v})[0] for v in ("position", "language")}
    again, _ = env.reset(seed=1)
    for camera in CAMERAS:
        np.testing.assert_array_equal(again["images"][camera], plain["images"][camera])
        assert (seen["position"]["images"][camera] != plain["images"][camera]).any()
    said = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert plain["instruction"] == seen["position"]["instruction"] == said
    assert seen["language"]["instruction"] == (
        "lift the black bowl between the plate and ramekin and set it on the plate"
    )


@needs_libero
@pytest.mark.parametrize("suite", SHIPPED)
def test_every_variant_of_every_task_changes_one_thing(suite: str) -> None:
    """Read from the files: words, goal, things, or places; and 50 initial states each."""
    for number in range(10):
        task = f"{suite}:{number}"
        plain = Problem.find(task)
        base = sections(plain)
        found = {v: Problem.find(task, v) for v in VARIANTS}
        parts = {v: sections(problem) for v, problem in found.items()}
        assert {len(p.initial_states) for p in (plain, *found.values())} == {50}
        assert parts["language"]["language"] != base["language"]
        for section in ("fixtures", "objects", "init", "goal"):
            assert parts["language"][section] == base[section], (task, section)
        for variant in ("object", "position"):
            assert found[variant].instruction == plain.instruction
            assert parts[variant]["language"] == base["language"]
        assert found["language"].instruction is None  # the sentence of the file is spoken
        assert parts["task"]["objects"] == base["objects"]


@needs_libero
@pytest.mark.parametrize(
    ("task", "variant", "says"),
    [
        ("libero_spatial:10", None, "libero_spatial has tasks 0 to 9"),
        ("libero_90:90", None, "libero_90 has tasks 0 to 89"),
        ("libero_90:0", "language", "has no variant language: LIBERO-PRO ships none for libero_90"),
        ("libero_goal:0", "colour", "variant 'colour': use one of language, object, position, task"),
    ],
)
def test_what_the_benchmark_does_not_have(task: str, variant: str | None, says: str) -> None:
    with pytest.raises(TestbedError, match=says):
        Problem.find(task, variant)


@needs_libero
def test_bad_actions_and_options_are_refused(env: Libero) -> None:
    env.reset(seed=0)
    with pytest.raises(TestbedError, match="must be 7 finite numbers"):
        env.advance(np.zeros(6))
    with pytest.raises(TestbedError, match="must be 7 finite numbers"):
        env.advance(np.full(7, np.nan))
    with pytest.raises(TestbedError, match="reset option 'variation': LIBERO takes variant"):
        env.reset(seed=0, options={"variation": {"light": 0.5}})


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("libero_spacial:3", "LIBERO suite 'libero_spacial': use one of libero_spatial, libero_object"),
        ("libero_spatial_lan:3", "for variants use libero_spatial:N and the variant's suite"),
        ("libero_spatial", "name a suite and the task's number, e.g. libero_spatial:0"),
        ("libero_spatial:-1", "name a suite and the task's number"),
    ],
)
def test_task_names_are_checked(task: str, says: str) -> None:
    with pytest.raises(TestbedError, match=re.escape(says)):
        parse(task)


@pytest.mark.skipif(INSTALLED, reason="LIBERO is installed here")
def test_without_the_benchmark_one_line_says_how_to_get_it() -> None:
    with pytest.raises(TestbedError, match=r"LIBERO is not installed: `make setup-libero`"):
        Libero("libero_spatial:3")


class Replay:
    """What `rollout` calls of a policy, playing given actions."""

    def __init__(self, actions: list[np.ndarray]) -> None:
        self.left = list(actions)

    def noise(self, n: int, seed: int) -> None: ...

    def batch(self, observations: list[Any]) -> None: ...

    def sample(self, batch: None, noise: None) -> Any:
        import torch

        chunk, self.left = self.left[:10], self.left[10:]
        return torch.from_numpy(np.stack(chunk))[None]


def sections(problem: Problem) -> dict[str, str]:
    """Sections of a task file by name, without their layout."""
    text = re.sub(r"\s+", " ", problem.bddl.read_text())
    parts = re.split(r"\(:(\w+)", text)
    return {
        name: re.sub(r"[\s()]+", " ", body).strip()
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
