"""Promises of adapters under LeRobot's names: the same numbers, on a base that LeRobot reads, which is the training's.

That LeRobot's `make_policy` acts alike with them is promised in tests/lerobot/test_lerobot_pi0.py.
"""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from export_kit import answer_here
from safetensors.torch import load_file
from training_kit import HEADS, SMALL

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Observation, load_policy
from steering import export as export_module
from steering.export import Names, export, export_adapter, export_base, export_job
from steering.finetune import finetune

BASE = {"base": {"source": "random", "fingerprint": "pi0-base"}}


@pytest.fixture
def job(tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path) -> Path:
    finetune(
        load_policy(tiny_policy_dir), demos, SMALL, tmp_path / "jobs/aligned", heads=HEADS, progress=False
    )
    return tmp_path / "jobs/aligned"


def test_an_adapter_has_lerobots_names(
    job: Path, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    """The same numbers as the adapter under transformers' names; verified in a fresh process on the base."""
    base = load_policy(tiny_policy_dir)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_module, "ask_fresh_process", answer_here)
        export_base(base, tmp_path / "base-lerobot", demos, form="lerobot")
        export_job(job, tmp_path / "peft", demos, form="peft")
    names = Names(base=str(tmp_path / "base-lerobot"))
    done = export_job(job, tmp_path / "adapter", demos, form="lerobot-peft", names=names)
    assert done.difference <= 1e-6
    assert done.fingerprint == load_policy(job / "policy").fingerprint
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert config.base_model_name_or_path == str(tmp_path / "base-lerobot")
    expert = "model.paligemma_with_expert.gemma_expert.model.layers"
    assert config.target_modules == {
        f"{expert}.{layer}.self_attn.{part}" for layer in (0, 2) for part in ("q_proj", "o_proj")
    }
    theirs, ours = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("adapter", "peft"))
    start = "base_model.model."
    renamed = {
        name.replace(f"{start}model.dit.", f"{start}model.paligemma_with_expert.gemma_expert.model."): tensor
        for name, tensor in ours.items()
    }
    assert theirs.keys() == renamed.keys()
    assert all(torch.equal(theirs[name], renamed[name]) for name in theirs)
    assert json.loads((tmp_path / "adapter/config.json").read_text())["use_peft"] is True
    assert (tmp_path / "adapter/policy_preprocessor.json").is_file()


@pytest.mark.usefixtures("at_once")
def test_whole_modules_are_renamed_too_and_the_base_is_named_by_where_it_came_from(
    tiny_policy_dir: Path, observations: list[Observation], tmp_path: Path
) -> None:
    """A base that was loaded from LeRobot's layout needs no other name."""
    export(load_policy(tiny_policy_dir), tmp_path / "base", observations, BASE, form="lerobot")
    base, policy = (load_policy(tmp_path / "base") for _ in range(2))
    with torch.no_grad():
        policy.out_projection("vlm", 1).weight[:, :8].add_(0.1)
        module: Any = policy.module
        module.embed_action_time.state_proj.weight.mul_(2)
        module.action_out_proj.bias.add_(0.1)
    export_adapter(base, policy, tmp_path / "adapter", observations, BASE, form="lerobot-peft")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.action_out_proj", "model.state_proj"]
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert torch.equal(stored["base_model.model.model.action_out_proj.bias"], module.action_out_proj.bias)


@pytest.mark.usefixtures("at_once")
def test_an_adapter_needs_its_own_base_in_lerobots_layout(
    job: Path, other_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="name a base that it reads with --lerobot-base"):
        export_job(job, tmp_path / "adapter", demos, form="lerobot-peft")
    export_base(load_policy(other_policy_dir), tmp_path / "other", demos, form="lerobot")
    names = Names(base=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="other does not hold the weights of"):
        export_job(job, tmp_path / "adapter", demos, form="lerobot-peft", names=names)
    with pytest.raises(UsageError, match=r"--lerobot-base \./gone: no such directory, and no hub id"):
        export_job(job, tmp_path / "adapter", demos, form="lerobot-peft", names=Names(base="./gone"))
    with pytest.raises(UsageError, match="is of what a training changed"):
        export_base(load_policy(other_policy_dir), tmp_path / "none", demos, form="lerobot-peft")
    assert not (tmp_path / "adapter").exists()
    done = export_job(
        job, tmp_path / "adapter", demos, form="lerobot-peft", names=Names(base="lerobot/pi0_base")
    )
    assert done.notes[0].startswith(
        "LeRobot loads the base lerobot/pi0_base from the hub: it was not compared"
    )


@pytest.mark.usefixtures("at_once")
def test_changed_words_are_refused_in_an_adapter(
    tiny_policy_dir: Path, observations: list[Observation], tmp_path: Path
) -> None:
    base, policy = (load_policy(tiny_policy_dir) for _ in range(2))
    with torch.no_grad():
        policy.out_projection("expert", 0).weight[0].add_(1)
        module: Any = policy.module
        module.model.vlm.language_model.embed_tokens.weight.mul_(2)
    with pytest.raises(
        UsageError, match=r"embed_tokens, which LeRobot's pi0 has under two names.*--format lerobot"
    ):
        export_adapter(base, policy, tmp_path / "adapter", observations, BASE, form="lerobot-peft")
