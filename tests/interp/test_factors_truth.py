"""Factor scores against ground truth: policies whose one head was built to carry the instruction, or to carry nothing.

The planted policies are random ones, edited so that the words live in two dimensions of the vlm's stream that nothing
reads but one channel of one layer's values, and only one head writes that channel on.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_policy import random_observations

from interp.factors.effects import Method, measure
from interp.factors.pairs import FACTORS, FactorPairs, Kind, Twin, emptied
from interp.factors.profile import profile
from interp.factors.scores import factor_scores, kind_scores, note
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from interp.scores import HeadScores

WORDS = slice(0, 2)
CHANNEL = 0
PROMPTS = {
    "pick up the red cube": "put the blue bowl in",
    "press the button": "push the cube",
    "put the blue cube in the bowl": "pick the red cube up the button",
}


def twins(factor: str, n: int = 6) -> FactorPairs:
    """Pairs of random observations that differ in images, in words of the same length, or in the state."""
    clean, other = random_observations(n), random_observations(n, seed=1)
    changed: dict[str, list[Observation]] = {
        "visual": [replace(a, images=b.images) for a, b in zip(clean, other, strict=True)],
        "linguistic": [replace(a, instruction=PROMPTS[a.instruction]) for a in clean],
        "physical": [replace(a, state=b.state) for a, b in zip(clean, other, strict=True)],
    }
    kinds: list[Kind] = ["semantic", "nuisance"]
    return FactorPairs(
        factor,
        tuple(
            Twin(a, b, edit=f"other-{factor}", kind=kinds[at % 3 == 2], group=at)
            for at, (a, b) in enumerate(zip(clean, changed[factor], strict=True))
        ),
        "stand-in",
    )


def plant(directory: Path, head: Head) -> Policy:
    """A policy in which `head` alone carries the words to the action."""
    policy = load_policy(directory)
    model, generator = policy.module.model, torch.Generator().manual_seed(5)
    vlm = model.vlm.language_model
    with torch.no_grad():
        # Words differ in two dimensions of the stream only, and by angle, so that no norm tells them apart.
        words = vlm.embed_tokens.weight
        angles = torch.arange(len(words)) * 2.4
        words.zero_()
        words[:, WORDS] = torch.stack([angles.cos(), angles.sin()], dim=1)
        model.vlm.multi_modal_projector.linear.weight[WORDS] = 0
        model.vlm.multi_modal_projector.linear.bias[WORDS] = 0
        for index, layer in enumerate(vlm.layers):
            attention = layer.self_attn
            for reads in (layer.mlp.gate_proj, layer.mlp.up_proj):
                reads.weight[:, WORDS] = 0
            for reads in (attention.q_proj, attention.k_proj, attention.v_proj):
                reads.weight[:, WORDS] = 0
            for writes in (layer.mlp.down_proj, attention.o_proj):
                writes.weight[WORDS] = 0
            if index == head.layer:
                attention.v_proj.weight[CHANNEL] = 0
                attention.v_proj.weight[CHANNEL, WORDS] = 10 * torch.randn(2, generator=generator)
        d_head = policy.spec.tower("vlm").d_head
        for tower in ("vlm", "expert"):
            out = policy.out_projection(tower, head.layer).weight
            for index in range(policy.spec.tower(tower).heads):
                if (tower, index) != (head.tower, head.index):
                    out[:, index * d_head + CHANNEL] = 0
    return policy


def silence(policy: Policy, head: Head) -> None:
    """Zero the head's columns of the output projection."""
    d_head = policy.spec.tower(head.tower).d_head
    with torch.no_grad():
        columns = slice(head.index * d_head, (head.index + 1) * d_head)
        policy.out_projection(head.tower, head.layer).weight[:, columns] = 0


@pytest.mark.parametrize("method", ["patching", "atp"])
@pytest.mark.parametrize("head", ["vlm.L0H2", "vlm.L1H3", "expert.L0H1", "expert.L1H2"])
def test_the_head_that_alone_carries_the_words_comes_first(
    tiny_policy_dir: Path, head: str, method: Method
) -> None:
    planted = Head.parse(head)
    policy = plant(tiny_policy_dir, planted)
    effects = measure(policy, twins("linguistic"), method=method, towers=["vlm", "expert"])
    scores = factor_scores(policy, effects)
    tower = scores.towers[planted.tower]
    assert scores.best(1, planted.tower) == [planted]
    assert scores.score(planted) == np.nanmax([np.nanmax(each.value) for each in scores.towers.values()])
    if method == "patching":
        assert scores.score(planted) == pytest.approx(1, abs=1e-3), "all of the effect goes through it"
        assert tower.low[planted.layer, planted.index] == pytest.approx(1, abs=1e-3)
    seen = factor_scores(policy, measure(policy, twins("visual"), method=method))
    assert seen.score(planted) < 0.5, "the images do not go through it alone"


@pytest.mark.parametrize("head", ["vlm.L1H3", "expert.L1H2"])
def test_without_the_planted_head_other_words_change_nothing_and_no_head_is_scored(
    tiny_policy_dir: Path, head: str
) -> None:
    policy = plant(tiny_policy_dir, Head.parse(head))
    pairs = twins("linguistic")
    assert not measure(policy, pairs, method="atp").silent
    silence(policy, Head.parse(head))
    effects = measure(policy, pairs)
    assert effects.size().value == pytest.approx(0, abs=1e-5)
    scores = factor_scores(policy, effects)
    assert all(np.isnan(tower.value).all() for tower in scores.towers.values())
    assert not scores.ranked("expert")
    # Without any words there is less to attend to, which this policy does notice: deaf to words, not to their number.
    assert not effects.empty.silent
    assert not effects.blind
    assert "no effect to have a share of" in note(effects)
    found = profile({"visual": measure(policy, twins("visual"), method="atp"), "linguistic": effects})
    assert np.nanmax(found.share[:, found.factors.index("linguistic")]) == 0


def test_a_policy_that_ignores_its_prompt_is_reported_as_prompt_blind(tiny_policy_dir: Path) -> None:
    policy = load_policy(tiny_policy_dir)
    with torch.no_grad():
        for layer in range(policy.spec.tower("expert").layers):
            policy.out_projection("expert", layer).weight.zero_()  # it acts with its eyes closed, too
    effects = measure(policy, twins("linguistic"))
    assert effects.blind
    assert note(effects).startswith("prompt-blind: other words move the action by")
    scores = factor_scores(policy, effects)
    assert scores.settings["control"]["blind"]
    assert scores.settings["control"]["empty_prompt"]["value"] == 0
    assert not scores.ranked("expert")
    assert HeadScores.from_json(scores.to_json()).settings["note"] == scores.settings["note"]


@pytest.mark.parametrize("method", ["patching", "atp"])
def test_a_head_that_writes_nothing_scores_nothing_in_every_factor(
    tiny_policy_dir: Path, method: Method
) -> None:
    policy = load_policy(tiny_policy_dir)
    dumb = [Head("vlm", 0, 1), Head("vlm", 1, 2), Head("expert", 0, 0), Head("expert", 2, 3)]
    for head in dumb:
        silence(policy, head)
    effects = {factor: measure(policy, twins(factor), method=method) for factor in FACTORS}
    for factor, each in effects.items():
        scores = factor_scores(policy, each)
        # Rows of one batch: rounding may differ between them, nothing else does.
        assert [scores.score(head) for head in dumb] == pytest.approx([0] * 4, abs=1e-6), factor
        assert np.nanmax(np.abs(scores.towers["expert"].value)) > 0.01
    found = profile(effects)
    assert [found.strength[found.heads.index(head)] for head in dumb] == pytest.approx([0] * 4, abs=1e-5)
    for kind in ("semantic", "nuisance"):
        scores = kind_scores(policy, effects.values(), kind)
        assert [scores.score(head) for head in dumb] == pytest.approx([0] * 4, abs=1e-6)


def test_the_control_is_the_same_observation_without_its_words() -> None:
    pairs = twins("linguistic").pairs
    control = emptied(pairs)
    assert all(not observation.instruction for observation in control.corrupt)
    assert control.clean == pairs.clean
    assert all(a.images is b.images for a, b in zip(control.clean, control.corrupt, strict=True))
