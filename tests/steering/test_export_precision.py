"""Promises of adapters in bfloat16: compared in float32, where they must be the training's, and said to be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from random_policy import build_half
from training_kit import HEADS

from interp.demos import Demonstrations
from interp.errors import Failure
from interp.policies import Observation, Policy, load_policy
from steering.adapter import Adapter, LowRank
from steering.export import ExportError, Names, export, export_adapter, export_job
from steering.finetune import finetune
from steering.pi0_adapter import in_transformers_names
from steering.recipes import Recipe
from steering.retain import retain
from steering.slices import attach
from steering.verify import chunks_of

BASE = {"base": {"source": "random", "fingerprint": "pi0-base"}}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["as released", "all"])
def half(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Towers in bfloat16, projections in float32 or not."""
    return build_half(tmp_path / "half", request.param)


def tuned(directory: Path) -> Policy:
    policy = load_policy(directory)
    slices = attach(policy, HEADS.heads)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.normal_(std=0.1, generator=generator)
    slices.merge()
    return policy


def merged_in_float32(policy: Policy, frames: list[Observation]) -> np.ndarray:
    """By hand: the weights that a training merged, upcast."""
    policy.module.float()
    return chunks_of(policy, frames, 0)


def by_peft_in_float32(base: Path, adapter: Path, frames: list[Observation]) -> np.ndarray:
    """By hand: the base upcast first, the adapter then put on it by PEFT alone."""
    policy = load_policy(base)
    policy.module.float()
    with in_transformers_names(adapter) as readable:
        peft.PeftModel.from_pretrained(policy.module, str(readable)).eval()
    return chunks_of(policy, frames, 0)


def test_an_adapter_in_bfloat16_is_compared_in_float32_by_a_fresh_process(
    half: Path, observations: list[Observation], tmp_path: Path
) -> None:
    base, policy = load_policy(half), tuned(half)
    before = chunks_of(policy, observations, 0)
    done = export_adapter(base, policy, tmp_path / "adapter", observations, BASE)
    assert np.array_equal(chunks_of(policy, observations, 0), before)  # the policy itself stays as it is

    expected = merged_in_float32(policy, observations)
    found = by_peft_in_float32(half, tmp_path / "adapter", observations)
    tolerance = 2e-5 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert done.difference <= tolerance
    assert done.precision == "float32"

    # What a robot gets that puts it on the base as it is: another rounding, of which the card says how much.
    adapted = load_policy(half)
    peft.PeftModel.from_pretrained(adapted.module, str(tmp_path / "adapter")).eval()
    apart = float(np.abs(chunks_of(adapted, observations, 0) - before).max())
    assert apart > tolerance
    card = json.loads((tmp_path / "adapter/card.json").read_text())
    assert card["verified"] == {
        "frames": len(observations),
        "largest_difference": done.difference,
        "precision": "float32",
    }
    assert f"as stored, actions differ by up to {apart:.1e}" in card["notes"][0]
    readme = (tmp_path / "adapter/README.md").read_text()
    assert f"within {done.difference:.1e} in float32" in readme
    assert f"- note: {card['notes'][0]}" in readme


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.named("aligned"),
        Recipe.named("aligned", form="low-rank", rank=2),
        Recipe.named("lora", lora_rank=4),
    ],
    ids=["aligned", "low-rank", "lora"],
)
def test_every_kind_of_training_in_bfloat16_exports_as_an_adapter(
    recipe: Recipe, half: Path, demos: Demonstrations, observations: list[Observation], tmp_path: Path
) -> None:
    job, base = tmp_path / "jobs/trained", load_policy(half)
    recipe = replace(recipe, steps=3, warmup=0, batch=2, draws=1, lr=0.05)
    finetune(base, demos, recipe, job, heads=None if recipe.name == "lora" else HEADS, progress=False)
    retain(job, [0.5])
    for name in ("trained", "trained-retain-0.5"):
        done = export_job(job.with_name(name), tmp_path / "out" / name, demos, form="peft")
        assert done.precision == "float32"
        # Its factors are those before merging rounded them: the merged policy lies as far as that rounding takes it.
        merged = merged_in_float32(load_policy(job.with_name(name) / "policy"), observations)
        found = by_peft_in_float32(half, tmp_path / "out" / name, observations)
        start = load_policy(half)
        start.module.float()
        moved = np.abs(merged - chunks_of(start, observations, 0)).max()
        assert np.abs(found - merged).max() < 0.1 * moved


@pytest.mark.usefixtures("at_once")
def test_lerobots_adapter_in_bfloat16_is_too(
    half: Path, observations: list[Observation], tmp_path: Path
) -> None:
    base, policy = load_policy(half), tuned(half)
    export(base, tmp_path / "base", observations, BASE, form="lerobot")
    names = Names(base=str(tmp_path / "base"))
    done = export_adapter(
        base, policy, tmp_path / "out", observations, BASE, form="lerobot-peft", names=names
    )
    assert done.precision == "float32"
    found = by_peft_in_float32(half, tmp_path / "out", observations)
    np.testing.assert_allclose(found, merged_in_float32(policy, observations), rtol=2e-5, atol=2e-5)


# ---- faults


@pytest.mark.usefixtures("at_once")
def test_a_wrong_adapter_in_bfloat16_is_refused(
    half: Path, observations: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By far less than what bfloat16 rounds: on its way to the disk, or found wrong."""
    base, policy = load_policy(half), tuned(half)
    save, between = Adapter.save, Adapter.between

    def wrong(found: Adapter, factor: float) -> Adapter:
        return replace(found, changes={n: c.scaled(factor) for n, c in found.changes.items()})

    def corrupting(self: Adapter, directory: Path, name: str) -> None:
        save(wrong(self, 1.001), directory, name)

    with monkeypatch.context() as patched:
        patched.setattr(Adapter, "save", corrupting)
        with pytest.raises(ExportError, match="differs from the one in memory, both in float32, by"):
            export_adapter(base, policy, tmp_path / "out", observations, BASE)
    monkeypatch.setattr(Adapter, "between", lambda *arguments: wrong(between(*arguments), 1.05))
    with pytest.raises(Failure, match="this is no adapter of it"):
        export_adapter(base, policy, tmp_path / "out", observations, BASE)
    assert not (tmp_path / "out").exists()
    assert {p.dtype for p in policy.module.model.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]


def test_factors_that_are_not_the_trainings_are_not_used_in_bfloat16(half: Path) -> None:
    """Though every difference is smaller than what the largest weight of its layer rounds."""
    base, policy = load_policy(half), load_policy(half)
    linear: Any = policy.out_projection("expert", 0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        linear.weight[0, 0] = 4.0
        before: Any = base.out_projection("expert", 0)
        before.weight[0, 0] = 4.0
        linear.weight[:, :8] += 0.01 * torch.randn(linear.weight[:, :8].shape, generator=generator)
    name = next(n for n, m in policy.module.named_modules() if m is linear)
    change = Adapter.between(base, policy).changes[name]
    other = LowRank(change.down, change.up + 0.005 * torch.randn(change.up.shape, generator=generator))
    found = Adapter.between(base, policy, {name: other}).changes[name]
    torch.testing.assert_close(found.change, linear.weight.float() - before.weight.float())
