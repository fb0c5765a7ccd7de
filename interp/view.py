"""One tower of a policy as TransformerLens sees a language model, so that its patching functions run unchanged.

    from transformer_lens import patching
    view = vla.view("expert")
    clean, corrupt = view.inputs(policy.batch(clean_obs), noise), view.inputs(policy.batch(corrupt_obs), noise)
    _, cache = view.run_with_cache(clean)
    patching.get_act_patch_attn_head_out_all_pos(view, corrupt, cache, metric)   # [layer, head]

Names lose their tower (`blocks.3.attn.hook_z`), "tokens" are `ViewInput`s, whose shape is (batch, pos) of the tower,
and "logits" are the action chunks that `vla(...)` answers, in the robot's units.

TransformerLens knows no flow steps. The expert runs once a step, so a hook is called once a step, and what the cache of
an expert's view holds is indexed by the step that is running while a hook runs: clean values meet corrupt ones of the
same step. Outside of hooks it is an ordinary tensor with the leading axis step.

These sweeps run the policy once a head; patching.py does the same exactly in one stacked pass.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from interp.errors import UsageError
from interp.policies.protocol import Batch, Policy, Prefix

Names = str | Sequence[str] | Callable[[str], bool]
HookFunction = Callable[..., Tensor | None]


class Hooked(Protocol):
    """The part of HookedVLA that a view stands on."""

    policy: Policy

    def __call__(self, batch: Batch, noise: Tensor, prefix: Prefix | None = None) -> Tensor: ...

    def hooks(self, fwd_hooks: Sequence[tuple[Names, HookFunction]]) -> AbstractContextManager[Any]: ...

    def caching(
        self, names: Names | None = None, device: str | torch.device | None = None
    ) -> AbstractContextManager[dict[str, Tensor]]: ...

    def names(self, names: Names | None = None) -> list[str]: ...


@dataclass(frozen=True)
class ViewConfig:
    """What TransformerLens reads of a model's configuration."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    device: torch.device


@dataclass(frozen=True)
class ViewInput:
    """Observations and noise, where TransformerLens expects tokens [batch, pos]."""

    batch: Batch
    noise: Float[Tensor, "batch horizon max_action_dim"]
    prefix: Prefix | None
    shape: torch.Size


@dataclass
class _Clock:
    """The flow step whose hook is running."""

    step: int | None = None


class _Stepped(Tensor):
    """[step, batch, ...]; while a hook runs, indexing sees [batch, ...] of the running step."""

    # Whatever is computed from it is an ordinary tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    clock: _Clock

    def __getitem__(self, key: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        return plain[key] if self.clock.step is None else plain[self.clock.step][key]


class TowerView:
    """`cfg`, `run_with_cache` and `run_with_hooks` of one tower, with TransformerLens's names."""

    training = False

    def __init__(self, vla: Hooked, tower: str) -> None:
        self.vla = vla
        self.tower = tower
        spec = vla.policy.spec.tower(tower)
        self.cfg = ViewConfig(
            spec.layers, spec.heads, spec.kv_heads, spec.d_head, next(vla.policy.module.parameters()).device
        )
        self._clock = _Clock()

    def inputs(self, batch: Batch, noise: Float[Tensor, "batch horizon max_action_dim"]) -> ViewInput:
        """Of an expert's view, the prefix is computed here, once for all runs."""
        spec = self.vla.policy.spec
        prefix = None
        if self.tower == "expert":
            with torch.no_grad():
                prefix = self.vla.policy.prefix(batch)
        return ViewInput(batch, noise, prefix, torch.Size((len(noise), spec.n_positions(self.tower))))

    def __call__(self, tokens: ViewInput) -> Float[Tensor, "batch horizon action"]:
        return self.vla(tokens.batch, tokens.noise, tokens.prefix)

    def run_with_hooks(
        self, tokens: ViewInput, fwd_hooks: Sequence[tuple[Names, HookFunction]] = ()
    ) -> Float[Tensor, "batch horizon action"]:
        """Gradients are not recorded: TransformerLens's sweeps want numbers and never switch them off."""
        hooks = [(self._full(names), self._timed(hook)) for names, hook in fwd_hooks]
        with torch.no_grad(), self.vla.hooks(hooks):
            return self(tokens)

    def run_with_cache(
        self, tokens: ViewInput, names_filter: Names | None = None
    ) -> tuple[Float[Tensor, "batch horizon action"], ActivationCache]:
        with torch.no_grad(), self.vla.caching(self._full(names_filter)) as cache:
            out = self(tokens)
        short = {name.removeprefix(f"{self.tower}."): self._shown(tensor) for name, tensor in cache.items()}
        return out, ActivationCache(short, self)

    def to_tokens(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError("a policy has observations instead of tokens: use view.inputs(batch, noise)")

    # ---- how it works

    def _full(self, names: Names | None) -> list[str]:
        own = f"{self.tower}."
        if names is None:
            return self.vla.names(lambda name: name.startswith(own))
        if callable(names):
            return self.vla.names(lambda name: name.startswith(own) and names(name.removeprefix(own)))
        listed = [names] if isinstance(names, str) else names
        return self.vla.names([own + name for name in listed])

    def _timed(self, hook: HookFunction) -> HookFunction:
        def run(tensor: Tensor, hook_point: Any) -> Tensor | None:
            self._clock.step = hook_point.ctx["step"] if self.tower == "expert" else None
            try:
                # A copy: TransformerLens's patch setters write into what they are given.
                return hook(tensor.clone(), hook=hook_point)
            finally:
                self._clock.step = None

        return lambda tensor, hook: run(tensor, hook)

    def _shown(self, tensor: Tensor) -> Tensor:
        if self.tower != "expert":
            return tensor
        stepped = tensor.as_subclass(_Stepped)
        stepped.clock = self._clock
        return stepped
