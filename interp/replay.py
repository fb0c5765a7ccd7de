"""Replay: start a tower again in the middle, so that an edit of layer 5 costs nothing in layers 0 to 4.

A clean pass is remembered: what left every layer (`outputs`) and what entered every output projection (`z`). An edit of
z in layer `first` changes nothing before that projection, so a pass with the edit may take everything up to there from
memory, several times stacked. Two ways:

resumed      inside an ordinary pass of the policy: layers before `first` hand on what was remembered instead of
             computing, and so does the attention of `first`
PrefixTrace  the vlm alone, whose pass is wanted for its keys and values: layers from `first` on are called by hand, and
             complete the clean keys and values before them

Works for families whose attention modules return what the output projection made of z, first of a tuple or alone, and
for PrefixTrace whose layers hand keys and values to a transformers cache (`update`); for others `replayable` is false,
and the whole prefix has to run again.

Axes: those of protocol.py; `row` is the rows of a clean pass, (batch inner): inner is camera in vision, draw in the
expert.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from interp.keyvalues import Complete, KeyValues, cache_argument, with_cache
from interp.policies.protocol import Batch, Policy, Prefix


@dataclass
class TowerRecord:
    """Clean passes of a tower: of each pass its first input, and of each [pass][layer] what left it and what its output
    projection read; copies. And how layers and their attention wrap what they return: None, a bare tensor; else the
    length of the tuple."""

    start: list[Float[Tensor, "row pos d_model"]] = field(default_factory=list)
    outputs: list[list[Float[Tensor, "row pos d_model"]]] = field(default_factory=list)
    z: list[list[Float[Tensor, "row pos head_d_head"]]] = field(default_factory=list)
    arguments: list[Mapping[str, Any]] = field(default_factory=list)
    layer_tuple: int | None = None
    attention_tuple: int | None = None

    def entering(self, at: int, layer: int) -> Float[Tensor, "row pos d_model"]:
        return self.outputs[at][layer - 1] if layer else self.start[at]


@contextmanager
def recorded(policy: Policy, tower: str) -> Iterator[TowerRecord]:
    """Fills the record with the passes of the tower that run in the context."""
    record = TowerRecord()

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def begin(first: bool) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if first:
                record.start.append(copy(args[0] if args else kwargs["hidden_states"]))
                record.outputs.append([])
                record.z.append([])
                record.arguments.clear()
            record.arguments.append(
                {name: value for name, value in kwargs.items() if name != "hidden_states"}
            )

        return see

    def see_output(module: nn.Module, args: Any, output: Any) -> None:
        record.layer_tuple = len(output) if isinstance(output, tuple) else None
        record.outputs[-1].append(copy(output[0] if isinstance(output, tuple) else output))

    def see_attention(module: nn.Module, args: Any, output: Any) -> None:
        record.attention_tuple = len(output) if isinstance(output, tuple) else None

    def see_z(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        record.z[-1].append(copy(args[0]))

    with ExitStack() as stack:
        for layer in range(policy.spec.tower(tower).layers):
            block = policy.block(tower, layer)
            for handle in (
                block.layer.register_forward_pre_hook(begin(layer == 0), with_kwargs=True),
                block.layer.register_forward_hook(see_output),
                block.attention.register_forward_hook(see_attention),
                block.out.register_forward_pre_hook(see_z),
            ):
                stack.callback(handle.remove)
        yield record


@contextmanager
def resumed(
    policy: Policy,
    tower: str,
    record: TowerRecord,
    at: int,
    first: int,
    n: int,
    inner: int = 1,
    reads: bool = True,
) -> Iterator[None]:
    """Within it the tower's next pass is the `at`-th remembered one with every row `n` times, up to layer `first`.

    `reads`: layer `first` computes its attention, because the keys that it reads are edited too; otherwise that is
    remembered as well, and what is computed begins with z. `first` may be the number of layers: nothing is computed.
    """
    layers = policy.spec.tower(tower).layers

    def stacked(tensor: Tensor) -> Tensor:
        return repeat(tensor, "(batch inner) ... -> (batch n inner) ...", n=n, inner=inner)

    with ExitStack() as stack:
        if first > 0:
            known = _wrapped(stacked(record.entering(at, first)), record.layer_tuple)
            for layer in range(first):
                stack.enter_context(instead(policy.block(tower, layer).layer, lambda *a, **k: known))
        if first < layers and not reads:
            block, z = policy.block(tower, first), stacked(record.z[at][first])
            answer = lambda *a, **k: _wrapped(block.out(z), record.attention_tuple)  # noqa: E731
            stack.enter_context(instead(block.attention, answer))
        yield


@contextmanager
def instead(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Within it the module answers with `answer` and computes nothing; its hooks still see the call."""
    before = vars(module).get("forward")
    module.forward = answer
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _wrapped(tensor: Tensor, length: int | None) -> Any:
    return tensor if length is None else (tensor, *[None] * (length - 1))


# ---- the prefix


@dataclass(frozen=True)
class PrefixTrace:
    """A clean run of the prefix, remembered so that the vlm can start again in the middle."""

    policy: Policy
    prefix: Prefix
    record: TowerRecord

    @classmethod
    def record_of(cls, policy: Policy, batch: Batch) -> "PrefixTrace":
        with torch.no_grad(), recorded(policy, "vlm") as record:
            prefix = policy.prefix(batch)
        return cls(policy, prefix, record)

    @property
    def replayable(self) -> bool:
        """Whether this family's layers hand their keys and values to a transformers cache."""
        return all(cache_argument(arguments) for arguments in self.record.arguments)

    def replay(self, first: int, n: int) -> Prefix:
        """The prefix with every row n times, of which everything after z of layer `first` was computed again."""
        clean, rows = self.prefix.repeat(n), len(self.prefix)
        layers = len(self.record.arguments)
        known = {at: (clean.keys[at], clean.values[at]) for at in range(first + 1)}
        cache = KeyValues(layers - 1, known)
        hidden = self.record.entering(0, first).repeat_interleave(n, dim=0)
        for layer in range(first, layers if first < layers - 1 else 0):
            arguments = {
                name: _repeated(value, rows, n) for name, value in self.record.arguments[layer].items()
            }
            with ExitStack() as stack:
                if layer == first:
                    stack.enter_context(resumed(self.policy, "vlm", self.record, 0, first, n, reads=False))
                try:
                    out = self.policy.block("vlm", layer).layer(hidden, **with_cache(arguments, cache))
                except Complete:
                    break
            hidden = out[0] if isinstance(out, tuple) else out
        keys, values = zip(*(cache.layers[layer] for layer in range(layers)), strict=True)
        return Prefix(keys, values, clean.mask)


def _repeated(value: Any, rows: int, n: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_repeated(each, rows, n) for each in value)
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return value.repeat_interleave(n, dim=0)
    return value
