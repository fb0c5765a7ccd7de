"""A policy in float32, whatever its weights are stored in.

In bfloat16 (three digits) an adapter on its base, round(Wx + dWx), and the merged policy, round(W + dW)x, differ in
every layer, and neither is more right: whether an adapter holds the change that was trained shows in float32 only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

from interp.policies import Policy


def is_rounded(policy: Policy) -> bool:
    """Whether any of its weights has less precision than float32."""
    return any(
        parameter.dtype.is_floating_point and parameter.dtype.itemsize < torch.float32.itemsize
        for parameter in policy.module.parameters()
    )


@torch.no_grad()
def rounded_off(changes: Iterable[tuple[Tensor, Tensor]]) -> float:
    """|round(W + dW) - W - dW| / |dW| over all (W, dW): how much of the changes their weights' precision loses.

    Weights in float32 are left out: they lose nothing that counts.
    """
    lost = whole = 0.0
    for weight, change in changes:
        if weight.dtype.itemsize < torch.float32.itemsize:
            exact = weight.float() + change.float()
            lost += float((exact.to(weight.dtype).float() - exact).square().sum())
            whole += float(change.float().square().sum())
    return math.sqrt(lost / whole) if whole else 0.0


@contextmanager
def in_float32(policy: Policy, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """`policy` computes in float32 inside, with `weights` (by module name) in the place of its own; then it is as it
    was."""
    tensors = [
        tensor
        for tensor in chain(policy.module.parameters(), policy.module.buffers())
        if tensor.dtype.is_floating_point
    ]
    stored = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        for name, weight in (weights or {}).items():
            policy.module.get_submodule(name).weight.data = weight
        yield
    finally:
        for tensor, data in zip(tensors, stored, strict=True):
            tensor.data = data
