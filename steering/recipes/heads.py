"""Recipes that train head slices and nothing else; they differ only in the heads."""

from __future__ import annotations

from interp.errors import UsageError
from steering.headset import HeadSet, generic_heads, random_everywhere, united, worst_heads
from steering.recipes.adaptation import Adaptation, Given
from steering.slices import attach


def aligned(given: Given) -> Adaptation:
    return sliced(given, given.head_set())


def random_k(given: Given) -> Adaptation:
    policy = given.policy
    return sliced(
        given, random_everywhere(policy.spec, given.heads_per_tower(), given.seed, policy.fingerprint)
    )


def bottom_k(given: Given) -> Adaptation:
    if given.scores is None:
        raise UsageError("recipe bottom-k needs head scores: rank the heads first (`robosteer rank`)")
    parts = [worst_heads(given.scores, k, tower) for tower, k in given.heads_per_tower().items()]
    return sliced(given, united(parts))


def generic_k(given: Given) -> Adaptation:
    if not given.others:
        raise UsageError(
            "recipe generic-k needs head scores of other tasks: name their runs (`robosteer finetune --others`)"
        )
    own = {given.head_set().data, given.data} - {None}
    if found := [scores.data for scores in given.others if scores.data in own]:
        raise UsageError(
            f"recipe generic-k: scores of {found[0]}, the task that is trained itself, are among the "
            "others: leave that run out"
        )
    parts = [generic_heads(given.others, k, tower) for tower, k in given.heads_per_tower().items()]
    return sliced(given, united(parts))


def all_heads(given: Given) -> Adaptation:
    towers = given.heads.towers if given.heads is not None else ("expert",)
    live = given.policy.spec.live_heads(towers)
    return sliced(given, HeadSet(live, policy=given.policy.fingerprint, method="all live heads"))


def sliced(given: Given, heads: HeadSet) -> Adaptation:
    """Slices of these heads, of the recipe's form and projections."""
    recipe = given.recipe
    slices = attach(
        given.policy,
        heads.heads,
        form=recipe.form,
        rank=recipe.rank,
        projections=recipe.projections,
        seed=given.seed,
    )
    return Adaptation(slices.groups(), heads, slices.merge, slices.remove, changes=slices.changes)
