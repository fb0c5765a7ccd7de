"""What an optimiser step changes: the trained weights, AdamW's moments and the weights' average.

Weights of less precision than float32 are trained as openpi trains them: the network computes with them as they are,
and the optimiser holds them in float32 ("master weights", Micikevicius et al., arXiv 1710.03740). bfloat16 has three
digits: a step of 2.5e-5 on a weight of 0.05 would round away, every time. After each step the network gets the master
weights rounded, so what is trained is always what would be saved. A float32 weight is its own master.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from interp.policies import Policy
from steering.recipe import Recipe
from steering.recipes import trainable


class TrainingState(NamedTuple):
    """The first three are what a checkpoint holds, in its order."""

    parameters: dict[str, nn.Parameter]
    """What the optimiser holds, in float32 at least."""
    optimiser: torch.optim.AdamW
    average: dict[str, Tensor] | None
    network: dict[str, nn.Parameter]
    """What the policy computes with; of float32 weights the same objects as in `parameters`."""

    @classmethod
    def of(cls, policy: Policy, recipe: Recipe) -> TrainingState:
        network = trainable(policy)
        parameters = {name: _master(p) for name, p in network.items()}
        optimiser = torch.optim.AdamW(
            parameters.values(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        average = {name: p.detach().clone() for name, p in parameters.items()} if recipe.ema else None
        return cls(parameters, optimiser, average, network)

    def gradients(self) -> list[Tensor]:
        """Those that the last backward pass left, taken to the master weights: one at a time, which halves the peak."""
        for master, parameter in self._rounded():
            if parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.to(master.dtype), None
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    @torch.no_grad()
    def take_step(self, lr: float, ema: float, step: int) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        for name, value in (self.average or {}).items():
            # early on the average follows closely, or it would still hold the start
            value.lerp_(self.parameters[name], 1 - min(ema, (1 + step) / (10 + step)))
        self.round()

    @torch.no_grad()
    def round(self) -> None:
        """The network gets the master weights."""
        for master, parameter in self._rounded():
            parameter.copy_(master)

    @torch.no_grad()
    def settle(self) -> None:
        """The average, if one is kept, becomes the weights."""
        for name, value in (self.average or {}).items():
            self.network[name].copy_(value)

    def _rounded(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(master, weight of the network) where they are two."""
        for name, parameter in self.network.items():
            if self.parameters[name] is not parameter:
                yield self.parameters[name], parameter


def _master(parameter: nn.Parameter) -> nn.Parameter:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter if parameter.dtype == dtype else nn.Parameter(parameter.detach().to(dtype))
