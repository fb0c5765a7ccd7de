"""Promises of evaluation: paired, reproducible, every episode kept, and no worker left behind when it fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import toy_env  # registers Toy-v0

from interp.errors import UsageError
from interp.policies import Observation, Policy
from steering.rollouts import RolloutError, evaluate, noise_seed, rollout

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
    with pytest.raises(RolloutError, match=r"(?s)Traceback.*toy_env.*operands could not be broadcast"):
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
