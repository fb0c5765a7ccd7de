"""Recipes that train more than head slices: LoRA on whole modules, plain weights, and the published mixture.

`paper` (Mitra et al., arXiv 2511.22697) scores heads in the action expert and trains the heads at the same (layer,
index) of the vlm, a different network. The vlm's last layer hands only keys and values on, so heads and FFN there
reach no action; published head sets contain some. They are left out, and said to be.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Block, Policy
from steering.headset import HeadSet
from steering.recipe import LoraTargets
from steering.recipes.adaptation import Adaptation, Given, joined, trainable
from steering.recipes.heads import sliced

PEFT_ALPHA = 8  # PEFT's default, which LeRobot leaves in place
FLOW_PROJECTIONS = {  # names in every family that follows pi0
    "time MLP": ("action_time_mlp_in", "action_time_mlp_out"),
    "action projections": ("action_in_proj", "action_out_proj"),
}
LEROBOT_PROJECTIONS = ("state_proj", *(name for names in FLOW_PROJECTIONS.values() for name in names))
PAPER_TOWER = "vlm"


def paper(given: Given) -> Adaptation:
    heads, note = in_tower(given.head_set(), given.policy, PAPER_TOWER)
    slices = sliced(given, heads)
    return joined([replace(slices, notes=(note,) if note else ()), ffn_only(given)])


def ffn_only(given: Given) -> Adaptation:
    """LoRA of every live FFN of the tower that `paper` trains, without heads."""
    policy, tower = given.policy, given.policy.spec.tower(PAPER_TOWER)
    layers = list(range(tower.layers))
    notes: tuple[str, ...] = ()
    if {head for layer, head in tower.dead if layer == layers[-1]} == set(range(tower.heads_per_layer[-1])):
        notes = (f"left out: the FFN of {PAPER_TOWER} layer {layers.pop()}, which reaches no action",)
    blocks = [policy.block(PAPER_TOWER, layer) for layer in layers]
    targets = _linears(policy, (block.mlp for block in blocks if block.mlp is not None))
    parts = [_peft(given, targets, alpha=given.recipe.lora_rank, label="lora of the FFN, ")]
    if given.recipe.flow_projections:
        parts.append(_plain(policy, FLOW_PROJECTIONS))
    return replace(joined(parts), notes=notes)


def in_tower(heads: HeadSet, policy: Policy, tower: str) -> tuple[HeadSet, str]:
    """The heads at the same (layer, index) of another tower, without the dead; and which those were."""
    spec = policy.spec.tower(tower)
    moved = list(dict.fromkeys(Head(tower, head.layer, head.index) for head in heads.heads))
    if missing := [head for head in moved if not spec.exists(head.layer, head.index)]:
        raise UsageError(
            f"recipe paper trains the {tower}'s heads at the chosen (layer, index), but {missing[0]} does not "
            f"exist: the {tower} has {spec.layers} layers x {spec.heads} heads"
        )
    dead = [head for head in moved if (head.layer, head.index) in spec.dead]
    live = tuple(head for head in moved if head not in dead)
    if not live:
        raise UsageError(
            f"recipe paper: all chosen heads are dead in the {tower} ({', '.join(map(str, dead))}): "
            "their output reaches no action; choose heads of other layers, or use recipe aligned"
        )
    note = f"left out: {', '.join(map(str, dead))}, whose output reaches no action" if dead else ""
    method = f"{heads.method or 'given'}, taken to the {tower}"
    return replace(heads, heads=live, scores=(), method=method), note


def lora(given: Given) -> Adaptation:
    recipe = given.recipe
    alpha = PEFT_ALPHA if recipe.lora_targets == "lerobot" else recipe.lora_rank
    return _peft(given, _lora_targets(given.policy, recipe.lora_targets), alpha, label="lora ")


def full(given: Given) -> Adaptation:
    module = given.policy.module
    module.requires_grad_(True)

    def freeze() -> None:
        module.requires_grad_(False)

    return Adaptation(_count(given.policy, trainable(given.policy)), None, freeze, freeze)


def _peft(given: Given, targets: Sequence[str], alpha: int, label: str) -> Adaptation:
    """PEFT's LoRA on the named modules, beside whatever trains already."""
    policy, earlier = given.policy, trainable(given.policy)
    import peft  # loads transformers, which takes seconds; only training needs it

    config = peft.LoraConfig(r=given.recipe.lora_rank, lora_alpha=alpha, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(given.seed)  # PEFT draws from the global generator
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a renamed property
        wrapped = peft.get_peft_model(policy.module, config)
    policy.module.eval()  # PEFT's new modules start in train mode
    groups = _count(policy, trainable(policy), label)
    for parameter in earlier.values():
        parameter.requires_grad_(True)  # PEFT froze them with the rest

    def merge() -> None:
        wrapped.merge_and_unload()

    def remove() -> None:
        wrapped.unload()

    def changes() -> Iterator[tuple[Tensor, Tensor]]:
        for module in wrapped.modules():
            if isinstance(module, peft.tuners.lora.Linear):
                base = module.get_base_layer()
                assert isinstance(base, nn.Linear)
                yield base.weight, module.get_delta_weight("default")

    return Adaptation(groups, None, merge, remove, changes=changes)


def _plain(policy: Policy, groups: Mapping[str, tuple[str, ...]]) -> Adaptation:
    """The weights of small modules themselves, kept so that they can be put back."""
    named = {name.rpartition(".")[2]: module for name, module in policy.module.named_modules()}
    modules = {group: [named[name] for name in names if name in named] for group, names in groups.items()}
    parameters = [p for group in modules.values() for module in group for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def merge() -> None:
        for parameter in parameters:
            parameter.requires_grad_(False)

    def remove() -> None:
        merge()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)

    counts = {
        group: sum(p.numel() for module in members for p in module.parameters())
        for group, members in modules.items()
    }
    return Adaptation(counts, None, merge, remove)


def _lora_targets(policy: Policy, targets: LoraTargets) -> list[str]:
    """Names of the modules that get an adapter."""

    def blocks(tower: str) -> list[Block]:
        return [policy.block(tower, layer) for layer in range(policy.spec.tower(tower).layers)]

    if targets == "all-linear":
        return _linears(policy, (block.layer for tower in ("vlm", "expert") for block in blocks(tower)))
    names = {module: name for name, module in policy.module.named_modules()}
    attention = [names[m] for b in blocks("expert") for m in (b.query, b.value) if m is not None]
    # Where one projection makes queries, keys and values, it gets the adapter.
    fused = range(0 if attention else policy.spec.tower("expert").layers)
    attention += [names[policy.query_projection("expert", layer)] for layer in fused]
    return attention + [name for name in names.values() if name.rpartition(".")[2] in LEROBOT_PROJECTIONS]


def _linears(policy: Policy, modules: Iterable[nn.Module]) -> list[str]:
    """Names of all linear layers inside the modules."""
    names = {module: name for name, module in policy.module.named_modules()}
    return [names[m] for module in modules for m in module.modules() if isinstance(m, nn.Linear)]


def _count(policy: Policy, parameters: dict[str, nn.Parameter], label: str = "") -> dict[str, int]:
    """Parameters by tower, or under `projections` for what lies around the towers."""
    names = {module: name for name, module in policy.module.named_modules()}
    towers = {tower: f"{names[policy.tower_module(tower)]}." for tower in policy.spec.towers}
    counts: dict[str, int] = {}
    for name, parameter in parameters.items():
        part = next((tower for tower, start in towers.items() if name.startswith(start)), "projections")
        counts[label + part] = counts.get(label + part, 0) + parameter.numel()
    return counts
