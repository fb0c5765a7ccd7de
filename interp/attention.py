"""Attention probabilities, made visible and editable.

Fused attention kernels never form the probabilities. While somebody watches a layer's scores or pattern, that
layer's tower computes attention by its formula instead, pattern = softmax(q k^T scale + mask), z = pattern v;
other layers of the tower keep the fused kernel. Outputs then differ from the fused ones by rounding (about
1e-6 in float32), which is why the formula is used only while it is watched.

Works for every module that looks its attention function up by `config._attn_implementation`, as transformers'
do.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

_IMPLEMENTATION = "robosteer"
_SUPPORTED = ("sdpa", "eager")

Scores = Float[Tensor, "batch head query key"]
Watcher = Callable[[Scores], Scores]


@dataclass(frozen=True)
class Watch:
    """Functions that see, and may replace, a layer's attention before (scores) and after (pattern) softmax."""

    scores: Watcher | None = None
    pattern: Watcher | None = None


_watched: WeakKeyDictionary[nn.Module, tuple[Watch, ...]] = WeakKeyDictionary()


def has_pattern(attention: nn.Module) -> bool:
    """Whether `watched` can show this module's pattern: it must look its attention function up, not bring its own."""
    if "ALL_ATTENTION_FUNCTIONS" not in vars(sys.modules[type(attention).__module__]):
        return False
    return getattr(getattr(attention, "config", None), "_attn_implementation", None) in _SUPPORTED


@contextmanager
def watched(watches: Mapping[nn.Module, Watch]) -> Iterator[None]:
    """Within the context, the given attention modules compute by the formula and call their watchers."""
    with ExitStack() as stack:
        for module, watch in watches.items():
            stack.callback(_watched.__setitem__, module, _watched.get(module, ()))
            _watched[module] = (*_watched.get(module, ()), watch)
            # Layers of one tower share their config, so only the first of them has to switch it.
            config: Any = module.config
            if config._attn_implementation != _IMPLEMENTATION:
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = _IMPLEMENTATION
        yield


def _attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Float[Tensor, "batch 1 query key"] | Bool[Tensor, "batch 1 query key"] | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], Tensor | None]:
    watches = _watched.get(module, ())
    if not watches:
        fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return fused(module, query, key, value, attention_mask, scaling=scaling, **others)
    group = query.shape[1] // key.shape[1]
    key = repeat(key, "batch kv_head key d -> batch (kv_head group) key d", group=group)
    value = repeat(value, "batch kv_head key d -> batch (kv_head group) key d", group=group)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None:
        attention_mask = _implied_mask(module, scores, others.get("is_causal"))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    for watch in watches:
        scores = scores if watch.scores is None else watch.scores(scores)
    pattern = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    for watch in watches:
        pattern = pattern if watch.pattern is None else watch.pattern(pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _implied_mask(
    module: nn.Module, scores: Scores, is_causal: bool | None
) -> Bool[Tensor, "query key"] | None:
    """The causal mask that the fused kernel applies by itself when it gets none."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    queries, keys = scores.shape[-2:]
    if not causal or queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()


AttentionInterface.register(_IMPLEMENTATION, _attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)
