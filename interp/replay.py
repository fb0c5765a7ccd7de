"""Replay: start the vlm again in the middle, so that an edit of layer 5 costs nothing in layers 0 to 4.

A clean run of the prefix is remembered: what entered every vlm layer, and with which arguments. From there the layers
from the edited one on run again, several times stacked, and their keys and values complete the clean ones before them.

Works for families whose layers hand keys and values to a `past_key_values` with transformers' `update`; for others
`replayable` is false, and the whole prefix has to run again.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.policies.protocol import Batch, Policy, Prefix


@dataclass(frozen=True)
class PrefixTrace:
    """A clean run of the prefix, remembered so that the vlm can start again in the middle."""

    policy: Policy
    prefix: Prefix
    inputs: tuple[Float[Tensor, "batch token d_model"], ...]
    arguments: tuple[Mapping[str, Any], ...]

    @classmethod
    def record(cls, policy: Policy, batch: Batch) -> "PrefixTrace":
        inputs, arguments = [], []

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.append((args[0] if args else kwargs["hidden_states"]).detach())
            arguments.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

        with ExitStack() as stack:
            for layer in range(policy.spec.tower("vlm").layers):
                module = policy.block("vlm", layer).layer
                stack.callback(module.register_forward_pre_hook(see, with_kwargs=True).remove)
            with torch.no_grad():
                prefix = policy.prefix(batch)
        return cls(policy, prefix, tuple(inputs), tuple(arguments))

    @property
    def replayable(self) -> bool:
        """Whether this family's layers hand their keys and values to `past_key_values`."""
        return all("past_key_values" in arguments for arguments in self.arguments)

    def replay(self, first: int, n: int) -> Prefix:
        """The prefix with every row n times, of which layers from `first` on were computed again."""
        clean = self.prefix.repeat(n)
        last = len(self.inputs) - 1
        cache = _KeyValues(last, dict(enumerate(zip(clean.keys[:first], clean.values[:first], strict=True))))
        rows = len(self.prefix)
        hidden = self.inputs[first].repeat_interleave(n, dim=0)
        for layer in range(first, len(self.inputs)):
            arguments = {name: _repeated(value, rows, n) for name, value in self.arguments[layer].items()}
            try:
                out = self.policy.block("vlm", layer).layer(hidden, **{**arguments, "past_key_values": cache})
            except _Complete:
                break
            hidden = out[0] if isinstance(out, tuple) else out
        keys, values = zip(*(cache.layers[layer] for layer in range(len(self.inputs))), strict=True)
        return Prefix(keys, values, clean.mask)


class _Complete(Exception):
    """Keys and values of all layers are there: the rest of the last layer reaches nothing."""


class _KeyValues:
    """The one method of a transformers cache that an attention layer calls."""

    def __init__(self, last: int, layers: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.last = last
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *others: Any) -> tuple[Tensor, Tensor]:
        self.layers[layer] = (keys, values)
        if layer == self.last:
            raise _Complete
        return keys, values


def _repeated(value: Any, rows: int, n: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_repeated(each, rows, n) for each in value)
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return value.repeat_interleave(n, dim=0)
    return value
