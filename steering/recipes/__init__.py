"""Recipes: what trains, as one config, and the controls that it is compared with.

    aligned    query rows and output columns of the chosen heads, in the tower in which they were scored
    paper      as published: low-rank slices of the *vlm's* heads at the chosen (layer, index), LoRA of all vlm
               FFNs, and the time MLP and action projections themselves
    random-k   aligned for as many random heads of the same towers: does the choice matter?
    bottom-k   the same for as many of the worst-scored heads: is the score upside down?
    generic-k  the same for as many heads that score well on other tasks: does the choice need this task?
    all-heads  the same for every live head of those towers: same freezing, no choice
    ffn-only   the FFN LoRA of `paper` alone; with flow_projections, `paper` without its heads
    lora       PEFT LoRA as LeRobot sets it up (below): what one would do without this toolkit
    full       every weight of the policy

`retain`, the average of a finished training with its base, is no training: see steering/retain.py.

`lora` follows LeRobot (src/lerobot/policies/pi0/modeling_pi0.py, `_get_default_peft_targets`): the query and
value projections of every action-expert layer, and the five projections around the flow, `state_proj`,
`action_in_proj`, `action_out_proj`, `action_time_mlp_in` and `action_time_mlp_out`; rank 16 and PEFT's alpha
8. With `lora_targets="all-linear"` it adapts instead every linear layer of vlm and expert, attention and MLP,
with alpha = rank: the kind of baseline that Robotic Steering (arXiv 2511.22697) and openpi use.

`adapt` applies a recipe to a policy in place and returns an Adaptation; the training loop then trains
whatever requires gradients and knows nothing of recipes. A new recipe is one function in ADAPTERS.

adaptation   Adaptation, and what the functions below are given
heads        recipes of head slices alone
modules      recipes that train whole modules
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from interp.errors import UsageError
from interp.policies import Policy
from interp.scores import HeadScores
from steering.headset import HeadSet
from steering.recipe import DEFAULTS, NAMES, PUBLISHED, LoraTargets, Recipe
from steering.recipes.adaptation import Adaptation, Given, trainable
from steering.recipes.heads import aligned, all_heads, bottom_k, generic_k, random_k
from steering.recipes.modules import ffn_only, full, lora, paper

__all__ = [
    "ADAPTERS",
    "DEFAULTS",
    "NAMES",
    "PUBLISHED",
    "Adaptation",
    "LoraTargets",
    "Recipe",
    "adapt",
    "trainable",
]

ADAPTERS: Mapping[str, Callable[[Given], Adaptation]] = {
    "aligned": aligned,
    "paper": paper,
    "all-heads": all_heads,
    "random-k": random_k,
    "bottom-k": bottom_k,
    "generic-k": generic_k,
    "ffn-only": ffn_only,
    "lora": lora,
    "full": full,
}


def adapt(
    policy: Policy,
    recipe: Recipe,
    heads: HeadSet | None = None,
    scores: HeadScores | None = None,
    seed: int = 0,
    others: Sequence[HeadScores] = (),
    data: str | None = None,
) -> Adaptation:
    """Freeze the policy, make trainable what the recipe says, and leave its outputs unchanged for now.

    `heads` gives aligned and paper their heads, and the controls their number of heads a tower; `scores`
    gives bottom-k its order; `others` are scores from other tasks for generic-k, none of them of `data`, the
    fingerprint of what will be trained on; `seed` draws random heads and low-rank factors.
    """
    if heads is not None:
        heads.check(policy.spec, policy.fingerprint)
    for scored in (scores, *others):
        if scored is not None and scored.policy != policy.fingerprint:
            raise UsageError(
                f"scores are for policy {scored.policy}, but this policy is {policy.fingerprint}: rank again"
            )
    policy.module.requires_grad_(False)
    return ADAPTERS[recipe.name](Given(policy, recipe, heads, scores, others, seed, data))
