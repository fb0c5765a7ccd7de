"""The constant part of a prefix: what a frame always gives, as long as nothing before it trains.

`first_trained_layer` finds where training begins; `Constant` says what lies before, as a tree of tensors that can be
stored a frame at a time, and completes it to the whole prefix, with gradients to what trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from interp.keyvalues import Complete, KeyValues, cache_argument, with_cache
from interp.policies import Batch, Policy, Prefix


def first_trained_layer(policy: Policy, batch: Batch) -> int | None:
    """The first vlm layer that must run again at every step; the number of layers if the whole prefix is a
    constant; None if already what enters the vlm is not."""
    layers = policy.spec.tower("vlm").layers
    grown: list[bool] = []
    with torch.enable_grad():
        prefix = _watched(policy, batch, lambda hidden, arguments: grown.append(hidden.requires_grad))
    if not any(t.requires_grad for t in prefix.tensors):
        return layers
    if not grown or grown[0]:  # layers that are not called as modules, or gradients from before the vlm
        return None
    return grown.count(False) - 1


class Constant:
    """Everything before vlm layer `start`."""

    def __init__(self, policy: Policy, start: int) -> None:
        self.policy, self.start = policy, start
        self.layers = policy.spec.tower("vlm").layers

    def of(self, batch: Batch) -> dict[str, Any] | None:
        """None if this family's vlm cannot start in the middle: its layers must hand keys and values to a transformers
        cache."""
        inputs: list[Tensor] = []
        arguments: list[Mapping[str, Any]] = []

        def see(hidden: Tensor, others: Mapping[str, Any]) -> None:
            inputs.append(hidden)
            arguments.append(others)

        with torch.no_grad():
            prefix = _watched(self.policy, batch, see)
        # Pixels have done their work: the expert asks the batch for the state alone.
        values: dict[str, Any] = {
            "batch": {name: t for name, t in batch.items() if not name.startswith("pixel")},
            "keys": prefix.keys[: self.start],
            "values": prefix.values[: self.start],
            "read": prefix.read if self.start == self.layers else (),
            "mask": prefix.mask,
        }
        if self.start == self.layers:
            return values
        later = arguments[self.start :]
        if not later or not all(map(cache_argument, later)):
            return None
        return {
            **values,
            "input": inputs[self.start],
            "arguments": [with_cache(others, None) for others in later],
        }

    def complete(self, values: Mapping[str, Any]) -> tuple[Batch, Prefix]:
        keys, found = list(values["keys"]), list(values["values"])
        if self.start < self.layers:
            rest = KeyValues(last=self.layers - 1)
            hidden = values["input"]
            for layer, others in enumerate(values["arguments"], start=self.start):
                try:
                    out = self.policy.block("vlm", layer).layer(hidden, **with_cache(others, rest))
                except Complete:
                    break
                hidden = out[0] if isinstance(out, tuple) else out
            computed = [rest.layers[layer] for layer in range(self.start, self.layers)]
            keys += [key for key, _ in computed]
            found += [value for _, value in computed]
        return values["batch"], Prefix(tuple(keys), tuple(found), values["mask"], tuple(values["read"]))


def _watched(policy: Policy, batch: Batch, see: Callable[[Tensor, Mapping[str, Any]], None]) -> Prefix:
    """The prefix, while `see` is shown what enters every vlm layer: hidden states, and all other arguments."""

    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        see(args[0] if args else kwargs["hidden_states"], others)

    with ExitStack() as stack:
        for layer in range(policy.spec.tower("vlm").layers):
            module = policy.block("vlm", layer).layer
            stack.callback(module.register_forward_pre_hook(show, with_kwargs=True).remove)
        return policy.prefix(batch)
