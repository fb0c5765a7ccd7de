"""Sites: the places inside a policy where activations can be read and replaced, by TransformerLens's names.

`<tower>.blocks.<layer>.<kind>`, where kind and axes are

    hook_resid_pre, hook_resid_post           [batch, pos, d_model]         stream before and after the layer
    attn.hook_q, attn.hook_k, attn.hook_v     [batch, pos, head, d_head]    before rotation; KV heads in k, v
    attn.hook_attn_scores, attn.hook_pattern  [batch, head, query, key]     before and after softmax
    attn.hook_z                               [batch, pos, head, d_head]    before the output projection
    hook_attn_out, hook_mlp_out               [batch, pos, d_model]         what is added to the stream

The vision tower has an axis `camera` after batch. Keys of the expert's pattern are all tokens, prefix and suffix, or in
a cross-attention layer the prefix alone; see `PolicySpec.spans`. `tapped` is the one primitive: capture uses it
directly, HookedVLA puts TransformerLens on top.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn

from interp.attention import Watch, has_pattern, watched
from interp.errors import UsageError, unknown
from interp.policies.protocol import Block, Policy

Tap = Callable[[Tensor, int | None], Tensor | None]
"""Sees an activation, and in the expert how often the tower has run before in this context (the denoising
step when one sample is drawn); returns a replacement of the same shape, or None to leave it."""

_NAME = re.compile(r"(?P<tower>\w+)\.blocks\.(?P<layer>\d+)\.(?P<kind>[\w.]+)")


@dataclass(frozen=True)
class Site:
    """One kind of activation of one layer. `heads` sizes the head axis that the module keeps flattened."""

    tower: str
    layer: int
    kind: str
    where: Literal["input", "output", "scores", "pattern"]
    heads: int | None = None

    @property
    def name(self) -> str:
        return site_name(self.tower, self.layer, self.kind)

    def module(self, block: Block) -> nn.Module:
        parts = {
            "hook_resid_pre": block.layer,
            "hook_resid_post": block.layer,
            "attn.hook_q": block.query,
            "attn.hook_k": block.key,
            "attn.hook_v": block.value,
            "attn.hook_attn_scores": block.attention,
            "attn.hook_pattern": block.attention,
            "attn.hook_z": block.out,
            "hook_attn_out": block.out,
            "hook_mlp_out": block.mlp,
        }
        module = parts[self.kind]
        assert module is not None
        return module


def site_name(tower: str, layer: int, kind: str) -> str:
    """`site_name("expert", 3, "attn.hook_z")` is `expert.blocks.3.attn.hook_z`."""
    return f"{tower}.blocks.{layer}.{kind}"


def layer_of(name: str) -> int:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not a hook name: write for example expert.blocks.3.attn.hook_z")
    return int(match["layer"])


def sites(policy: Policy) -> dict[str, Site]:
    """Every site that the policy offers, by name, in the order of the forward pass."""
    return {
        site.name: site
        for tower, spec in policy.spec.towers.items()
        for layer in range(spec.layers)
        for site in _layer_sites(policy, tower, layer)
    }


def site_of(policy: Policy, name: str) -> Site:
    """The site of that name. Looks at its layer alone: listing all sites costs as much as a layer's forward pass."""
    match = _NAME.fullmatch(name)
    if match is not None and match["tower"] in policy.spec.towers:
        tower, layer = match["tower"], int(match["layer"])
        if layer < policy.spec.towers[tower].layers:
            for site in _layer_sites(policy, tower, layer):
                if site.name == name:
                    return site
    raise unknown("hook", name, sites(policy))


def _layer_sites(policy: Policy, tower: str, layer: int) -> Iterator[Site]:
    block, spec = policy.block(tower, layer), policy.spec.towers[tower]
    heads = spec.heads_per_layer[layer]
    yield Site(tower, layer, "hook_resid_pre", "input")
    for kind, module, count in (
        ("attn.hook_q", block.query, heads),
        ("attn.hook_k", block.key, spec.kv_heads),
        ("attn.hook_v", block.value, spec.kv_heads),
    ):
        if module is not None:
            yield Site(tower, layer, kind, "output", count)
    if has_pattern(block.attention):
        yield Site(tower, layer, "attn.hook_attn_scores", "scores")
        yield Site(tower, layer, "attn.hook_pattern", "pattern")
    yield Site(tower, layer, "attn.hook_z", "input", heads)
    yield Site(tower, layer, "hook_attn_out", "output")
    if block.mlp is not None:
        yield Site(tower, layer, "hook_mlp_out", "output")
    yield Site(tower, layer, "hook_resid_post", "output")


@contextmanager
def tapped(policy: Policy, taps: Mapping[str, Tap]) -> Iterator["StepCounter"]:
    """Within the context, every forward pass of the policy shows the named activations to their taps.

    Yields the counter behind the taps' second argument, to be reset when a new sample begins.
    """
    chosen = {name: site_of(policy, name) for name in taps}
    counter = StepCounter()
    if not taps:
        yield counter
        return
    with ExitStack() as stack:
        # First, so that the expert's own taps see the step that they are in.
        # The first layer, because not every family calls the module around its layers.
        first = policy.block("expert", 0).layer
        handle = first.register_forward_pre_hook(counter, prepend=True)
        stack.callback(handle.remove)
        watches: dict[nn.Module, dict[str, Callable[[Tensor], Tensor]]] = {}
        for name, tap in taps.items():
            site = chosen[name]
            module = site.module(policy.block(site.tower, site.layer))
            see = partial(_see, site, tap, counter, len(policy.spec.cameras))
            if site.where == "input":
                hook = module.register_forward_pre_hook(partial(_before, see), with_kwargs=True)
                stack.callback(hook.remove)
            elif site.where == "output":
                stack.callback(module.register_forward_hook(partial(_after, see)).remove)
            else:
                watches.setdefault(module, {})[site.where] = partial(_always, see)
        stack.enter_context(watched({module: Watch(**watch) for module, watch in watches.items()}))
        yield counter


class StepCounter:
    """How often the expert has run since the counter was made or reset."""

    def __init__(self) -> None:
        self.step = -1

    def reset(self, step: int = 0) -> None:
        """The next run is this one."""
        self.step = step - 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.step += 1


def _see(site: Site, tap: Tap, counter: StepCounter, cameras: int, tensor: Tensor) -> Tensor | None:
    """Shows the activation with its named axes; None if the tap left it alone, the module's own shape
    otherwise.
    """
    shown = tensor
    if site.heads is not None:
        shown = rearrange(shown, "... (head d_head) -> ... head d_head", head=site.heads)
    if site.tower == "vision":
        shown = rearrange(shown, "(batch camera) ... -> batch camera ...", camera=cameras)
    replaced = tap(shown, counter.step if site.tower == "expert" else None)
    if replaced is None or replaced is shown:
        # Under autograd the shown view must be the one that the network goes on with, or its gradient stays empty.
        return shown.reshape(tensor.shape) if shown.requires_grad and shown is not tensor else None
    if not isinstance(replaced, Tensor) or replaced.shape != shown.shape:
        got = tuple(replaced.shape) if isinstance(replaced, Tensor) else type(replaced).__name__
        raise UsageError(f"a hook on {site.name} returned {got}: it must return {tuple(shown.shape)} or None")
    return replaced.reshape(tensor.shape)


_See = Callable[[Tensor], Tensor | None]


def _before(
    see: _See, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if args:
        replaced = see(args[0])
        return None if replaced is None else ((replaced, *args[1:]), kwargs)
    replaced = see(kwargs["hidden_states"])
    return None if replaced is None else (args, {**kwargs, "hidden_states": replaced})


def _after(see: _See, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        replaced = see(output[0])
        return None if replaced is None else (replaced, *output[1:])
    return see(output)


def _always(see: _See, tensor: Tensor) -> Tensor:
    replaced = see(tensor)
    return tensor if replaced is None else replaced
