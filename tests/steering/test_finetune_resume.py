"""Promises of a training that is stopped: it resumes bit for bit, never leaves half a result, and says what it kept."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_writer import random_episodes, write_dataset
from safetensors.torch import load_file
from training_kit import SMALL, events, run, weights

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy, load_policy
from steering.finetune import TrainingError
from steering.headset import HeadSet
from steering.memory import PeakMemory
from steering.progress import Progress
from steering.recipes import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def policy(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit promises hold on one thread: more of them add numbers up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_training_resumes_to_the_same_weights_bit_for_bit(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    recipe = Recipe.named("aligned", steps=60, batch=4, draws=2, warmup=2)
    run(policy, demos, tmp_path / "whole", recipe)
    script = f"""
import torch; torch.set_num_threads(1)
from interp.demos import Demonstrations
from interp.heads import Head
from interp.policies import load_policy
from steering.finetune import finetune
from steering.headset import HeadSet
from steering.memory import PeakMemory
from steering.recipes import Recipe
heads = HeadSet((Head("expert", 0, 3), Head("expert", 2, 0)))
recipe = Recipe.named("aligned", steps=60, batch=4, draws=2, warmup=2)
finetune(load_policy({str(tiny_policy_dir)!r}), Demonstrations.open({str(demos.path)!r}), recipe,
         {str(tmp_path / "killed")!r}, heads=heads, checkpoint_every=4, progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    log = tmp_path / "killed" / "progress.jsonl"
    while not log.exists() or log.read_text().count("\n") < 10:
        assert child.poll() is None, "the training ended before it could be killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "policy").exists()
    run(load_policy(tiny_policy_dir), demos, tmp_path / "killed", recipe, checkpoint_every=4)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert [e["step"] for e in events(tmp_path / "killed")] == list(range(1, 61))
    assert [e["loss"] for e in events(tmp_path / "killed")] == [e["loss"] for e in events(tmp_path / "whole")]


def test_the_peak_memory_of_a_resumed_training_is_that_of_all_its_parts(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part peaks at 900 MB, the second at 500 and later 600."""
    marks = {"first": [900.0] * 9, "second": [500.0, 500.0, 600.0, 600.0, 600.0]}
    policy = load_policy(tiny_policy_dir)
    loss, calls = policy.loss, iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(PeakMemory, "so_far", lambda self: marks["first"].pop(0))
        patch.setattr(
            policy, "loss", lambda *given: loss(*given) * (float("nan") if next(calls) == 4 else 1.0)
        )
        with pytest.raises(TrainingError):
            run(policy, demos, tmp_path)
    monkeypatch.setattr(PeakMemory, "so_far", lambda self: marks["second"].pop(0))
    assert run(load_policy(tiny_policy_dir), demos, tmp_path).summary["peak_memory_mb"] == 900.0


def test_a_second_training_of_one_job_is_refused_while_the_first_runs(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in the middle of the first, whose files and weights it leaves alone; when that has ended, it is free."""
    policy, second = load_policy(tiny_policy_dir), load_policy(tiny_policy_dir)
    before = {name: value.clone() for name, value in second.module.state_dict().items()}
    update, refused = Progress.update, []

    def asking(self: Progress, step: int, **values: float) -> None:
        update(self, step, **values)
        if step == 3:
            with pytest.raises(UsageError) as caught:
                run(second, demos, tmp_path / "job")
            refused.append(str(caught.value))

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", asking)
        first = run(policy, demos, tmp_path / "job")
    (line,) = refused
    assert "job: another process trains there: wait for it or stop it, or use another --name" in line
    assert all(torch.equal(value, before[name]) for name, value in second.module.state_dict().items())
    assert [event["step"] for event in events(tmp_path / "job")] == [1, 2, 3, 4, 5, 6]
    assert run(second, demos, tmp_path / "job").summary == first.summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_gives_the_policy_back(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run(load_policy(tiny_policy_dir), demos, tmp_path / "whole")
    update = Progress.update

    def interrupting(self: Progress, step: int, **values: float) -> None:
        update(self, step, **values)
        if step == 3:
            os.kill(os.getpid(), number)

    policy = load_policy(tiny_policy_dir)
    base = {name: value.clone() for name, value in policy.module.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupting)
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step 4 of 6; call it again to resume"):
            run(policy, demos, tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "interrupted"
    after = policy.module.state_dict()
    assert base.keys() == after.keys()
    assert all(torch.equal(base[name], after[name]) for name in base)
    run(policy, demos, tmp_path / "stopped")
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_finished_training_is_not_repeated(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    first = run(policy, demos, tmp_path)
    log = (tmp_path / "progress.jsonl").read_text()
    second = run(load_policy(tiny_policy_dir), demos, tmp_path)
    assert second.policy.fingerprint == first.policy.fingerprint
    assert second.summary == first.summary
    assert (tmp_path / "progress.jsonl").read_text() == log


def test_another_training_does_not_take_over_a_directory(
    policy: Policy, tiny_policy_dir: Path, other_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run(policy, demos, tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    fresh = load_policy(tiny_policy_dir)
    with pytest.raises(UsageError, match="a training with seed 0, not 1"):
        run(fresh, demos, tmp_path, seed=1)
    with pytest.raises(UsageError, match=r"a training with heads .*L2H0.*, not .*L1H1"):
        run(fresh, demos, tmp_path, heads=HeadSet((Head("expert", 1, 1),)))
    with pytest.raises(UsageError, match=r"a training with recipe steps=6, lr=0.002, not steps=7, lr=0.1: "):
        run(fresh, demos, tmp_path, replace(SMALL, steps=7, lr=0.1))
    other = load_policy(other_policy_dir)
    with pytest.raises(UsageError, match=f"with policy {fresh.fingerprint}, not {other.fingerprint}"):
        run(other, demos, tmp_path)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_a_job_of_an_older_version_is_still_this_job(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    first = run(policy, demos, tmp_path)
    asked = json.loads((tmp_path / "recipe.json").read_text())
    for younger in ("ema", "padding", "augment_shift", "augment_colour", "projections", "flow_projections"):
        del asked["recipe"][younger]
    (tmp_path / "recipe.json").write_text(json.dumps(asked))
    assert run(load_policy(tiny_policy_dir), demos, tmp_path).summary == first.summary


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(
    policy: Policy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = policy.loss, iter(range(100))

    def breaking(*args: Any) -> torch.Tensor:
        return loss(*args) * (float("nan") if next(calls) == 4 else 1.0)

    monkeypatch.setattr(policy, "loss", breaking)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5: .* step 4 is kept in .*checkpoint"):
        run(policy, demos, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    monkeypatch.undo()
    run(policy, demos, tmp_path)
    assert [event["step"] for event in events(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_gradient_that_is_not_a_number_never_reaches_the_weights(
    policy: Policy, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss can have an infinite slope: were the step taken, the next checkpoint would hold NaN."""
    loss, calls = policy.loss, iter(range(100))

    def steep(*args: Any) -> torch.Tensor:
        out = loss(*args)
        return out + (out.detach() - out).abs().sqrt() if next(calls) == 3 else out  # d sqrt(x) at 0

    monkeypatch.setattr(policy, "loss", steep)
    with pytest.raises(
        TrainingError, match=r"the gradient's norm is (nan|inf) at step 4: .* step 2 is kept in"
    ):
        run(policy, demos, tmp_path)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


@pytest.mark.parametrize("full_at", ["first", "second"])
def test_a_full_disk_says_so_keeps_the_last_checkpoint_and_the_training_goes_on_later(
    tiny_policy_dir: Path,
    demos: Demonstrations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full_at: str,
) -> None:
    run(load_policy(tiny_policy_dir), demos, tmp_path / "whole")
    write, saves = os.fdopen, iter(range(100))

    class FullDisk:
        """A file that takes half of what it gets, then finds no space, as write(2) does."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "FullDisk":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opening(handle: int, mode: str) -> Any:
        file = write(handle, mode)
        named = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if "checkpoint" in named and next(saves) == (0 if full_at == "first" else 1):
            return FullDisk(file)
        return file

    kept = "nothing was saved yet" if full_at == "first" else "step 2 is kept in .*checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", opening)
        with pytest.raises(TrainingError, match=rf"training stopped: .*No space left on device; {kept}"):
            run(load_policy(tiny_policy_dir), demos, tmp_path / "cut")
    assert not [p.name for p in (tmp_path / "cut").iterdir() if p.name.startswith(".")]
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["state"] == "failed"
    run(load_policy(tiny_policy_dir), demos, tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_demonstrations_of_another_robot_leave_nothing_behind(policy: Policy, tmp_path: Path) -> None:
    for name, options, message in (
        ("one-camera", {"cameras": ["front"]}, "lack camera 'wrist'"),
        ("six-axes", {"action_dim": 6}, "action has 6 dimensions, the policy's has 7"),
    ):
        demos = Demonstrations.open(write_dataset(tmp_path / name, random_episodes([4], **options)))
        with pytest.raises(UsageError, match=message):
            run(policy, demos, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_at_the_very_end_costs_no_training(
    policy: Policy,
    tiny_policy_dir: Path,
    demos: Demonstrations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    monkeypatch.setattr(policy, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device: .*policy'; step 6 is kept in"):
        run(policy, demos, tmp_path)
    log = (tmp_path / "progress.jsonl").read_text()
    run(load_policy(tiny_policy_dir), demos, tmp_path)
    assert (tmp_path / "progress.jsonl").read_text() == log
    assert (tmp_path / "policy").is_dir()


def test_no_demonstrations_are_refused(policy: Policy, demos: Demonstrations, tmp_path: Path) -> None:
    none = replace(demos, episodes=(), state=demos.state[:0], action=demos.action[:0], rows=demos.rows[:0])
    with pytest.raises(UsageError, match="have no frames to train on"):
        run(policy, none, tmp_path / "job")
    with pytest.raises(UsageError, match="choose at least one episode"):
        demos.take([])
    assert not (tmp_path / "job").exists()
