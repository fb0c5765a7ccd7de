"""Promises of evaluation: paired, reproducible, every episode kept, and no worker left behind when it fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import toy_env  # registers Toy-v0
from PIL import Image

from interp.errors import UsageError
from interp.policies import Observation, Policy
from steering.rollouts import (
    Condition,
    Episode,
    RolloutError,
    evaluate,
    evaluate_all,
    film,
    noise_seed,
    rollout,
)
from testbed.tabletop import Tabletop

TOY = "toy_env:Toy-v0"


def toy(policy: Path, task: str = "sum", n: int = 6, **options: Any) -> Any:
    return evaluate(policy, task, n, env=TOY, progress=False, **options)


def children() -> list[Any]:
    return [p for p in multiprocessing.active_children() if "resource_tracker" not in p.name]


def test_every_episode_is_the_one_of_a_plain_loop_whatever_the_workers(
    tiny_policy_dir: Path, policy: Policy
) -> None:
    """Two processes against a loop in this one that follows the words of the module's docstring."""
    result = toy(tiny_policy_dir, n=6, seed0=40, workers=2)
    env = toy_env.Toy("sum", policy.spec.image_size)
    expected = []
    for seed in range(40, 46):
        observation, _ = env.reset(seed=seed)
        steps, info = 0, {}
        while steps < 5:
            noise = policy.noise(1, noise_seed(seed, steps))
            chunk = policy.sample(policy.batch([Observation(**observation)]), noise)[0]
            for action in chunk[: policy.spec.execute].numpy()[: 5 - steps]:
                observation, *_, info = env.step(action)
                steps += 1
        expected.append((seed, info["success"], 5, info["failure"]))
    assert [(e.seed, e.success, e.steps, e.failure) for e in result.episodes] == expected
    assert result.policy == policy.fingerprint
    assert result.settings["execute"] == policy.spec.execute == 2
    assert not children()


def test_a_variation_reaches_every_episode(tiny_policy_dir: Path) -> None:
    result = toy(tiny_policy_dir, n=5, workers=1, variation={"offset": 1000.0})
    assert (result.n, result.successes, result.success_rate.value) == (5, 5, 1.0)
    assert all(e.failure is None for e in result.episodes)
    assert result.settings["variation"] == {"offset": 1000.0}


def test_conditions_share_workers_and_are_reported_in_order_and_apart(tiny_policy_dir: Path) -> None:
    """Under three conditions, one of which was run in part before; a worker alone would give the same."""
    high, low = ({"variation": {"offset": offset}} for offset in (1000.0, -1000.0))
    kept = [
        {},
        {8: Episode(8, True, 1), 30: Episode(30, True, 2)},
        {7: Episode(7, True, 3), 8: Episode(8, True, 3)},
    ]
    done = evaluate_all(
        tiny_policy_dir,
        [Condition("sum", high), Condition("sum", low), Condition("sum", low)],
        2,
        7,
        kept=kept,
        env=TOY,
        progress=False,
    )
    first, second, third = ([(e.seed, e.success, e.steps) for e in found.episodes] for found in done)
    assert first == [(7, True, 5), (8, True, 5)]
    assert second == [(7, False, 5), (8, True, 1), (30, True, 2)], "what is kept is not run again"
    assert third == [(7, True, 3), (8, True, 3)]
    assert not children()


def test_a_film_is_of_the_scored_episode(tiny_policy_dir: Path, tmp_path: Path) -> None:
    condition = Condition("sum", {"variation": {"offset": 1000.0}})
    scored = {3: Episode(3, True, 5), 4: Episode(4, False, 5, "sum below zero")}
    films = {3: tmp_path / "three.gif", 4: tmp_path / "four.gif"}
    filmed = film(tiny_policy_dir, condition, films, scored=scored, env=TOY)
    assert next(filmed) == (tmp_path / "three.gif", Episode(3, True, 5))
    with Image.open(tmp_path / "three.gif") as gif:
        assert gif.n_frames == 6, "the reset and five steps"
    with pytest.raises(RolloutError, match=r"seed 4 was scored .*versions"):
        next(filmed)
    assert not children()


def test_only_what_the_policy_looks_at_is_rendered(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that renders every step and one that does not give the same episode and the same looks."""

    class RendersAll(gymnasium.Env[Any, Any]):
        def __init__(self, inner: Tabletop) -> None:
            self.inner = inner

        def reset(self, **options: Any) -> Any:
            return self.inner.reset(**options)

        def step(self, action: Any) -> Any:
            return self.inner.step(action)

    inner = Tabletop("push", image_size=policy.spec.image_size)
    looks: list[Observation] = []
    renders: list[int] = []
    batch, observe = policy.batch, inner.observe
    monkeypatch.setattr(policy, "batch", lambda seen: looks.extend(seen) or batch(seen))
    monkeypatch.setattr(inner, "observe", lambda: renders.append(1) or observe())
    found = []
    for env in (inner, RendersAll(inner)):
        looks.clear(), renders.clear()
        episode = rollout(policy, env, 5, execute=3)
        found.append((episode, list(looks), len(renders)))
    (fast, seen, few), (slow, all_seen, many) = found
    assert fast == slow
    assert (few, many) == (len(seen), slow.steps + 1)
    for a, b in zip(seen, all_seen, strict=True):
        assert np.array_equal(a.state, b.state)
        assert all(np.array_equal(a.images[c], b.images[c]) for c in a.images)
    inner.close()


def test_noise_differs_between_steps_and_seeds() -> None:
    assert len({noise_seed(seed, step) for seed in range(50) for step in range(50)}) == 2500


def test_execute_decides_how_often_the_policy_looks(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    batch = policy.batch
    monkeypatch.setattr(policy, "batch", lambda observations: looks.append(1) or batch(observations))
    env: gymnasium.Env[Any, Any] = toy_env.Toy("sum", policy.spec.image_size)
    for execute, expected in ((1, 5), (2, 3), (6, 1)):
        looks.clear()
        assert rollout(policy, env, 0, execute=execute).steps == 5
        assert len(looks) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "dance"}, r"^task 'dance': unknown; use sum, crash, bug or hang$"),
        ({"execute": 7}, "execute = 7: the policy's chunks hold 6 actions"),
        ({"n": 0}, "n = 0 episodes"),
        ({"workers": 0}, "workers = 0"),
        ({"seed0": -1}, "seed0 = -1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_process(
    tiny_policy_dir: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        toy(**{"policy": tiny_policy_dir, "workers": 1, **options})
    assert not children()


def test_a_worker_that_dies_is_named_with_its_episode(tiny_policy_dir: Path) -> None:
    with pytest.raises(RolloutError, match=r"worker \d+ died in the episode with seed 3 \(exit status 7\)"):
        toy(tiny_policy_dir, "crash", workers=1)
    assert not children()


def test_a_bug_in_an_episode_comes_with_its_traceback(tiny_policy_dir: Path) -> None:
    line = r"rollout worker \d+ failed: ValueError: operands could not be broadcast together\n"
    with pytest.raises(RolloutError, match=rf"(?s){line}Traceback.*toy_env"):
        toy(tiny_policy_dir, "bug", workers=1)
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopping_the_evaluation_stops_its_workers(
    tiny_policy_dir: Path, tmp_path: Path, number: int
) -> None:
    """Ctrl-C in a terminal reaches the whole process group; a kill reaches the parent alone."""
    script = tmp_path / "hang.py"
    script.write_text(f"""
import sys; sys.path.append({str(Path(__file__).parent)!r})
from steering.rollouts import evaluate
if __name__ == "__main__":
    evaluate({str(tiny_policy_dir)!r}, "hang", 4, env={TOY!r}, workers=2, progress=False)
""")
    started = tmp_path / "started"
    started.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        start_new_session=True,
        preexec_fn=partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        ),  # ignored where tests run in the background
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TOY_STARTED": str(started)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(started.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    _, errors = parent.communicate(timeout=30)
    assert errors.count("Traceback") <= 1  # the parent's own KeyboardInterrupt, and none of the workers'
    deadline = time.monotonic() + 10
    while _members(parent.pid):
        assert time.monotonic() < deadline, f"still alive: {_members(parent.pid)}"
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    """Live processes of a process group, zombies and multiprocessing's resource tracker apart."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z" and b"resource_tracker" not in command:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_the_tabletop_is_evaluated_and_its_bad_input_is_one_line(tiny_policy_dir: Path) -> None:
    """A random policy in the real simulator fails, and says how."""
    result = evaluate(tiny_policy_dir, "pick-cube", 3, seed0=7, progress=False)
    assert [e.seed for e in result.episodes] == [7, 8, 9]
    assert result.successes == 0
    assert all(e.failure and e.steps > 0 for e in result.episodes)
    with pytest.raises(UsageError, match=r"task 'pick-cubes': unknown; use one of") as caught:
        evaluate(tiny_policy_dir, "pick-cubes", 2, workers=1, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="lights"):
        evaluate(tiny_policy_dir, "pick-cube", 2, workers=1, progress=False, variation={"lights": 2})
