"""What evaluation asks of the tabletop: another object named, reasons of failure, acting unseen, larger pictures."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from testbed.expert import Expert
from testbed.tabletop import CAMERAS, RENDER_SIZE, Tabletop
from testbed.tasks import TASKS

SEEDS = range(4)


@pytest.fixture(scope="module")
def env() -> Iterator[Tabletop]:
    env = Tabletop(image_size=16)
    yield env
    env.close()


def end(env: Tabletop, act: Callable[[], np.ndarray]) -> Any:
    """Act until the episode is over; its last info."""
    while True:
        _, terminated, truncated, info = env.advance(act())
        if terminated or truncated:
            return info


@pytest.mark.parametrize("task", TASKS)
def test_another_object_of_the_same_scene_is_named_and_judged(env: Tabletop, task: str) -> None:
    for seed in SEEDS:
        env.reset(seed=seed, options={"task": task})
        usual = env.layout
        env.reset(seed=seed, options={"task": task, "other_object": True})
        other = env.layout
        assert other.target != usual.target
        assert other.target not in (env.task.goal, "bowl")
        assert other.colours == usual.colours
        kind, colour = other.target.rstrip("0123456789"), other.colours[other.target]
        assert f"{colour} {kind}" in other.instruction
        if env.task.kind != "push":  # a push needs a free lane for what is pushed
            assert all(np.array_equal(other.position[b], usual.position[b]) for b in usual.position)
        assert end(env, Expert(env))["success"], "the expert can do what is said"


def test_doing_the_usual_thing_is_not_what_another_object_asks_for(env: Tabletop) -> None:
    """The expert is told the usual target, the episode judges the other."""
    for seed in SEEDS:
        env.reset(seed=seed, options={"task": "pick"})
        usual = env.layout
        env.reset(seed=seed, options={"task": "pick", "other_object": True})
        judged = env.layout

        def act(expert: list[Expert] = [], usual=usual, judged=judged) -> np.ndarray:  # noqa: B006
            env.layout = usual
            if not expert:
                expert.append(Expert(env))
            action = expert[0]()
            env.layout = judged
            return action

        assert end(env, act) == {"success": False, "failure": "wrong object"}


@pytest.mark.parametrize("task", ["pick", "put", "press", "push"])
def test_an_episode_without_moves_says_what_never_happened(env: Tabletop, task: str) -> None:
    env.reset(seed=0, options={"task": task})
    never = {"press": "never pressed", "push": "never pushed"}.get(task, "never grasped")
    assert end(env, lambda: np.zeros(7)) == {"success": False, "failure": never}
    assert env.failure is None, "running out of time is no failure that ends an episode early"


def test_reasons_tell_how_far_it_came(env: Tabletop) -> None:
    def after(task: str, steps: int, then: np.ndarray) -> str:
        """The expert for some steps, then one action for the rest of the time."""
        env.reset(seed=1, options={"task": task})
        expert = Expert(env)
        return str(end(env, lambda: expert() if env.steps < steps else then)["failure"])

    def carried(task: str) -> int:
        """Steps until the expert has lifted the target by 4 cm."""
        env.reset(seed=1, options={"task": task})
        expert = Expert(env)
        while env._rise(env.layout.target) < 0.04:
            env.advance(expert())
        return env.steps

    held, lowered = carried("put"), np.array([0, 0, 0.0, 0, 0, 0, 1.0])
    assert after("put", held, np.array([0, 0, 0, 0, 0, 0, -1.0])) == "not put down"
    assert after("put", held, lowered) == "dropped"
    assert after("pick", carried("pick"), np.array([0, 0, 0, 0, 0, 0, -1.0])) == "not lifted high enough"


def test_acting_unseen_is_acting(env: Tabletop) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (6, 7)) * [0.03, 0.03, 0.03, 0.1, 0.1, 0.1, 1]
    env.reset(seed=3, options={"task": "put"})
    seen = [env.step(action) for action in actions]
    env.reset(seed=3, options={"task": "put"})
    unseen = [env.advance(action) for action in actions]
    assert [step[1:] for step in seen] == unseen
    last, now = seen[-1][0], env.observe()
    assert np.array_equal(last["state"], now["state"])
    assert all(np.array_equal(last["images"][c], now["images"][c]) for c in CAMERAS)


def test_rendering_for_people_changes_nothing_that_the_policy_sees() -> None:
    env = Tabletop(image_size=16, render_mode="rgb_array")
    observation, _ = env.reset(seed=3)
    shown = env.render()
    assert shown is not None
    assert shown.shape == (RENDER_SIZE, len(CAMERAS) * RENDER_SIZE, 3)
    again = env.observe()
    assert all(np.array_equal(observation["images"][c], again["images"][c]) for c in CAMERAS)
    # the large picture shows the same scene: averaged down, it is the small one but for the sampling of edges
    small = shown[:, :RENDER_SIZE].reshape(16, RENDER_SIZE // 16, 16, RENDER_SIZE // 16, 3).mean((1, 3))
    assert np.abs(small - observation["images"]["front"]).mean() < 10
    env.close()
