"""Each task can be done by the expert, and cannot be passed by doing something else."""

import numpy as np
import pytest

from testbed.episodes import in_workers
from testbed.expert import Expert
from testbed.scene import kind_of
from testbed.tabletop import Tabletop
from testbed.tasks import TASKS, get_task

EPISODES = 200
WRONG_EPISODES = 20
_env: Tabletop | None = None


def _environment() -> Tabletop:
    global _env
    if _env is None:
        _env = Tabletop(image_size=16)
    return _env


def finish(env: Tabletop, act) -> bool:
    while not env.success and env.failure is None and env.steps < env.max_steps:
        env.advance(act())
    return env.success


def expert_successes(task: str) -> int:
    env, done = _environment(), 0
    for seed in range(EPISODES):
        env.reset(seed=seed, options={"task": task})
        done += finish(env, Expert(env))
    return done


@pytest.mark.slow
def test_the_expert_solves_every_task_in_99_of_100_episodes():
    successes = dict(zip(TASKS, in_workers(expert_successes, list(TASKS), 2), strict=True))
    assert {t: n for t, n in successes.items() if n < 0.99 * EPISODES} == {}


@pytest.mark.parametrize("task", TASKS)
def test_random_actions_never_succeed(task):
    env, rng = _environment(), np.random.default_rng(0)
    for seed in range(WRONG_EPISODES):
        env.reset(seed=seed, options={"task": task})
        assert not finish(env, lambda: rng.uniform(-1, 1, 7) * [0.04, 0.04, 0.04, 0.2, 0.2, 0.2, 1])


@pytest.mark.parametrize("task", TASKS)
def test_never_closing_the_gripper_never_succeeds(task):
    env = _environment()
    for seed in range(WRONG_EPISODES):
        env.reset(seed=seed, options={"task": task})
        expert = Expert(env)
        assert not finish(env, lambda act=expert: np.r_[act()[:6], 1.0])


def _others(task: str) -> list[str]:
    target = get_task(task).target
    return [b for b in get_task(task).objects if kind_of(b) == target]


@pytest.mark.parametrize("task", [t for t in TASKS if len(_others(t)) > 1])
def test_the_right_verb_on_the_wrong_object_never_succeeds(task):
    env = _environment()
    for seed in range(WRONG_EPISODES):
        env.reset(seed=seed, options={"task": task})
        target = env.layout.target
        wrong = next(b for b in _others(task) if b != target)
        object.__setattr__(env.layout, "target", wrong)  # what the expert believes ...
        expert = Expert(env)

        def act(expert=expert, wrong=wrong, target=target, env=env):
            object.__setattr__(env.layout, "target", wrong)
            action = expert()
            object.__setattr__(env.layout, "target", target)  # ... and what is judged
            return action

        object.__setattr__(env.layout, "target", target)
        assert not finish(env, act)


def test_pushing_by_carrying_fails():
    """A cube that is lifted and put beside the bowl was not pushed there."""
    env = _environment()
    env.reset(seed=3, options={"task": "push"})
    carrier = Expert(env)
    plan = carrier._pick()
    assert not finish(env, lambda: next(plan))
    assert env.failure == "lifted instead of pushed"


def test_a_hard_button_needs_a_longer_and_deeper_press():
    soft, hard = get_task("press"), get_task("press-button-hard")
    assert (hard.hold, hard.press_depth, hard.button_stiffness) > (
        soft.hold,
        soft.press_depth,
        soft.button_stiffness,
    )
    env = _environment()
    env.reset(seed=0, options={"task": "press-button-hard"})
    expert = Expert(env)
    pressed = 0
    while not env.success:
        env.advance(expert())
        pressed += env.press_depth(env.layout.target) > soft.press_depth
    assert pressed >= hard.hold
