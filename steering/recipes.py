"""Recipes: what trains, as one config, and the controls that it is compared with.

    aligned    query rows and output columns of the chosen heads, in the tower in which they were scored
    random-k   the same for as many random heads of the same towers: does the choice matter?
    bottom-k   the same for as many of the worst-scored heads: is the score upside down?
    all-heads  the same for every live head of those towers: same freezing, no choice
    lora       PEFT LoRA as LeRobot sets it up (below): what one would do without this toolkit
    full       every weight of the policy

`lora` follows LeRobot (src/lerobot/policies/pi0/modeling_pi0.py, `_get_default_peft_targets`): the query and
value projections of every action-expert layer, and the five projections around the flow, `state_proj`,
`action_in_proj`, `action_out_proj`, `action_time_mlp_in` and `action_time_mlp_out`; rank 16 and PEFT's alpha
8. With `lora_targets="all-linear"` it adapts instead every linear layer of vlm and expert, attention and MLP,
with alpha = rank: the kind of baseline that Robotic Steering (arXiv 2511.22697) and openpi use.

`adapt` applies a recipe to a policy in place and returns an Adaptation; the training loop then trains
whatever requires gradients and knows nothing of recipes. A new recipe is one function in ADAPTERS.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import peft
import torch
from torch import nn

from interp.errors import UsageError, unknown
from interp.policies import Block, Policy
from interp.scores import HeadScores
from steering.headset import HeadSet, random_heads, worst_heads
from steering.slices import Form, attach

LoraTargets = Literal["lerobot", "all-linear"]
PEFT_ALPHA = 8  # PEFT's default, which LeRobot leaves in place
FLOW_PROJECTIONS = (
    "state_proj",
    "action_in_proj",
    "action_out_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a finetuned policy, but for the data, the heads and the seed.

    A step takes `batch` demonstration frames and `draws` (noise, time) pairs for each. The learning rate
    warms up over `warmup` steps and falls along a cosine to `lr_final * lr`.
    """

    name: str = "aligned"
    form: Form = "full"
    rank: int = 4
    lora_targets: LoraTargets = "lerobot"
    lora_rank: int = 16
    steps: int = 250
    batch: int = 32
    draws: int = 4
    lr: float = 2e-3
    lr_final: float = 0.02
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ADAPTERS:
            raise unknown("recipe", self.name, ADAPTERS)
        for what in ("rank", "lora_rank", "steps", "batch", "draws", "lr", "clip"):
            if not getattr(self, what) > 0:
                raise UsageError(f"recipe {self.name}: {what} = {getattr(self, what)}; it must be above zero")
        if self.form not in get_args(Form):
            raise unknown("slice form", self.form, get_args(Form))
        if self.lora_targets not in get_args(LoraTargets):
            raise unknown("LoRA targets", self.lora_targets, get_args(LoraTargets))
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.lr_final <= 1:
            raise UsageError(f"recipe {self.name}: warmup and weight_decay from 0, lr_final from 0 to 1")

    @classmethod
    def named(cls, name: str, **changes: Any) -> Recipe:
        """The recipe with the defaults of its name: `Recipe.named("lora", steps=500)`."""
        wrong = changes.keys() - {field.name for field in fields(cls)}
        if wrong:
            raise unknown("recipe setting", sorted(wrong)[0], [field.name for field in fields(cls)])
        return cls(name, **{**DEFAULTS.get(name, {}), **changes})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "betas": list(self.betas)}


DEFAULTS: Mapping[str, Mapping[str, Any]] = {"full": {"lr": 3e-4}}


@dataclass(frozen=True)
class Adaptation:
    """A recipe applied to a policy. What trains is what requires gradients in `policy.module`.

    `merge` folds it into plain weights, after which the policy is an ordinary one; `remove` takes it off and
    leaves the policy as it was (for `full`, which trains the weights themselves, there is nothing to take
    off).
    """

    groups: Mapping[str, int]
    heads: HeadSet | None
    merge: Callable[[], None]
    remove: Callable[[], None]

    def __str__(self) -> str:
        total = sum(self.groups.values())
        width = max(len(f"{n:,}") for n in (total, *self.groups.values()))
        lines = [f"{n:>{width},}  {group}" for group, n in self.groups.items()]
        return "\n".join(["trainable parameters", *lines, f"{total:>{width},}  total"])


@dataclass(frozen=True)
class Given:
    """What an adapter may draw on."""

    policy: Policy
    recipe: Recipe
    heads: HeadSet | None
    scores: HeadScores | None
    seed: int

    def head_set(self) -> HeadSet:
        if self.heads is None:
            raise UsageError(
                f"recipe {self.recipe.name} needs a head set: choose heads first (`robosteer select`)"
            )
        return self.heads

    def heads_per_tower(self) -> dict[str, int]:
        heads = self.head_set()
        return {tower: sum(head.tower == tower for head in heads.heads) for tower in heads.towers}


def adapt(
    policy: Policy,
    recipe: Recipe,
    heads: HeadSet | None = None,
    scores: HeadScores | None = None,
    seed: int = 0,
) -> Adaptation:
    """Freeze the policy, make trainable what the recipe says, and leave its outputs unchanged for now.

    `heads` gives aligned its heads, and the controls their number of heads a tower; `scores` gives bottom-k
    its order; `seed` draws random heads and low-rank factors.
    """
    if heads is not None:
        heads.check(policy.spec, policy.fingerprint)
    if scores is not None and scores.policy != policy.fingerprint:
        raise UsageError(
            f"scores are for policy {scores.policy}, but this policy is {policy.fingerprint}: rank again"
        )
    policy.module.requires_grad_(False)
    return ADAPTERS[recipe.name](Given(policy, recipe, heads, scores, seed))


def trainable(policy: Policy) -> dict[str, nn.Parameter]:
    """What trains, by name, in the module's own order."""
    return {name: p for name, p in policy.module.named_parameters() if p.requires_grad}


# head slices


def _aligned(given: Given) -> Adaptation:
    return _sliced(given, given.head_set())


def _random_k(given: Given) -> Adaptation:
    fingerprint = given.policy.fingerprint
    parts = [
        random_heads(given.policy.spec, k, tower, given.seed, fingerprint)
        for tower, k in given.heads_per_tower().items()
    ]
    return _sliced(given, _united(parts))


def _bottom_k(given: Given) -> Adaptation:
    if given.scores is None:
        raise UsageError("recipe bottom-k needs head scores: rank the heads first (`robosteer rank`)")
    parts = [worst_heads(given.scores, k, tower) for tower, k in given.heads_per_tower().items()]
    return _sliced(given, _united(parts))


def _all_heads(given: Given) -> Adaptation:
    towers = given.heads.towers if given.heads is not None else ("expert",)
    live = given.policy.spec.live_heads(towers)
    return _sliced(given, HeadSet(live, policy=given.policy.fingerprint, method="all live heads"))


def _sliced(given: Given, heads: HeadSet) -> Adaptation:
    recipe = given.recipe
    slices = attach(given.policy, heads.heads, form=recipe.form, rank=recipe.rank, seed=given.seed)
    return Adaptation(slices.groups(), heads, slices.merge, slices.remove)


def _united(parts: Sequence[HeadSet]) -> HeadSet:
    return replace(
        parts[0],
        heads=tuple(head for part in parts for head in part.heads),
        scores=tuple(score for part in parts for score in part.scores),
    )


# controls without head slices


def _lora(given: Given) -> Adaptation:
    policy, recipe = given.policy, given.recipe
    config = peft.LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=PEFT_ALPHA if recipe.lora_targets == "lerobot" else recipe.lora_rank,
        target_modules=_lora_targets(policy, recipe.lora_targets),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(given.seed)  # PEFT draws from the global generator
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a renamed property
        wrapped = peft.get_peft_model(policy.module, config)
    policy.module.eval()  # PEFT's new modules start in train mode

    def merge() -> None:
        wrapped.merge_and_unload()

    def remove() -> None:
        wrapped.unload()

    return Adaptation(_count(policy, "lora "), None, merge, remove)


def _lora_targets(policy: Policy, targets: LoraTargets) -> list[str]:
    """Names of the modules that get an adapter."""
    names = {module: name for name, module in policy.module.named_modules()}

    def blocks(tower: str) -> list[Block]:
        return [policy.block(tower, layer) for layer in range(policy.spec.tower(tower).layers)]

    if targets == "lerobot":
        attention = [names[m] for b in blocks("expert") for m in (b.query, b.value) if m is not None]
        return attention + [name for name in names.values() if name.rpartition(".")[2] in FLOW_PROJECTIONS]
    layers = [block.layer for tower in ("vlm", "expert") for block in blocks(tower)]
    return [names[m] for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]


def _full(given: Given) -> Adaptation:
    module = given.policy.module
    module.requires_grad_(True)

    def freeze() -> None:
        module.requires_grad_(False)

    return Adaptation(_count(given.policy), None, freeze, freeze)


def _count(policy: Policy, label: str = "") -> dict[str, int]:
    """Trainable parameters by tower, or under `projections` for what lies around the towers."""
    names = {module: name for name, module in policy.module.named_modules()}
    towers = {tower: f"{names[policy.tower_module(tower)]}." for tower in policy.spec.towers}
    counts: dict[str, int] = {}
    for name, parameter in trainable(policy).items():
        part = next((tower for tower, start in towers.items() if name.startswith(start)), "projections")
        counts[label + part] = counts.get(label + part, 0) + parameter.numel()
    return counts


ADAPTERS: Mapping[str, Callable[[Given], Adaptation]] = {
    "aligned": _aligned,
    "random-k": _random_k,
    "bottom-k": _bottom_k,
    "all-heads": _all_heads,
    "lora": _lora,
    "full": _full,
}
