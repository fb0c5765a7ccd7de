"""What tests of patching compare with: plain PyTorch hooks, one head and one pair at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from interp.heads import Head
from interp.patching import Pairs, Sides
from interp.policies import Policy


@contextmanager
def hooked(policy: Policy, head: Head, edit: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """`edit(z of the head [batch, pos, d_head], how often it was called before)` takes the place of z."""
    d = policy.spec.towers[head.tower].d_head
    own, calls = slice(head.index * d, (head.index + 1) * d), []

    def hook(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., own] = edit(z[..., own], len(calls))
        calls.append(1)
        return (z,)

    handle = policy.out_projection(head.tower, head.layer).register_forward_pre_hook(hook)
    yield
    handle.remove()


def naive(
    policy: Policy,
    pairs: Pairs,
    head: Head,
    direction: str = "denoising",
    positions: slice = slice(None),
    steps: tuple[int, ...] = (0, 1, 2, 3),
) -> np.ndarray:
    """Numerator and denominator [2, pair, action], one pair and one head at a time."""
    found = []
    for at in range(len(pairs)):
        sides = Sides.of(policy, pairs, [at], direction, seed=0)
        source: list[Tensor] = []
        with torch.no_grad():
            with hooked(policy, head, lambda z, n, into=source: into.append(z) or z):
                target = policy.denoise(sides.source, sides.noise)

            def place(z: Tensor, n: int, source: list[Tensor] = source) -> Tensor:
                z = z.clone()
                if n in steps:
                    z[:, positions] = source[n][:, positions]
                return z

            base = policy.denoise(sides.base, sides.noise)
            with hooked(policy, head, place):
                patched = policy.denoise(sides.base, sides.noise)
        d, p = (target - base)[0, :, :7].double(), (patched - base)[0, :, :7].double()
        found.append(torch.stack([(p * d).sum(0), (d * d).sum(0)]).numpy())
    return np.stack(found, axis=1)
