"""What the toolkit asks of a policy: a structural Protocol, so that a family is one file and inherits
nothing.

Axis names:

batch     observations; with `draws` > 1 every observation is repeated draws times, neighbours in the batch
camera    in the order of `PolicySpec.cameras`
horizon   steps of the action chunk
action    real action dimensions; `max_action_dim` counts the padding that the network was built with
token     prefix tokens: image tokens camera by camera, then language (and in SmolVLA the state)

Flow matching runs from noise at time 1 to actions at time 0: x = time * noise + (1 - time) * actions, and the
network predicts the velocity noise - actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from interp.errors import UsageError
from interp.policies.spec import PolicySpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Batch: TypeAlias = "dict[str, Tensor]"
"""Observations ready for the network, first axis `batch`. Families choose the keys; `state` (normalised) and
`attention_mask` [batch, token], 0 on padded prefix tokens, are always there."""


@dataclass(frozen=True)
class Observation:
    """What the robot sees at one instant."""

    images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    state: Float[np.ndarray, " state"]
    instruction: str

    def __post_init__(self) -> None:
        for camera, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise UsageError(
                    f"image {camera!r} is {image.dtype} {image.shape}: it must be uint8 (height, width, 3)"
                )
        if np.ndim(self.state) != 1 or not np.isfinite(self.state).all():
            raise UsageError(f"state must be one finite vector, not {self.state!r}")


@dataclass(frozen=True)
class Prefix:
    """All that the expert sees of images and instruction: the prefix tokens' keys and values of every vlm layer, or,
    in families whose expert reads the vlm's output instead, that output (`read`), with no keys and values.

    Immutable: one prefix serves any number of (noise, time) draws, and a failing forward pass cannot spoil
    it.
    """

    keys: tuple[Float[Tensor, "batch kv_head token d_head"], ...]
    values: tuple[Float[Tensor, "batch kv_head token d_head"], ...]
    mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"]
    read: tuple[Float[Tensor, "batch token d_model"], ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Without the mask."""
        return (*self.keys, *self.values, *self.read)

    def __len__(self) -> int:
        return self.mask.shape[0]

    def repeat(self, draws: int) -> Prefix:
        """Every row `draws` times, neighbours in the batch. A single row is not copied."""
        return self.map(lambda tensor: tensor[:, None].expand(-1, draws, *tensor.shape[1:]).flatten(0, 1))

    def select(self, rows: Int[Tensor, " rows"] | slice) -> Prefix:
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Callable[..., Tensor], *others: Prefix) -> Prefix:
        """`change` of every tensor, and of the same tensors of the others."""

        def changed(part: Callable[[Prefix], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            return tuple(map(change, *map(part, (self, *others))))

        return Prefix(
            changed(lambda prefix: prefix.keys),
            changed(lambda prefix: prefix.values),
            change(self.mask, *(prefix.mask for prefix in others)),
            changed(lambda prefix: prefix.read),
        )


@dataclass(frozen=True)
class Block:
    """The modules of one transformer layer that hooks attach to. A family leaves out what it does not have.

    `out`'s input is z [batch, pos, heads * d_head]; its output is what attention adds to the residual stream.
    """

    layer: nn.Module
    attention: nn.Module
    out: nn.Linear
    query: nn.Linear | None = None
    key: nn.Linear | None = None
    value: nn.Linear | None = None
    mlp: nn.Module | None = None


@dataclass(frozen=True)
class Readout:
    """How the expert's stream becomes action: a flow step adds scale * projection(norm(stream)) to the chunk.

    Of the projection's outputs the first `action_dim` are real.
    """

    norm: nn.Module
    projection: nn.Linear
    scale: float


@runtime_checkable
class Policy(Protocol):
    """A vision-language-action policy with flow matching.

    The network stays in eval mode and where it was loaded; its parameters are frozen until somebody who
    trains unfreezes them. Every method respects the caller's grad mode: wrap calls in `torch.no_grad()` when
    only numbers are wanted and something upstream requires gradients.
    """

    spec: PolicySpec
    module: nn.Module
    fingerprint: str
    source: str

    def batch(self, observations: Sequence[Observation]) -> Batch: ...

    def prefix(self, batch: Batch, draws: int = 1) -> Prefix:
        """Vision and vlm, once."""
        ...

    def velocity(
        self,
        batch: Batch,
        x: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """One pass of the expert. x may hold several draws of each row of batch, as `Prefix.repeat` orders
        them. The prefix has one row for each of them, or one for each row of batch, which its draws then share:
        the same numbers, less work; the expert's activations then have all draws of an observation along pos.
        """
        ...

    def loss(
        self,
        batch: Batch,
        actions: Float[Tensor, "batch horizon action"],
        noise: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon action"]:
        """Squared velocity error, elementwise over real dimensions, of normalised actions."""
        ...

    def denoise(
        self,
        batch: Batch,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        prefix: Prefix | None = None,
        steps: range | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """All flow steps from noise to normalised actions, deterministic; or only `steps`, from what the step
        before the first of them left.
        """
        ...

    def sample(
        self, batch: Batch, noise: Float[Tensor, "batch horizon max_action_dim"], prefix: Prefix | None = None
    ) -> Float[Tensor, "batch horizon action"]:
        """`denoise`, in the robot's units."""
        ...

    def noise(self, n: int, seed: int | torch.Generator) -> Float[Tensor, "batch horizon max_action_dim"]: ...

    def normalise_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        """From the robot's units to what the network sees: standard deviations from the mean, where a policy
        normalises by extremes or quantiles half their range from its middle, and without statistics the same."""
        ...

    def normalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None = None
    ) -> Float[Tensor, "batch *axes action"]:
        """From the robot's units to what the network predicts. `state` is the robot's, in its units, at the start of
        every row's chunk: a policy that acts in deltas needs it, others do not look at it.
        """
        ...

    def unnormalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None = None
    ) -> Float[Tensor, "batch *axes action"]:
        """The inverse of `normalise_actions`."""
        ...

    def block(self, tower: str, layer: int) -> Block: ...

    def tower_module(self, tower: str) -> nn.Module:
        """The module that holds the whole tower."""
        ...

    def attention(self, tower: str, layer: int) -> nn.Module: ...

    def out_projection(self, tower: str, layer: int) -> nn.Linear: ...

    def query_projection(self, tower: str, layer: int) -> nn.Linear: ...

    def readout(self) -> Readout: ...

    def save(self, directory: str | Path) -> None:
        """A directory that `load_policy` reads back, there completely or not at all."""
        ...
