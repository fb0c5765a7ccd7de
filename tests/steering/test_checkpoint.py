"""Promises of checkpoints: the last good one survives a full disk, and a bad one is named."""

import resource
import signal
from pathlib import Path

import pytest
import torch

from interp.errors import UsageError
from steering.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    parameters = {"slice": torch.nn.Parameter(torch.arange(4096.0))}
    optimiser = torch.optim.AdamW(parameters.values())
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint(1, 0.5, 0.25), parameters, optimiser)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # no file may grow beyond one kilobyte
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, Checkpoint(2, 0.5, 0.25), parameters, optimiser)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert load_checkpoint(path, parameters, optimiser).step == 1


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    parameters = {"slice": torch.nn.Parameter(torch.zeros(3))}
    optimiser = torch.optim.AdamW(parameters.values())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(UsageError, match=r"checkpoint\.safetensors is broken .*: delete it"):
        load_checkpoint(path, parameters, optimiser)
    save_checkpoint(path, Checkpoint(1, 0, 0), {"other": torch.nn.Parameter(torch.zeros(3))}, optimiser)
    with pytest.raises(UsageError, match="other, which does not train here"):
        load_checkpoint(path, parameters, optimiser)


def test_everything_that_the_next_step_depends_on_comes_back(tmp_path: Path) -> None:
    def after(steps: int) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        torch.manual_seed(0)
        parameters = {"a": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.randn(4))}
        optimiser = torch.optim.AdamW(parameters.values(), betas=(0.9, 0.95))
        for _ in range(steps):
            step(parameters, optimiser)
        return parameters, optimiser

    def step(parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.AdamW) -> None:
        optimiser.zero_grad()
        sum(p.pow(4).sum() for p in parameters.values()).backward()
        optimiser.step()

    path = tmp_path / "checkpoint.safetensors"
    parameters, optimiser = after(3)
    average = {name: torch.full_like(p, 7) for name, p in parameters.items()}
    save_checkpoint(path, Checkpoint(3, 1.5, 0.25), parameters, optimiser, average)
    resumed, their = after(0)
    theirs = {name: torch.zeros_like(p) for name, p in parameters.items()}
    assert load_checkpoint(path, resumed, their, theirs) == Checkpoint(3, 1.5, 0.25)
    step(resumed, their)
    expected, _ = after(4)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert all(torch.equal(theirs[name], average[name]) for name in average)
