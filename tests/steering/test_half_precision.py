"""Promises of trainings in bfloat16: no step is too small to count."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_policy import build_half
from safetensors.torch import load_file
from torch import nn
from training_kit import EXPERT, run, weights

from interp.demos import Demonstrations
from interp.policies import load_policy
from steering.precision import rounded_off
from steering.recipes import Recipe
from steering.training_state import TrainingState

SMALL_STEPS = Recipe.named("full", steps=20, batch=4, draws=2, lr=2.5e-5, warmup=0, lr_final=1.0)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return build_half(tmp_path / "half")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_steps_that_bfloat16_cannot_hold_add_up(dtype: torch.dtype, ema: float) -> None:
    """Under a constant gradient AdamW moves every weight by lr a step: from 1 to 0.99 in 100 steps of 1e-4, each a
    fortieth of bfloat16's last digit there. An average of decay 0.5 is one step behind."""
    module = nn.Linear(2, 2, bias=False).to(dtype)
    nn.init.ones_(module.weight)
    state = TrainingState.of(SimpleNamespace(module=module), Recipe.named("full", ema=ema))  # type: ignore[arg-type]
    for step in range(100):
        state.optimiser.zero_grad()
        module.weight.sum().backward()
        assert len(state.gradients()) == 1
        state.take_step(1e-4, ema, step)
    state.settle()
    assert module.weight.dtype == dtype
    expected = torch.full((2, 2), 0.99 + (1e-4 if ema else 0)).to(dtype)
    torch.testing.assert_close(module.weight.detach(), expected, rtol=0, atol=1e-5)  # 100 roundings of 6e-8


def test_full_moves_bfloat16_weights_as_far_as_float32_ones(
    half: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    whole = load_policy(half)
    whole.module.float()
    run(load_policy(half), demos, tmp_path / "rounded", SMALL_STEPS)
    run(whole, demos, tmp_path / "whole", SMALL_STEPS)
    before, rounded, exact = (
        load_file(half / "model.safetensors"),
        weights(tmp_path / "rounded"),
        weights(tmp_path / "whole"),
    )
    names = [name for name in exact if name.startswith(EXPERT) and name.endswith("_proj.weight")]
    assert (
        {before[name].dtype for name in names} == {rounded[name].dtype for name in names} == {torch.bfloat16}
    )

    def moved(after: dict[str, torch.Tensor]) -> float:
        return sum(float((after[name].float() - before[name].float()).abs().sum()) for name in names)

    # by hand: the float32 training's result, rounded once
    expected = moved({name: exact[name].bfloat16() for name in names})
    assert expected > 0.2 * moved(exact)
    assert moved(rounded) == pytest.approx(expected, rel=0.1)


def test_full_in_bfloat16_resumes_bit_for_bit(
    half: Path, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.named("full", steps=6, batch=4, draws=2, lr=2.5e-5, ema=0.9)
    run(load_policy(half), demos, tmp_path / "whole", recipe)
    policy, calls = load_policy(half), iter(range(100))
    loss = policy.loss

    def stop(*given: object) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return loss(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(policy, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        run(policy, demos, tmp_path / "stopped", recipe)
    run(load_policy(half), demos, tmp_path / "stopped", recipe)
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_weights_precision_takes_what_it_cannot_hold() -> None:
    """By hand: from 1 on, bfloat16 goes in steps of 2^-7; less than half of one is lost, one is not."""
    one, step = torch.ones(1), torch.tensor([2.0**-7])
    assert rounded_off([(one.bfloat16(), step / 4)]) == 1
    assert rounded_off([(one.bfloat16(), step)]) == 0
    assert rounded_off([(one.bfloat16(), step / 4), (one.bfloat16(), step)]) == pytest.approx(17**-0.5)
    assert rounded_off([(one, step / 4)]) == rounded_off([]) == 0


@pytest.mark.parametrize("name", ["aligned", "lora"])
def test_a_training_says_how_much_of_it_its_merge_lost(
    half: Path, demos: Demonstrations, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(SMALL_STEPS, name=name)
    (note,) = run(load_policy(half), demos, tmp_path / "job", recipe, progress=True).summary["notes"]
    assert note in capsys.readouterr().err
    said = re.fullmatch(r"merged into .* (\d+)% of the trained change was rounded off: .*", note)
    assert said
    if name == "aligned":  # by hand: the changes as trained, and as they are found in the merged file
        trained = load_file(tmp_path / "job/checkpoint.safetensors")
        before, after = load_file(half / "model.safetensors"), weights(tmp_path / "job")
        lost = whole = 0.0
        for layer, head in ((0, 3), (2, 0)):
            for projection, part in (
                ("q", np.s_[8 * head : 8 * head + 8]),
                ("o", np.s_[:, 8 * head : 8 * head + 8]),
            ):
                file = f"{EXPERT}.{layer}.self_attn.{projection}_proj.weight"
                (change,) = (
                    t
                    for n, t in trained.items()
                    if n.startswith("parameter/") and f"{layer}.self_attn.{projection}_proj" in n
                )
                kept = (after[file].float() - before[file].float())[part]
                lost += float((kept - change).square().sum())
                whole += float(change.square().sum())
        assert int(said[1]) == pytest.approx(100 * (lost / whole) ** 0.5, abs=2)


def test_nothing_is_said_of_a_merge_that_loses_nothing(
    tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    tuned = run(load_policy(tiny_policy_dir), demos, tmp_path, replace(SMALL_STEPS, name="aligned"))
    assert tuned.summary["notes"] == []
