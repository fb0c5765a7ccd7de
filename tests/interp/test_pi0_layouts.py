"""Promises of pi0's key layouts: every tensor of the real network has one name in each, and comes back from it."""

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import PI0ForConditionalGeneration

from interp.errors import UsageError
from interp.policies.pi0_layouts import LAYOUTS, TWIN, Layout, from_transformers, layout_of, to_transformers
from testbed import TINY_PI0


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Of the real class."""
    return set(PI0ForConditionalGeneration.from_pretrained(TINY_PI0, local_files_only=True).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_has_one_name_and_comes_back(names: set[str], layout: Layout) -> None:
    there = {name: from_transformers(name, layout) for name in names}
    assert len(set(there.values())) == len(names)
    assert {to_transformers(other) for other in there.values()} == names
    assert all(to_transformers(other) == name for name, other in there.items())
    assert layout_of(there.values()) == layout


def test_what_transformers_saves_is_the_saved_layout(names: set[str]) -> None:
    with safe_open(f"{TINY_PI0}/model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert stored == {from_transformers(name, "saved") for name in names}
    assert layout_of(stored) == "saved"


def test_every_name_that_lerobots_class_saves_is_known(names: set[str]) -> None:
    """Of a tiny network; the table is compared with the real class in tests/lerobot/test_pi0_loading.py."""
    table = json.loads((Path(__file__).parents[1] / "lerobot/pi0_keys.json").read_text())
    ours = {to_transformers(name) for name in table}
    assert len(ours) == len(table)
    layers = re.compile(r"layers\.\d+")
    # Layer for layer, what transformers' class has: the numbers of layers differ.
    assert {layers.sub("layer", str(name)) for name in ours} == {layers.sub("layer", name) for name in names}
    assert {from_transformers(str(to_transformers(name)), "lerobot") for name in table} == set(table)
    assert layout_of(table) == "lerobot"


def test_names_are_those_that_openpi_and_lerobot_publish() -> None:
    """Written out of openpi's convert_jax_model_to_pytorch.py and LeRobot's modeling_pi0.py."""
    both = "paligemma_with_expert"
    published = {
        "model.vlm.vision_tower.encoder.layers.26.self_attn.out_proj.bias": (
            f"{both}.paligemma.model.vision_tower.vision_model.encoder.layers.26.self_attn.out_proj.bias"
        ),
        "model.vlm.multi_modal_projector.linear.weight": (
            f"{both}.paligemma.model.multi_modal_projector.linear.weight"
        ),
        "model.vlm.language_model.norm.weight": f"{both}.paligemma.model.language_model.norm.weight",
        "model.vlm.language_model.embed_tokens.weight": f"{both}.paligemma.lm_head.weight",
        "model.dit.layers.3.mlp.up_proj.weight": f"{both}.gemma_expert.model.layers.3.mlp.up_proj.weight",
        "model.dit.embed_tokens.weight": f"{both}.gemma_expert.lm_head.weight",
        "embed_action_time.action_time_mlp_in.weight": "action_time_mlp_in.weight",
        "action_out_proj.bias": "action_out_proj.bias",
    }
    for name, openpi in published.items():
        assert from_transformers(name, "openpi") == openpi
        assert from_transformers(name, "lerobot") == f"model.{openpi}"


def test_both_twins_are_the_word_embeddings() -> None:
    words = "model.vlm.language_model.embed_tokens.weight"
    for layout, (given, other) in TWIN.items():
        assert from_transformers(words, layout) == given
        assert to_transformers(given) == to_transformers(other) == words


def test_what_is_no_pi0_is_refused_with_the_reason() -> None:
    assert to_transformers("encoder.weight") is None
    assert to_transformers("model.paligemma_with_expert.other.weight") is None
    with pytest.raises(UsageError, match=r"encoder\.weight"):
        layout_of(["encoder.weight"])
    with pytest.raises(UsageError, match=r"pi0\.5"):
        layout_of(["time_mlp_in.weight", "paligemma_with_expert.paligemma.lm_head.weight"])
    with pytest.raises(UsageError, match=r"before 0\.4"):
        layout_of(["normalize_inputs.buffer_observation_state.mean", "model.state_proj.weight"])
    with pytest.raises(UsageError, match="no tensor of"):
        from_transformers("encoder.weight", "openpi")
    with pytest.raises(UsageError, match="layout"):
        from_transformers("action_out_proj.bias", "jax")  # type: ignore[arg-type]
