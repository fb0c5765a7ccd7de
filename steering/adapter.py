"""Adapters: what a finetuning changed, as a standard PEFT adapter that anybody can put on the base.

LoRA (Hu et al., arXiv 2106.09685) writes the change of a Linear's weight as up @ down. A head slice is exactly
such a change with zeros elsewhere: of `up` outside the head's rows for the query projection, of `down` outside
the head's columns for the output projection. So a slice needs no format of its own:

    rows      change[index]    = slice     up = rows of the identity,  down = slice    rank = rows of the slice
    columns   change[:, index] = slice     up = slice,  down = rows of the identity    rank = its columns
    low rank  change[head] = up[head] @ down[head]     the factors side by side        rank = heads * rank

The adapter is found by comparing the finetuned policy with its base, weight by weight, so it is what was
evaluated and every recipe has one. Only the factors of low-rank changes come from the training's checkpoint,
and only where they explain the difference. A Linear that changed all over, a module that is no Linear, and one
outside the towers are kept whole (PEFT's `modules_to_save`). Every Linear has the rank that it needs and scale
1 (`rank_pattern`, `alpha_pattern`).

Outside the towers there is no LoRA because PEFT (0.21.2) cannot read its own: it renames keys as transformers
does for released pi0 checkpoints, `action_in_proj` becomes `embed_action_time.embed_action_time.action_in_proj`,
and what no longer matches stays untrained with a warning. Whole modules are not renamed.

Axis names: d_in, d_out of a Linear; rank; head (of the chosen ones, ascending); d_head.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from interp.devices import exactly
from interp.errors import Failure, UsageError
from interp.heads import Head
from interp.policies import Policy
from interp.runs import read_json, write_atomic
from steering.checkpoint import AVERAGE, PARAMETER

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LORA = (".lora_A.default.weight", ".lora_B.default.weight")


@dataclass(frozen=True)
class LowRank:
    """A change of a Linear's weight, up @ down, with scale 1."""

    down: Float[Tensor, "rank d_in"]
    up: Float[Tensor, "d_out rank"]

    @classmethod
    def of_rows(cls, rows: Float[Tensor, "rank d_in"], index: Int[Tensor, " rank"], d_out: int) -> LowRank:
        """The change that is `rows` at rows `index` and zero elsewhere."""
        return cls(rows, torch.eye(d_out, dtype=rows.dtype, device=rows.device)[:, index])

    @classmethod
    def of_columns(
        cls, columns: Float[Tensor, "d_out rank"], index: Int[Tensor, " rank"], d_in: int
    ) -> LowRank:
        """The change that is `columns` at columns `index` and zero elsewhere."""
        return cls(torch.eye(d_in, dtype=columns.dtype, device=columns.device)[index], columns)

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def change(self) -> Float[Tensor, "d_out d_in"]:
        return self.up @ self.down

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.down, self.up * factor)


@dataclass(frozen=True)
class Adapter:
    """All that differs between two policies of one architecture, by module name."""

    changes: Mapping[str, LowRank]
    whole: Mapping[str, Mapping[str, Tensor]]
    """Modules kept whole: parameter name -> value."""

    @classmethod
    def between(cls, base: Policy, tuned: Policy, kept: Mapping[str, LowRank] | None = None) -> Adapter:
        """What turns `base` into `tuned`. `kept` are low-rank factors that may explain some differences."""
        changes: dict[str, LowRank] = {}
        whole: dict[str, dict[str, Tensor]] = {}
        after = dict(tuned.module.named_modules())
        towers = tuple(f"{name}." for name in _tower_names(base))
        for name, module in base.module.named_modules():
            if name not in after:
                raise UsageError(f"{tuned.source} has no module {name}: it is not a finetuned {base.source}")
            olds, news = (dict(m.named_parameters(recurse=False)) for m in (module, after[name]))
            changed = [key for key in olds if not _same(olds[key], news.get(key), f"{name}.{key}")]
            if not changed:
                continue
            low_rank = None
            if isinstance(module, nn.Linear) and changed == ["weight"] and name.startswith(towers):
                low_rank = _as_low_rank(olds["weight"], news["weight"], (kept or {}).get(name))
            if low_rank is None:
                whole[name] = {key: tensor.detach().clone() for key, tensor in news.items()}
            else:
                changes[name] = low_rank
        if not changes and not whole:
            raise UsageError(
                f"{tuned.source} equals its base {base.source}: there is nothing to put in an adapter"
            )
        if not changes:
            raise UsageError(
                f"{tuned.source}: all weights of its layers were trained, so an adapter would be the whole policy: "
                "export it merged"
            )
        return cls(changes, whole)

    def sums(self, base: Policy, tuned: Policy) -> dict[str, Float[Tensor, "d_out d_in"]]:
        """The weights W + dW of the changed Linears in float32, before a merge into `base` rounds them to `tuned`'s."""
        found = {}
        for name, low_rank in self.changes.items():
            old, new = (policy.module.get_parameter(f"{name}.weight").detach() for policy in (base, tuned))
            change = low_rank.change.to(old.device)
            found[name] = old.float() + change
            if not _is_rounding(found[name] - new.float(), old, change):
                raise Failure(
                    f"{name}: the base's weight and the adapter's change are not {tuned.source}'s weight: "
                    "this is no adapter of it"
                )
        return found

    @property
    def parameters(self) -> int:
        """Numbers in the file."""
        low_rank = sum(c.down.numel() + c.up.numel() for c in self.changes.values())
        return low_rank + sum(t.numel() for module in self.whole.values() for t in module.values())

    def save(self, directory: Path, base: str) -> None:
        """adapter_config.json and adapter_model.safetensors, as `peft.PeftModel.from_pretrained` reads them."""
        directory.mkdir(parents=True, exist_ok=True)
        ranks = {name: change.rank for name, change in self.changes.items()}
        rank = max(ranks.values())
        others = {name: r for name, r in ranks.items() if r != rank}
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            rank_pattern=others,
            alpha_pattern=dict(others),
            target_modules=sorted(ranks),
            modules_to_save=sorted(self.whole) or None,
            base_model_name_or_path=base,
            inference_mode=True,
        )
        config.save_pretrained(str(directory))
        tensors = {f"{name}.lora_A.weight": change.down for name, change in self.changes.items()}
        tensors |= {f"{name}.lora_B.weight": change.up for name, change in self.changes.items()}
        tensors |= {f"{name}.{key}": t for name, module in self.whole.items() for key, t in module.items()}
        packed = {f"base_model.model.{name}": t.cpu().contiguous() for name, t in tensors.items()}
        write_atomic(directory / WEIGHTS, save(packed, {"format": "pt"}))


def put_on(policy: Policy, directory: str | Path) -> peft.PeftModel:
    """Put the adapter in `directory` on `policy`, in place: what it samples from now on is the finetuned policy.

    An adapter whose card names another base is refused. `merge_and_unload()` of what is returned makes plain weights.
    """
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        raise UsageError(f"{directory} is not a PEFT adapter: it has no {CONFIG}")
    card = directory / "card.json"
    base = (read_json(card).get("base") or {}).get("fingerprint") if card.is_file() else None
    if base is not None and base != policy.fingerprint:
        raise UsageError(
            f"adapter {directory} is for base {base}, but this policy is {policy.fingerprint}: load its own base"
        )
    wrapped = peft.PeftModel.from_pretrained(policy.module, str(directory))
    return wrapped.eval()


# low-rank factors that a training kept


def kept_factors(checkpoint: Path, policy: Policy, heads: Iterable[Head]) -> dict[str, LowRank]:
    """The factors in a training's checkpoint by module name, of head slices (`heads`) and of LoRA; maybe none.

    Of LoRA's scale nothing is said there: `Adapter.between` measures it.
    """
    if not checkpoint.is_file():
        return {}
    try:
        with safe_open(checkpoint, "pt") as file:
            keys = list(file.keys())
            kind = AVERAGE if any(key.startswith(f"{AVERAGE}/") for key in keys) else PARAMETER
            names = [key for key in keys if key.startswith(f"{kind}/")]
            tensors = {key.removeprefix(f"{kind}/"): file.get_tensor(key) for key in names}
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UsageError(
            f"checkpoint {checkpoint} is broken ({error}): delete it to export without it"
        ) from error
    down, up = _LORA
    found = {
        name.removesuffix(down): LowRank(tensor, tensors[name.removesuffix(down) + up])
        for name, tensor in tensors.items()
        if name.endswith(down) and name.removesuffix(down) + up in tensors
    }
    linears = {
        name: module for name, module in policy.module.named_modules() if isinstance(module, nn.Linear)
    }
    for name, (side, index) in _sliced(policy, heads).items():
        if f"{name}.up" in tensors and f"{name}.down" in tensors and name in linears:
            linear = linears[name]
            factors = _of_heads(tensors[f"{name}.up"], tensors[f"{name}.down"], side, index, linear)
            if factors is not None:
                found[name] = factors
    return found


def _sliced(policy: Policy, heads: Iterable[Head]) -> dict[str, tuple[str, Int[Tensor, "head d_head"]]]:
    """Where slices of these heads sit: module name -> side, and the rows or columns of every head."""
    names = {module: name for name, module in policy.module.named_modules()}
    sites: dict[str, tuple[str, list[Tensor]]] = {}
    for head in sorted(heads):
        d_head = policy.spec.tower(head.tower).d_head
        owned = torch.arange(head.index * d_head, (head.index + 1) * d_head)
        query = policy.query_projection(head.tower, head.layer)
        out = policy.out_projection(head.tower, head.layer)
        sites.setdefault(names[query], ("rows", []))[1].append(owned)
        sites.setdefault(names[out], ("columns", []))[1].append(owned)
    return {name: (side, torch.stack(index)) for name, (side, index) in sites.items()}


def _of_heads(
    up: Float[Tensor, "head d_to rank"],
    down: Float[Tensor, "head rank d_from"],
    side: str,
    index: Int[Tensor, "head d_head"],
    linear: nn.Linear,
) -> LowRank | None:
    """The factors of several heads side by side: zero where a head owns nothing."""
    if len(up) != len(index) or len(down) != len(index):
        return None
    if side == "rows":
        wide = up.new_zeros(len(up), linear.out_features, up.shape[-1])
        wide.scatter_(1, index[:, :, None].expand_as(up), up)
        return LowRank(
            rearrange(down, "head rank d_in -> (head rank) d_in"),
            rearrange(wide, "head d_out rank -> d_out (head rank)"),
        )
    wide = down.new_zeros(len(down), down.shape[1], linear.in_features)
    wide.scatter_(2, index[:, None, :].expand_as(down), down)
    return LowRank(
        rearrange(wide, "head rank d_in -> (head rank) d_in"),
        rearrange(up, "head d_out rank -> d_out (head rank)"),
    )


# differences


def _tower_names(policy: Policy) -> list[str]:
    names = {module: name for name, module in policy.module.named_modules()}
    return [names[policy.tower_module(tower)] for tower in policy.spec.towers]


def _same(old: Tensor, new: Tensor | None, name: str) -> bool:
    if new is None or new.shape != old.shape:
        raise UsageError(f"{name} has another shape after finetuning: these are not a policy and its base")
    return torch.equal(old, new)


def _as_low_rank(old: Tensor, new: Tensor, kept: LowRank | None) -> LowRank | None:
    """new - old as a product of small rank; None if there is none."""
    change = new.detach().float() - old.detach().float()
    if kept is not None and (explained := _explained(old, change, kept)) is not None:
        return explained
    rows, columns = (change != 0).any(1).nonzero()[:, 0], (change != 0).any(0).nonzero()[:, 0]
    if min(len(rows), len(columns)) == min(change.shape):
        return None
    if len(rows) <= len(columns):
        return LowRank.of_rows(change[rows], rows, len(change))
    return LowRank.of_columns(change[:, columns], columns, change.shape[1])


def _explained(old: Tensor, change: Float[Tensor, "d_out d_in"], kept: LowRank) -> LowRank | None:
    """`kept` with the scale that explains the change best, if what remains is the rounding of the merge.

    The scale is LoRA's alpha / rank, or the coefficient of an interpolation with the base, or both.
    """
    kept = LowRank(kept.down.float().to(change.device), kept.up.float().to(change.device))
    if kept.change.shape != change.shape or not kept.change.any():
        return None
    direction = exactly(kept.change)
    scale = float((exactly(change) * direction).sum() / (direction * direction).sum())
    return kept.scaled(scale) if _is_rounding(change - scale * kept.change, old, change) else None


def _is_rounding(rest: Tensor, old: Tensor, change: Float[Tensor, "d_out d_in"]) -> bool:
    """Whether a merge into `old` may have lost `rest`: a last digit of each weight, and float32's of the product."""
    sizes = old.detach().float().abs() + change.abs()
    single = 2 * torch.finfo(torch.float32).eps * sizes.max()
    return bool((rest.abs() <= torch.finfo(old.dtype).eps * sizes + single).all())
