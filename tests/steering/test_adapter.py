"""Promises of adapters: PEFT alone, on the base alone, acts as the finetuned policy; and nothing else changes."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from steering.adapter import Adapter, kept_factors, put_on
from steering.finetune import CHECKPOINT, finetune
from steering.headset import HeadSet
from steering.recipes import Recipe
from steering.slices import attach
from steering.verify import chunks_of

HEADS = (Head("expert", 0, 1), Head("expert", 0, 3), Head("expert", 2, 0), Head("vlm", 1, 2))
D_HEAD = 8  # the random policy's
QUERY = "model.dit.layers.{}.self_attn.q_proj"


def changed(directory: Path, heads: Iterable[Head], form: str = "full", rank: int = 2) -> Policy:
    """The policy with random head slices, merged."""
    policy = load_policy(directory)
    slices = attach(policy, heads, form=form, rank=rank)  # type: ignore[arg-type]
    randomise(slices.parameters())
    slices.merge()
    return policy


def randomise(parameters: Iterable[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.05, generator=generator)


@pytest.fixture(scope="module")
def base(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir)


def by_peft_alone(base_directory: Path, adapter: Path) -> Policy:
    policy = load_policy(base_directory)
    peft.PeftModel.from_pretrained(policy.module, str(adapter)).eval()
    return policy


def test_head_slices_are_a_lora(
    tiny_policy_dir: Path, observations: list[Observation], tmp_path: Path
) -> None:
    base, sliced = load_policy(tiny_policy_dir), load_policy(tiny_policy_dir)
    slices = attach(sliced, HEADS)
    randomise(slices.parameters())
    unmerged = chunks_of(sliced, observations, 0)
    slices.merge()
    Adapter.between(base, sliced).save(tmp_path / "adapter", "base")

    ours = chunks_of(sliced, observations, 0)
    theirs = chunks_of(by_peft_alone(tiny_policy_dir, tmp_path / "adapter"), observations, 0)
    assert np.abs(theirs - ours).max() <= 1e-6
    assert np.abs(theirs - unmerged).max() <= 1e-6
    assert np.abs(theirs - chunks_of(base, observations, 0)).max() > 1e-2

    # A rank a head dimension, in the heads' rows and columns and nowhere else.
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    ranks = {name: config["rank_pattern"].get(name, config["r"]) for name in config["target_modules"]}
    assert ranks[QUERY.format(0)] == 2 * D_HEAD
    assert ranks[QUERY.format(2)] == D_HEAD
    assert len(ranks) == 6, "query and output projections of three layers"
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    up = tensors[f"base_model.model.{QUERY.format(0)}.lora_B.weight"]
    others = [row for row in range(4 * D_HEAD) if row // D_HEAD not in (1, 3)]
    assert not up[others].any()
    down = tensors["base_model.model.model.dit.layers.2.self_attn.o_proj.lora_A.weight"]
    assert not down[:, D_HEAD:].any()


def test_merging_with_peft_gives_the_merged_weights_and_touches_no_other_row(
    tiny_policy_dir: Path, base: Policy, tmp_path: Path
) -> None:
    tuned = changed(tiny_policy_dir, HEADS)
    Adapter.between(base, tuned).save(tmp_path, "base")
    merged = dict(put_on(load_policy(tiny_policy_dir), tmp_path).merge_and_unload().named_parameters())
    before = dict(base.module.named_parameters())
    for name, weight in tuned.module.named_parameters():
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=2e-7)
        untouched = weight == before[name]
        assert torch.equal(merged[name][untouched], before[name][untouched]), name


@pytest.mark.parametrize(
    ("recipe", "rank"),
    [
        (Recipe.named("aligned", form="low-rank", rank=3, steps=3), {QUERY.format(0): 6, QUERY.format(2): 3}),
        (
            Recipe.named("lora", lora_rank=4, steps=3),
            {QUERY.format(0): 4, QUERY.format(2): 4},
        ),
    ],
    ids=["low-rank slices", "lora"],
)
def test_a_low_rank_training_exports_its_own_factors(
    recipe: Recipe,
    rank: dict[str, int],
    tiny_policy_dir: Path,
    demos: Demonstrations,
    observations: list[Observation],
    tmp_path: Path,
) -> None:
    trained = load_policy(tiny_policy_dir)
    heads = HeadSet(HEADS) if recipe.name == "aligned" else None
    done = finetune(
        trained,
        demos,
        replace(recipe, batch=2, draws=1, lr=0.05),
        tmp_path / "job",
        heads=heads,
        progress=False,
    )
    base = load_policy(tiny_policy_dir)
    kept = kept_factors(tmp_path / "job" / CHECKPOINT, base, HEADS)
    found = Adapter.between(base, done.policy, kept)
    assert {name: found.changes[name].rank for name in rank} == rank
    found.save(tmp_path / "adapter", "base")
    theirs = chunks_of(by_peft_alone(tiny_policy_dir, tmp_path / "adapter"), observations, 0)
    assert np.abs(theirs - chunks_of(done.policy, observations, 0)).max() <= 1e-6

    # Half way back to the base, as `retain` goes: the same factors at half the scale.
    with torch.no_grad():
        for old, new in zip(base.module.parameters(), done.policy.module.parameters(), strict=True):
            new.copy_((old + new) / 2)
    half = Adapter.between(base, done.policy, kept)
    assert {name: half.changes[name].rank for name in rank} == rank


def test_factors_that_do_not_explain_the_policy_are_not_used(
    tiny_policy_dir: Path, base: Policy, tmp_path: Path
) -> None:
    tuned = changed(tiny_policy_dir, HEADS)
    wrong = {name: replace(c, down=c.down + 1e-3) for name, c in Adapter.between(base, tuned).changes.items()}
    found = Adapter.between(base, tuned, wrong)
    for name, change in found.changes.items():
        after, before = (p.module.get_submodule(name).weight for p in (tuned, base))
        torch.testing.assert_close(change.change, (after - before), rtol=0, atol=1e-8)


def test_modules_that_changed_all_over_are_kept_whole(
    tiny_policy_dir: Path, base: Policy, observations: list[Observation], tmp_path: Path
) -> None:
    tuned = changed(tiny_policy_dir, HEADS[:1])
    norm = next(n for n, m in tuned.module.named_modules() if n.endswith("layers.1.input_layernorm"))
    around = tuned.module.embed_action_time
    randomise([around.action_in_proj.weight, around.state_proj.bias])
    randomise([tuned.module.get_submodule(norm).weight])
    found = Adapter.between(base, tuned)
    assert set(found.whole) == {"embed_action_time.action_in_proj", "embed_action_time.state_proj", norm}
    found.save(tmp_path, "base")
    theirs = chunks_of(by_peft_alone(tiny_policy_dir, tmp_path), observations, 0)
    assert np.abs(theirs - chunks_of(tuned, observations, 0)).max() <= 1e-6


def test_what_has_no_adapter_is_said(
    tiny_policy_dir: Path, other_policy_dir: Path, base: Policy, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="equals its base"):
        Adapter.between(base, load_policy(tiny_policy_dir))
    with pytest.raises(UsageError, match="would be the whole policy: export it merged"):
        Adapter.between(base, load_policy(other_policy_dir))
    with pytest.raises(UsageError, match="is not a PEFT adapter"):
        put_on(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "card.json").write_text(json.dumps({"base": {"fingerprint": "pi0-other"}}))
    with pytest.raises(UsageError, match=f"is for base pi0-other, but this policy is {base.fingerprint}"):
        put_on(base, tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(UsageError, match=r"cut\.safetensors is broken"):
        kept_factors(tmp_path / "cut.safetensors", base, HEADS)
    assert kept_factors(tmp_path / "none.safetensors", base, HEADS) == {}
