"""The prefix as a transformers cache: every pass of the expert puts its suffix behind it, none leaves a trace."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.gemma.modeling_gemma import GemmaModel

from interp.policies.protocol import Prefix

CACHE = "cache" if "cache" in inspect.signature(GemmaModel.forward).parameters else "past_key_values"
"""What transformers calls keys and values that a pass starts from: renamed in 5.24."""


def cache_over(prefix: Prefix) -> DynamicCache:
    """A transformers cache of the prefix, behind which every pass puts its suffix; the prefix stays as is."""
    cache = DynamicCache()
    cache.layers.extend(map(OverPrefix, prefix.keys, prefix.values))
    return cache


class OverPrefix(DynamicLayer):
    """Keys and values of the prefix. An update shows them with the suffix behind, and does not remember it."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        # What `lazy_initialization` sets; its arguments differ between transformers 4 and 5.
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys, values
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        start = self.keys.shape[-2]
        fits = self._room is not None and self._room[0].shape[-2] == start + key_states.shape[-2]
        # Autograd may need what an earlier pass saw, so with gradients nothing is written twice.
        if torch.is_grad_enabled() or self._room is None or not fits:
            seen = torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)
            self._room = None if torch.is_grad_enabled() else seen
            return seen
        self._room[0][..., start:, :] = key_states
        self._room[1][..., start:, :] = value_states
        return self._room
