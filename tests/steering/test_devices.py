"""Promises of devices: what is trained, rolled out, served and exported there is what a CPU makes of it.

There is no GPU in these tests: tests/elsewhere.py is one that PyTorch believes in.
"""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import second_device
from training_kit import run, weights

import steering.workers
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy, load_policy
from interp.runs import read_json
from steering.export import export, export_job
from steering.rollouts import Condition, evaluate
from steering.serving import LivePolicy, mean_z
from steering.workers import Job, Order

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
"""float32: on a CPU, attention and some products have kernels of their own."""
OFF = (Head("expert", 0, 1), Head("vlm", 1, 0), Head("vision", 0, 1))


@pytest.fixture
def device() -> Iterator[str]:
    with second_device(float64=False) as name:
        yield name


def test_a_training_is_the_same_there(
    tiny_policy_dir: Path, demos: Demonstrations, device: str, tmp_path: Path
) -> None:
    """And goes on where it was stopped: a checkpoint is of no device."""
    here = run(load_policy(tiny_policy_dir), demos, tmp_path / "here")
    found = run(load_policy(tiny_policy_dir, device), demos, tmp_path / "there")
    assert found.summary["loss"] == pytest.approx(here.summary["loss"], rel=1e-4)
    expected = weights(tmp_path / "here")
    for name, tensor in weights(tmp_path / "there").items():
        torch.testing.assert_close(tensor, expected[name], **CLOSE)
    again = run(load_policy(tiny_policy_dir), demos, tmp_path / "there")
    assert again.summary == found.summary


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("form", ["merged", "peft", "lerobot", "openpi"])
def test_what_is_exported_there_is_verified_there(
    tiny_policy_dir: Path, demos: Demonstrations, device: str, tmp_path: Path, form: Any
) -> None:
    run(load_policy(tiny_policy_dir), demos, tmp_path / "job")
    done = export_job(tmp_path / "job", tmp_path / "out", demos, form=form, device=device)
    assert done.difference <= 1e-6
    assert read_json(tmp_path / "out/card.json")["verified"]["frames"] == 8


def test_the_fresh_process_of_an_export_computes_on_the_policys_device(
    tiny_policy_dir: Path, demos: Demonstrations, device: str, tmp_path: Path
) -> None:
    """A process that knows nothing of these tests does not find this device, and says so."""
    policy = load_policy(tiny_policy_dir, device)
    with pytest.raises(RuntimeError, match=f"device {device}:0: known are cpu, cuda"):
        export(policy, tmp_path / "out", [demos.observation(0)], {})


def test_heads_are_off_there_too(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, device: str
) -> None:
    served = []
    for each in (policy, load_policy(tiny_policy_dir, device)):
        live = LivePolicy(each, mean_z(each, demos, frames=3))
        for ablation in ("zero", "mean"):
            live.switch(OFF, ablation)  # type: ignore[arg-type]
            served.append(live.sample(demos.observation(0), 0))
    np.testing.assert_allclose(served[2:], served[:2], **CLOSE)


class Pipe:
    """The parent's end of a worker's pipe: one order, then it closes."""

    def __init__(self, *orders: Order) -> None:
        self.orders, self.sent = list(orders), list[Any]()

    def recv(self) -> Order:
        if not self.orders:
            raise EOFError
        return self.orders.pop(0)

    def send(self, message: Any) -> None:
        self.sent.append(message)


def test_workers_roll_out_there(tiny_policy_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering.workers, "leave_with_parent", lambda: None)
    used = []

    def noted(name: str, on: str) -> Policy:
        used.append(on)
        return load_policy(name, on)

    monkeypatch.setattr(steering.workers, "load_policy", noted)
    # tensors of a device that is written in Python cannot be sliced in inference mode
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    ends = []
    for on in ("cpu", device):
        pipe = Pipe(Order(0, 40), Order(0, 41))
        job = Job(str(tiny_policy_dir), (Condition("sum"),), "toy_env:Toy-v0", {}, None, {}, on)
        steering.workers._work(pipe, job)  # type: ignore[arg-type]
        ends.append(pipe.sent)
    assert used == ["cpu", device]
    assert [kind for kind, _ in ends[1]] == ["ready", "episode", "episode"], ends[1][-1][1]
    assert ends[0] == ends[1]


def test_workers_say_that_a_device_is_not_there(tiny_policy_dir: Path) -> None:
    with pytest.raises(UsageError, match="device gpu: known are cpu, cuda"):
        evaluate(tiny_policy_dir, "sum", 1, env="toy_env:Toy-v0", workers=1, device="gpu", progress=False)
    assert not [p for p in multiprocessing.active_children() if "resource_tracker" not in p.name]
