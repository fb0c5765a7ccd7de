"""What differs between LeRobot's architectures: one small class each behind this Protocol; policy.py has the rest.

An architecture drives LeRobot's own modules, layer by layer, so that hooks, replay and head slices find in it what they
find in transformers' PI0: layers and attentions that are called as modules, and a prefix computed once. LeRobot's own
forward passes run the same modules in another order; `LeRobotPolicy` compares the two when a policy is loaded.

Axis names: those of ../protocol.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.policies.protocol import Batch, Block, Prefix, Readout
from interp.policies.spec import Anchor, TokenSpan


@dataclass(frozen=True)
class Stack:
    """The layers of one tower and how their attention is divided."""

    module: nn.Module
    layers: Any
    kv_heads: int
    d_head: int


@dataclass(frozen=True)
class Layout:
    """Where tokens stand, and what becomes of an image."""

    spans: Mapping[str, TokenSpan]
    suffix: str
    image_size: int
    anchor: Anchor
    patches: tuple[int, int] | None = None

    @classmethod
    def of(cls, lengths: Sequence[tuple[str, int]], grid: tuple[int, int], **others: Any) -> "Layout":
        """Spans one after the other; names that start with `image/` have a patch grid, `-` is a gap without a name."""
        spans, stop = {}, 0
        for name, length in lengths:
            start, stop = stop, stop + length
            if name != "-" and length:
                spans[name] = TokenSpan(start, stop, grid if name.startswith("image/") else None)
        return cls(spans=spans, **others)


class Architecture(Protocol):
    """How one of LeRobot's policies computes. `module` is LeRobot's policy."""

    module: Any
    horizon: int
    flow_steps: int
    max_action_dim: int
    max_tokens: int
    prompt_start: int | None
    """At which token of the language span the instruction begins; None if it does not stand there as it is."""

    def towers(self) -> Mapping[str, Stack]: ...

    def layout(self, cameras: Sequence[str]) -> Layout: ...

    def block(self, tower: str, layer: int) -> Block: ...

    def inputs(self, processed: Mapping[str, Tensor]) -> Batch:
        """`pixel_values` [batch, camera, 3, height, width] as the vision tower reads them, and whatever else the batch
        needs, from what LeRobot's pre-processor made of an observation."""
        ...

    def prefix(self, batch: Batch) -> Prefix: ...

    def velocity(
        self,
        batch: Batch,
        x: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """One row of batch and prefix for each row of x."""
        ...

    def step(self, batch: Batch, x: Tensor, at: int, prefix: Prefix) -> Tensor:
        """What flow step `at` makes of x."""
        ...

    def loss(
        self,
        batch: Batch,
        actions: Float[Tensor, "batch horizon action"],
        noise: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix,
    ) -> Float[Tensor, "batch horizon action"]:
        """What LeRobot trains on, element by element."""
        ...

    def query(self, tower: str, layer: int) -> nn.Linear | None:
        """The Linear whose first rows are the queries, head by head."""
        ...

    def lerobots(
        self, processed: Mapping[str, Any], seed: int
    ) -> tuple[Float[Tensor, "1 horizon max_action_dim"], Float[Tensor, "1 horizon action"]]:
        """Noise, and the chunk that LeRobot's own code computes from it, normalised."""
        ...

    def readout(self) -> Readout: ...


class Flow:
    """Flow matching by Euler steps along the velocity, as in pi0 and in what follows it."""

    module: Any
    horizon: int
    flow_steps: int
    max_action_dim: int
    velocity: Callable[..., Tensor]
    block: Callable[[str, int], Block]

    def step(self, batch: Batch, x: Tensor, at: int, prefix: Prefix) -> Tensor:
        dt = -1.0 / self.flow_steps
        time = torch.full((len(x),), 1.0 + at * dt, dtype=torch.float32, device=x.device)
        return x + dt * self.velocity(batch, x, time, prefix)

    def loss(self, batch: Batch, actions: Tensor, noise: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        target = F.pad(actions, (0, self.max_action_dim - actions.shape[-1]))
        t = time[:, None, None]
        velocity = self.velocity(batch, t * noise + (1 - t) * target, time, prefix)
        return ((velocity - (noise - target)) ** 2)[..., : actions.shape[-1]]

    def query(self, tower: str, layer: int) -> nn.Linear | None:
        return self.block(tower, layer).query

    def lerobots(self, processed: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, self.horizon, self.max_action_dim, generator=generator)
        noise = noise.to(next(self.module.parameters()).device)
        return noise, self.module.predict_action_chunk(dict(processed), noise=noise)


def block_of(layer: Any) -> Block:
    """The parts of a layer by the names that transformers gives them; vision's output projection has its own."""
    attention = layer.self_attn
    return Block(
        layer=layer,
        attention=attention,
        out=attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        mlp=getattr(layer, "mlp", None),
    )


def between(
    lower: float, seen: Bool[Tensor, "batch query key"], like: Tensor
) -> Float[Tensor, "batch 1 query key"]:
    """An additive attention mask: 0 where seen, `lower` elsewhere. A query that sees nothing stays finite."""
    mask = torch.full(seen.shape, lower, dtype=like.dtype, device=like.device)
    return mask.masked_fill(seen, 0.0)[:, None]


def positions_of(mask: Bool[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """Counting only real tokens."""
    return mask.cumsum(dim=1) - 1


def through(layers: Sequence[nn.Module], hidden: Tensor, **arguments: Any) -> Tensor:
    """The layers one after the other; every layer may answer with a tensor or a tuple."""
    for layer in layers:
        out = layer(hidden, **arguments)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def kept(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of every layer of a transformers cache."""
    return ((layer.keys, layer.values) for layer in cache.layers)
