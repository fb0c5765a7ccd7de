"""A policy in float32, whatever its weights are stored in.

In bfloat16 (three digits) two ways to compute the same thing differ in every layer, and neither is more right: whether
they are the same shows in float32 only. So it is with LeRobot's chunk and the one computed here, and with an adapter on
its base, round(Wx + dWx), and the merged policy, round(W + dW)x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

from interp.policies.protocol import Policy


def is_rounded(policy: Policy) -> bool:
    """Whether any of its weights has less precision than float32."""
    return any(_rounded(parameter) for parameter in policy.module.parameters())


@torch.no_grad()
def rounded_off(changes: Iterable[tuple[Tensor, Tensor]]) -> float:
    """|round(W + dW) - W - dW| / |dW| over all (W, dW): how much of the changes their weights' precision loses.

    Weights in float32 are left out: they lose nothing that counts.
    """
    lost = whole = 0.0
    for weight, change in changes:
        if _rounded(weight):
            exact = weight.float() + change.float()
            lost += float((exact.to(weight.dtype).float() - exact).square().sum())
            whole += float(change.float().square().sum())
    return math.sqrt(lost / whole) if whole else 0.0


@contextmanager
def in_float32(policy: Policy, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """`policy` computes in float32 inside, with `weights` (by module name) in the place of its own; then it is as it
    was, to the bit: float32 holds every number of less precision.

    The weights are cast where they are, one tensor after the other, so that memory never holds both: up to twice the
    bytes of the policy, not three times.
    """
    tensors = chain(policy.module.parameters(), policy.module.buffers())
    rounded = [(tensor, tensor.dtype) for tensor in tensors if _rounded(tensor)]
    given = {policy.module.get_submodule(name).weight: weight for name, weight in (weights or {}).items()}
    replaced = [(own, own.data) for own in given]
    try:
        for tensor, _ in rounded:
            tensor.data = tensor.data.float()
        for own, weight in given.items():
            own.data = weight
        yield
    finally:
        for own, stored in replaced:
            own.data = stored
        for tensor, dtype in rounded:
            tensor.data = tensor.data.to(dtype)


def _rounded(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize < torch.float32.itemsize
