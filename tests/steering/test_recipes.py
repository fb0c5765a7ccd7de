"""Promises of recipes: each trains what it says and no more, counts it, and folds into or comes off the policy."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_kit import HEADS, SMALL, run, weights

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from interp.scores import HeadScores, TowerScores
from steering.headset import HeadSet, generic_heads
from steering.recipes import NAMES, PUBLISHED, Recipe, adapt, trainable

FLOW = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
LEROBOT_LORA = rf".*\.gemma_expert\..*\.self_attn\.(q|v)_proj|(model\.)?({FLOW})"  # LeRobot's default targets
PAPER_HEADS = r".*\.paligemma\..*language_model\..*layers\.0\.self_attn\.[qo]_proj"
PAPER_FFN = r".*\.paligemma\..*language_model\..*layers\.[01]\.mlp\.(gate|up|down)_proj"
PAPER_FLOW = r"(model\.)?(action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)"


@pytest.fixture
def policy(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir)


@pytest.mark.parametrize(
    ("name", "may_move"),
    [
        *(
            (name, r".*\.gemma_expert\..*\.self_attn\.[qo]_proj")
            for name in ("aligned", "random-k", "bottom-k", "generic-k", "all-heads")
        ),
        ("paper", rf"{PAPER_HEADS}|{PAPER_FFN}|{PAPER_FLOW}"),
        ("ffn-only", PAPER_FFN),
        ("lora", LEROBOT_LORA),
        ("full", ".*"),
    ],
)
def test_every_recipe_trains_and_merges_into_an_ordinary_policy(
    policy: Policy,
    tiny_policy_dir: Path,
    demos: Demonstrations,
    scores: HeadScores,
    tmp_path: Path,
    name: str,
    may_move: str,
) -> None:
    modules = {name: type(module) for name, module in policy.module.named_modules()}
    others = [replace(scores, data="another-task")]
    recipe = Recipe.named(name, steps=2, batch=4, draws=2)
    tuned = run(policy, demos, tmp_path, recipe, scores=scores, others=others)
    assert {name: type(module) for name, module in policy.module.named_modules()} == modules
    assert not trainable(tuned.policy)
    before, after = load_file(tiny_policy_dir / "model.safetensors"), weights(tmp_path)
    assert before.keys() == after.keys()
    moved = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name for name in moved if re.fullmatch(may_move, name)} == moved


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_comes_off_and_leaves_the_policy_as_it_was(
    policy: Policy, scores: HeadScores, name: str
) -> None:
    modules = [*policy.module.modules()]
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    adaptation = adapt(policy, Recipe.named(name), HEADS, scores, 0, [replace(scores, data="another-task")])
    counted = sum(p.numel() for p in trainable(policy).values())
    assert sum(adaptation.groups.values()) == counted > 0
    if name != "full":  # which trains the policy's own weights and keeps no copy of them
        with torch.no_grad():
            for parameter in trainable(policy).values():
                parameter.add_(1)
    adaptation.remove()
    assert not trainable(policy)
    assert [*policy.module.modules()] == modules
    after = policy.module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_controls_take_as_many_heads_as_the_set_has_in_each_tower(policy: Policy, scores: HeadScores) -> None:
    mixed = HeadSet((Head("expert", 2, 3), Head("expert", 2, 2), Head("vlm", 0, 0)))
    random_k = adapt(policy, Recipe.named("random-k"), mixed, seed=1)
    assert random_k.heads is not None
    assert sorted(h.tower for h in random_k.heads.heads) == ["expert", "expert", "vlm"]
    random_k.remove()
    bottom = adapt(policy, Recipe.named("bottom-k"), HEADS, scores)
    assert bottom.heads is not None
    assert [str(h) for h in bottom.heads.heads] == ["expert.L0H0", "expert.L0H1"]
    bottom.remove()
    everything = adapt(policy, Recipe.named("all-heads"), HEADS)
    assert everything.heads is not None
    assert len(everything.heads.heads) == 12


def test_paper_trains_the_vlms_heads_at_the_chosen_places(policy: Policy) -> None:
    adaptation = adapt(policy, Recipe.named("paper", rank=2, lora_rank=4), HEADS)
    assert adaptation.heads is not None
    assert [str(head) for head in adaptation.heads.heads] == ["vlm.L0H3"]  # L2H0 is in the last layer
    assert adaptation.notes == (
        "left out: vlm.L2H0, whose output reaches no action",
        "left out: the FFN of vlm layer 2, which reaches no action",
    )
    assert str(adaptation).splitlines()[-2:] == list(adaptation.notes)
    width, d_head, ffn = 48, 8, 64
    assert adaptation.groups == {
        "vlm query rows": 2 * (width + d_head),
        "vlm output columns": 2 * (width + d_head),
        "lora of the FFN, vlm": 2 * 3 * 4 * (width + ffn),  # 2 live layers; gate, up and down; rank 4
        "time MLP": (2 * width * width + width) + (width * width + width),
        "action projections": (8 * width + width) + (width * 8 + 8),
    }


def test_paper_on_dead_heads_alone_is_refused(policy: Policy) -> None:
    last = HeadSet((Head("expert", 2, 1), Head("expert", 2, 0)))
    with pytest.raises(UsageError, match=r"all chosen heads are dead in the vlm \(vlm.L2H1, vlm.L2H0\)"):
        adapt(policy, Recipe.named("paper"), last)


def test_ffn_only_is_what_is_left_of_paper_without_its_heads(policy: Policy) -> None:
    paper = adapt(policy, Recipe.named("paper"), HEADS)
    paper.remove()
    without = adapt(policy, Recipe.named("ffn-only", flow_projections=True))
    heads = {"vlm query rows", "vlm output columns"}
    assert without.groups == {group: n for group, n in paper.groups.items() if group not in heads}
    without.remove()
    alone = adapt(policy, Recipe.named("ffn-only"))
    assert alone.groups.keys() == {"lora of the FFN, vlm"}


def test_the_published_settings_are_a_recipe() -> None:
    recipe = Recipe.named("paper", **PUBLISHED)
    assert (recipe.lr, recipe.lr * recipe.lr_final, recipe.warmup) == (2.5e-5, pytest.approx(2.5e-6), 200)
    assert (recipe.rank, recipe.lora_rank, recipe.batch, recipe.clip) == (16, 16, 32, 1.0)
    assert (recipe.betas, recipe.weight_decay) == ((0.9, 0.95), 1e-10)


def test_the_warm_up_ends_before_the_training_does() -> None:
    for steps, warmup in ((1, 0), (3, 2), (20, 19), (21, 20), (30, 20), (250, 20)):
        assert Recipe.named("aligned", steps=steps).warmup == warmup
    assert Recipe.named("aligned", steps=30, warmup=5).warmup == 5
    with pytest.raises(UsageError, match="warmup = 200 of steps = 200; it must be shorter"):
        Recipe.named("paper", **{**PUBLISHED, "steps": 200})
    with pytest.raises(UsageError, match="warmup = 2 of steps = 2; it must be shorter"):
        replace(SMALL, steps=2)


def test_generic_heads_are_those_that_other_tasks_rank_first(policy: Policy, scores: HeadScores) -> None:
    """Ranks by hand: on the tasks below expert.L1H1 is second and first, L2H3 first and third, the rest behind."""
    second = np.full((3, 4), 9.0)
    second[1, 1], second[0, 0], second[2, 3] = 1.0, 2.0, 3.0
    first = scores.towers["expert"].value.copy()
    first[1, 1] = 1.5
    others = [
        replace(scores, data=f"task-{i}", towers={"expert": TowerScores(grid)})
        for i, grid in enumerate((first, second))
    ]
    chosen = adapt(policy, Recipe.named("generic-k"), HEADS, others=others).heads
    assert chosen is not None
    assert [str(head) for head in chosen.heads] == ["expert.L1H1", "expert.L2H3"]
    assert chosen.scores == (1.5, 2.0)
    assert chosen == generic_heads(others[::-1], 2, "expert")


def test_generic_heads_need_other_tasks(policy: Policy, scores: HeadScores) -> None:
    recipe, own = Recipe.named("generic-k"), replace(HEADS, data=scores.data)
    for others, message in (
        ([], "generic-k needs head scores of other tasks"),
        ([scores], "scores of demos-0, the task that is trained itself"),
        ([replace(scores, data="a"), replace(scores, data="a")], "two score files are of the same"),
        ([replace(scores, data="a", policy="pi0-0")], "scores are for policy pi0-0"),
    ):
        with pytest.raises(UsageError, match=message):
            adapt(policy, recipe, own, others=others)


def test_generic_heads_of_a_set_without_a_task_are_not_those_of_the_training(
    policy: Policy, scores: HeadScores, demos: Demonstrations, tmp_path: Path
) -> None:
    """Published heads files and random sets say nothing of the demonstrations; the training knows its own."""
    assert HEADS.data is None
    own = replace(scores, data=demos.fingerprint)
    with pytest.raises(UsageError, match=f"scores of {demos.fingerprint}, the task that is trained itself"):
        run(policy, demos, tmp_path, Recipe.named("generic-k"), others=[replace(scores, data="a"), own])
    assert not any(tmp_path.iterdir())


def test_lora_adapts_the_modules_that_lerobot_adapts(
    policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path
) -> None:
    run(policy, demos, tmp_path, Recipe.named("lora", steps=4, batch=4, draws=2))
    before, after = load_file(tiny_policy_dir / "model.safetensors"), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if re.fullmatch(rf"({LEROBOT_LORA})\.weight", name)}
    assert len(moved) == 3 * 2 + 5


def test_lora_on_all_linear_layers_covers_both_language_towers(policy: Policy) -> None:
    adaptation = adapt(policy, Recipe.named("lora", lora_targets="all-linear", lora_rank=2))
    adapted = {name.partition(".lora_")[0] for name in trainable(policy)}
    # q, k, v, o, gate, up, down of 3 layers of vlm and of expert
    assert len(adapted) == 2 * 3 * 7
    assert set(adaptation.groups) == {"lora vlm", "lora expert"}


def test_lora_starts_at_the_base_and_is_a_function_of_its_seed(
    tiny_policy_dir: Path, observations: list[Observation]
) -> None:
    states = []
    for seed, disturbance in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(disturbance)
        policy = load_policy(tiny_policy_dir)
        batch, noise = policy.batch(observations), policy.noise(3, 0)
        before = policy.sample(batch, noise)
        adapt(policy, Recipe.named("lora"), seed=seed)
        assert torch.equal(policy.sample(batch, noise), before)
        states.append(torch.cat([p.detach().flatten() for p in trainable(policy).values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_trainable_parameters_are_shown_by_group(policy: Policy) -> None:
    assert str(adapt(policy, SMALL, HEADS)).splitlines() == [
        "trainable parameters",
        "  768  expert query rows",
        "  768  expert output columns",
        "1,536  total",
    ]


def test_bad_recipes_are_named(
    policy: Policy, demos: Demonstrations, scores: HeadScores, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'alligned'.*did you mean aligned"):
        Recipe.named("alligned")
    with pytest.raises(UsageError, match="unknown recipe setting 'learning_rate'"):
        Recipe.named("aligned", learning_rate=1)
    with pytest.raises(UsageError, match=r"unknown LoRA targets 'all'.*all-linear"):
        Recipe.named("lora", lora_targets="all")
    with pytest.raises(UsageError, match="unknown slice form 'half'"):
        Recipe.named("aligned", form="half")
    with pytest.raises(UsageError, match="recipe retain trains nothing"):
        Recipe.named("retain")
    with pytest.raises(UsageError, match="ema = 1"):
        Recipe.named("aligned", ema=1)
    with pytest.raises(UsageError, match="augment_shift from 0"):
        Recipe.named("aligned", augment_shift=0.7)
    with pytest.raises(UsageError, match="unknown treatment of padded actions 'hold'"):
        Recipe.named("aligned", padding="hold")
    with pytest.raises(UsageError, match="seed -1"):
        run(policy, demos, tmp_path, seed=-1)
    with pytest.raises(UsageError, match="rank = 0"):
        Recipe.named("aligned", rank=0)
    with pytest.raises(UsageError, match="recipe aligned needs a head set"):
        run(policy, demos, tmp_path, heads=None)
    with pytest.raises(UsageError, match="bottom-k needs head scores"):
        run(policy, demos, tmp_path, Recipe.named("bottom-k"))
    with pytest.raises(
        UsageError, match=f"head set is for policy pi0-0, but this policy is {policy.fingerprint}"
    ):
        run(policy, demos, tmp_path, heads=HeadSet(HEADS.heads, policy="pi0-0"))
    assert not any(tmp_path.iterdir())


def test_keys_and_values_of_a_head_are_refused_with_the_reason(
    policy: Policy, demos: Demonstrations, tmp_path: Path
) -> None:
    recipe = Recipe.named("aligned", projections=("q", "v"))
    with pytest.raises(
        UsageError, match=r"shares keys and values between heads \(.*4 heads share 1 K/V head"
    ):
        run(policy, demos, tmp_path, recipe)
    assert not any(tmp_path.iterdir())
