"""Promises of an export: what is in the directory does what the policy does, and says where it came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import PI0ForConditionalGeneration

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from steering import export as export_module
from steering.export import ExportError, export, export_job
from steering.finetune import finetune
from steering.headset import HeadSet
from steering.recipes import Recipe
from steering.retain import retain
from steering.slices import attach
from steering.verify import Answer, chunks_of

HEADS = HeadSet((Head("expert", 0, 3), Head("expert", 2, 0)))
PROVENANCE: dict[str, Any] = {
    "base": {"source": "tiny-pi0", "fingerprint": "pi0-base"},
    "demonstrations": {"fingerprint": "demos-1", "frames": 21, "episodes": [{"index": 0}]},
    "recipe": {"name": "aligned", "steps": 250},
    "heads": [str(head) for head in HEADS.heads],
    "trainable_parameters": {"expert query rows": 768, "expert output columns": 768},
    "results": [
        {"task": "pick-cube", "arm": "aligned", "n": 100, "success_rate": 0.61, "wilson": [0.51, 0.70]},
    ],
}


@pytest.fixture
def policy(tiny_policy_dir: Path) -> Policy:
    """A policy whose weights are on no disk: two heads were changed and merged."""
    policy = load_policy(tiny_policy_dir)
    slices = attach(policy, HEADS.heads)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    slices.merge()
    return policy


def test_the_export_acts_as_the_policy_does_and_carries_its_card(
    policy: Policy, demos: Demonstrations, tiny_policy_dir: Path, tmp_path: Path
) -> None:
    frames = [demos.observation(i) for i in (0, 8, 20)]
    done = export(policy, tmp_path / "out" / "tuned", frames, PROVENANCE)
    assert done.difference <= 1e-6
    again = load_policy(tmp_path / "out" / "tuned")
    assert again.fingerprint == done.fingerprint != load_policy(tiny_policy_dir).fingerprint
    assert np.array_equal(chunks_of(again, frames, 0), chunks_of(policy, frames, 0))
    assert not np.allclose(
        chunks_of(load_policy(tiny_policy_dir), frames, 0), chunks_of(policy, frames, 0), atol=1e-3
    )
    card = json.loads((tmp_path / "out" / "tuned" / "card.json").read_text())
    assert card["policy"] == done.fingerprint
    assert card["verified"] == {"frames": 3, "largest_difference": done.difference}
    assert {key: card[key] for key in PROVENANCE} == PROVENANCE
    readme = (tmp_path / "out" / "tuned" / "README.md").read_text()
    for fact in (
        "tiny-pi0",
        "aligned, 250 steps",
        "expert.L0H3",
        "1,536",
        "| pick-cube | in-domain | aligned | 100 | 61% | 51% to 70% |",
    ):
        assert fact in readme
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tuned"]

    # transformers alone reads it too
    module = PI0ForConditionalGeneration.from_pretrained(tmp_path / "out" / "tuned").eval()
    batch, noise = policy.batch(frames), policy.noise(3, 0)
    keys = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "state")
    actions = policy.unnormalise_actions(
        module.sample_actions(noise=noise, **{k: batch[k] for k in keys})[..., :7]
    )
    torch.testing.assert_close(actions, policy.sample(batch, noise), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [Recipe.named("aligned"), Recipe.named("lora", lora_rank=4), Recipe.named("paper", rank=2, lora_rank=2)],
    ids=lambda recipe: recipe.name,
)
def test_every_kind_of_training_exports_as_an_adapter(
    recipe: Recipe,
    tiny_policy_dir: Path,
    demos: Demonstrations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Verified by PEFT alone on the base alone; and half way back to the base (`retain`)."""

    def answer_from_this_process(
        directory: Path, frames: list[Observation], seed: int, base: str | None, device: str
    ) -> Answer:
        assert base is not None
        policy = load_policy(base, device)
        peft.PeftModel.from_pretrained(policy.module, str(directory)).eval()
        return Answer(policy.fingerprint, chunks_of(policy, frames, seed))

    job = tmp_path / "jobs" / "trained"
    base = load_policy(tiny_policy_dir)
    heads = None if recipe.name == "lora" else HEADS
    finetune(
        base, demos, replace(recipe, steps=3, warmup=0, batch=2, draws=1), job, heads=heads, progress=False
    )
    retain(job, [0.5])
    for name in ("trained", "trained-retain-0.5"):
        if (recipe.name, name) != ("aligned", "trained"):  # one fresh process is enough: they take seconds
            monkeypatch.setattr(export_module, "ask_fresh_process", answer_from_this_process)
        ours, theirs = (
            load_policy(path).fingerprint for path in (job.with_name(name) / "policy", tiny_policy_dir)
        )
        measured = {"task": "pick-cube", "arm": "a", "n": 10, "success_rate": 0.5, "wilson": [0.2, 0.8]}
        results = [{**measured, "policy": policy} for policy in (ours, "pi0-before-it-was-repeated", theirs)]
        done = export_job(job.with_name(name), tmp_path / "out" / name, demos, form="peft", results=results)
        assert done.difference <= 1e-6
        assert done.frames == 8
        card = json.loads((tmp_path / "out" / name / "card.json").read_text())
        assert card["policy"] == ours == done.fingerprint
        assert [result["policy"] for result in card["results"]] == [ours, theirs]
        assert card["base"] == {"source": tiny_policy_dir.name, "fingerprint": card["base"]["fingerprint"]}
        for file in (tmp_path / "out" / name).iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), (
                f"{file.name} names a path of this machine"
            )
        size = (tmp_path / "out" / name / "adapter_model.safetensors").stat().st_size
        assert size < 0.6 * (job.with_name(name) / "policy/model.safetensors").stat().st_size
    config = json.loads((tmp_path / "out/trained/adapter_config.json").read_text())
    assert max(config["rank_pattern"].values(), default=config["r"]) <= max(config["r"], 16)


def test_a_job_that_cannot_be_exported_is_named(
    tiny_policy_dir: Path, other_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no finished training of that name; finetune first"):
        export_job(tmp_path / "none", tmp_path / "out", demos)
    job = tmp_path / "full"
    recipe = Recipe.named("full", steps=1, batch=2, draws=1)
    finetune(load_policy(tiny_policy_dir), demos, recipe, job, progress=False)
    with pytest.raises(UsageError, match="was trained from pi0-"):
        export_job(job, tmp_path / "out", demos, form="peft", base=other_policy_dir)
    with pytest.raises(UsageError, match="would be the whole policy: export it merged"):
        export_job(job, tmp_path / "out", demos, form="peft")
    with pytest.raises(
        UsageError, match="unknown form of an export 'onnx': known are merged, peft, lerobot, openpi"
    ):
        export_job(job, tmp_path / "out", demos, form="onnx")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_wrong_export_is_noticed_and_nothing_is_left(
    policy: Policy, observations: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one weight flips on its way to the disk."""
    save = policy.save

    def corrupting(directory: str | Path) -> None:
        save(directory)
        path = Path(directory, "model.safetensors")
        content = bytearray(path.read_bytes())
        content[-2] ^= 0x40
        path.write_bytes(content)

    monkeypatch.setattr(policy, "save", corrupting)
    with pytest.raises((ExportError, RuntimeError), match=r"differs|non-finite"):
        export(policy, tmp_path / "tuned", observations, {})
    assert not list(tmp_path.iterdir())


def test_the_old_export_survives_a_failing_new_one(
    policy: Policy, observations: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_from_this_process(
        directory: Path, frames: list[Observation], seed: int, base: str | None, device: str
    ) -> Answer:
        return Answer("pi0-1", chunks_of(load_policy(directory, device), frames, seed))

    monkeypatch.setattr(export_module, "ask_fresh_process", answer_from_this_process)  # seconds faster
    export(policy, tmp_path / "tuned", observations[:1], {})
    before = {p.name: p.read_bytes() for p in (tmp_path / "tuned").iterdir()}
    with pytest.raises(UsageError, match="tuned exists"):
        export(policy, tmp_path / "tuned", observations[:1], {})
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "readme", lambda card: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(policy, tmp_path / "tuned", observations[:1], {}, overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "tuned").iterdir()} == before
    export(policy, tmp_path / "tuned", observations[:1], {"seed": 1}, overwrite=True)
    assert json.loads((tmp_path / "tuned" / "card.json").read_text())["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["tuned"]


def test_bad_input_is_named(policy: Policy, observations: list[Observation], tmp_path: Path) -> None:
    for precious in ("thesis/chapter1.tex", "somebodys-policy/config.json"):
        file = tmp_path / precious
        file.parent.mkdir()
        file.write_text("{}")
        with pytest.raises(
            UsageError, match=r"is no export of ours \(no card.json\): it will not be overwritten"
        ):
            export(policy, file.parent, observations, {}, overwrite=True)
        assert file.exists()
    with pytest.raises(UsageError, match="at least one observation"):
        export(policy, tmp_path / "tuned", [], {})
    attach(policy, HEADS.heads)
    with pytest.raises(UsageError, match=r"unmerged head slices \(model\.dit\.layers\.0"):
        export(policy, tmp_path / "tuned", observations, {})


def test_what_robosteer_json_says_besides_is_kept(tiny_policy_dir: Path, tmp_path: Path) -> None:
    """Such as how the base was pretrained; it is no part of the policy's identity."""
    shutil.copytree(tiny_policy_dir, tmp_path / "noted")
    about = json.loads((tmp_path / "noted/robosteer.json").read_text())
    about["pretraining"] = {"episodes": 5400, "seed": 0}
    (tmp_path / "noted/robosteer.json").write_text(json.dumps(about))
    noted = load_policy(tmp_path / "noted")
    noted.save(tmp_path / "again")
    assert json.loads((tmp_path / "again/robosteer.json").read_text())["pretraining"] == about["pretraining"]
    assert noted.fingerprint == load_policy(tiny_policy_dir).fingerprint
