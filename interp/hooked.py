"""HookedVLA: TransformerLens hook points around any policy.

    vla = HookedVLA(load_policy("tiny-pi0"))
    batch, noise = policy.batch(observations), policy.noise(len(observations), seed=0)
    actions, cache = vla.run_with_cache(batch, noise, names_filter="expert.blocks.3.attn.hook_z")
    cache["expert.blocks.3.attn.hook_z"]  # [step, batch, pos, head, d_head]

Names and axes are those of sites.py. What is particular to policies:

- One sample runs vision and vlm once and the expert once per denoising step. Caches keep all steps: expert
  entries have a leading axis `step`. A hook function on the expert is called once per step and finds it in
  `hook.ctx["step"]` (0 is the first, at flow time 1).
- Only what is hooked is touched: without hooks the policy runs exactly as if this object did not exist.
- A name that matches nothing is an error, and so is a hook that a call names but that never fires.
- Cached tensors are copies. Nothing here changes train mode, device or parameters. The caller's grad mode
  counts, so gradients flow through hooks; for numbers alone wrap calls in `torch.no_grad()`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint

from interp.errors import UsageError, unknown
from interp.policies.protocol import Batch, Observation, Policy, Prefix
from interp.sites import StepCounter, layer_of, sites, tapped
from interp.view import TowerView

try:
    from transformer_lens import HookedRootModule
except ImportError:  # TransformerLens 3, which goes with LeRobot 0.4's transformers
    from transformer_lens.hook_points import HookedRootModule  # type: ignore[no-redef]

Names = str | Sequence[str] | Callable[[str], bool]
HookFunction = Callable[..., Tensor | None]
_Hooks = list[tuple[str | Callable[..., Any], Callable[..., Any]]]


class TowerHookPoint(HookPoint):
    """A HookPoint that knows its layer although the tower stands in front of its name."""

    def layer(self) -> int:
        return layer_of(str(self.name))


class HookedVLA(HookedRootModule):
    """Hook points of all towers of a policy, with TransformerLens's ways to run them."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        # The policy is no submodule: .to() and .train() on the hooks must not reach it.
        self.policy = policy
        self.spec = policy.spec
        for name in sites(policy):
            _grow(self, name)
        self.setup()
        self.eval()
        self._fired: Counter[str] = Counter()
        self._wired: set[str] = set()
        self._counters: list[StepCounter] = []
        self._check_parity()

    # ---- running

    def forward(
        self,
        batch: Batch,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon action"]:
        """`policy.sample`: actions in the robot's units. With a prefix, vision and vlm do not run."""
        with self._wires(new_sample=True):
            return self.policy.sample(batch, noise, prefix)

    def velocity(
        self,
        batch: Batch,
        x: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """`policy.velocity`: one pass of the expert, step 0."""
        with self._wires(new_sample=True):
            return self.policy.velocity(batch, x, time, prefix)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[Names, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[Names, HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedVLA"]:
        """Hooks for as long as the context lasts; `vla(...)` and every method of the policy run under them.

        The step counts from the start of the context or, within it, from the start of each `vla(...)`. When
        the context ends without an exception, every hook that it named must have fired.
        """
        forward: _Hooks = [(name, hook) for names, hook in fwd_hooks for name in self.names(names)]
        backward: _Hooks = [(name, hook) for names, hook in bwd_hooks for name in self.names(names)]
        before = Counter(self._fired)
        with super().hooks(forward, backward, reset_hooks_end, clear_contexts), self._wires():
            yield self
        self._check_fired([str(name) for name, _ in (*forward, *backward)], before)

    @contextmanager
    def caching(
        self, names: Names | None = None, device: str | torch.device | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Fills the cache with what ran in the context, when it ends; runs of the expert become `step`."""
        chosen = self.names(names)
        seen: dict[str, list[Tensor]] = {name: [] for name in chosen}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            seen[str(hook.name)].append(tensor.detach().clone().to(device))

        cache: dict[str, Tensor] = {}
        with self.hooks([(chosen, keep)]):
            yield cache
        for name, tensors in seen.items():
            if name.startswith("expert."):
                cache[name] = torch.stack(tensors)
            elif len(tensors) == 1:
                cache[name] = tensors[0]
            else:
                raise UsageError(f"hook {name} fired {len(tensors)} times: cache one run at a time")

    def run_with_cache(
        self,
        *args: Any,
        names_filter: Names | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ActivationCache]:
        """`vla(...)` and copies of the named activations; without a filter, of all that exist.

        Watching `hook_pattern` or `hook_attn_scores` replaces fused attention by its formula: attention.py.
        """
        with self.caching(names_filter, device) as cache:
            output = self(*args, **kwargs)
        return output, ActivationCache(cache, self)

    # run_with_hooks is TransformerLens's own: it goes through `hooks` above.

    # ---- the same policy through other libraries

    def view(self, tower: str) -> TowerView:
        """One tower as TransformerLens sees a model: its `patching` functions run on it unchanged (view.py)."""
        return TowerView(self, tower)

    def nnsight(self) -> Any:
        """An nnsight envoy of the policy's own module, to trace and edit whatever has no hook point.

            with traced.trace(state=..., noise=x, timestep=time, **rest of batch):
                z = traced.model.dit.layers[3].self_attn.o_proj.input.save()

        A trace is one velocity; the loop over flow steps is yours.
        """
        from nnsight import NNsight  # takes seconds to import; only this needs it

        return NNsight(self.policy.module)

    # ---- names

    def names(self, names: Names | None = None) -> list[str]:
        """The hooks that a name, a list of names or a predicate stands for; at least one, or an error."""
        if names is None:
            return list(self.hook_dict)
        if callable(names):
            matched = [name for name in self.hook_dict if names(name)]
            if not matched:
                example = next(iter(self.hook_dict))
                raise UsageError(
                    f"the filter matches none of the {len(self.hook_dict)} hooks, such as {example}"
                )
            return matched
        listed = [names] if isinstance(names, str) else list(names)
        for name in listed:
            if name not in self.hook_dict:
                raise unknown("hook", name, self.hook_dict)
        return listed

    def add_hook(self, name: Names, hook: HookFunction, *args: Any, **kwargs: Any) -> None:
        for each in self.names(name):
            super().add_hook(each, hook, *args, **kwargs)

    # ---- how it works

    def train(self, mode: bool = True) -> "HookedVLA":
        """Hook points have no modes, and the policy's is not ours to change."""
        return super().train(False)

    @contextmanager
    def _wires(self, new_sample: bool = False) -> Iterator[None]:
        """Connects the hook points that have hooks and that no surrounding context has connected."""
        for counter in self._counters if new_sample else ():
            counter.reset()
        new = [
            name for name, point in self.hook_dict.items() if point.has_hooks() and name not in self._wired
        ]
        self._wired.update(new)
        try:
            with tapped(self.policy, {name: partial(self._fire, name) for name in new}) as counter:
                self._counters.append(counter)
                try:
                    yield
                finally:
                    self._counters.remove(counter)
        finally:
            self._wired.difference_update(new)

    def _fire(self, name: str, tensor: Tensor, step: int | None) -> Tensor:
        point = self.hook_dict[name]
        if step is not None:
            point.ctx["step"] = step
        self._fired[name] += 1
        return point(tensor)

    def _check_fired(self, names: Sequence[str], before: Counter[str]) -> None:
        silent = [name for name in names if self._fired[name] == before[name]]
        if silent:
            tower = silent[0].split(".")[0]
            raise UsageError(
                f"{len(silent)} hooks never fired, first {silent[0]}: the {tower} tower did not run "
                "(vision and vlm do not when a prefix is given)"
            )

    def _check_parity(self) -> None:
        """Every hook fires, and hooks that do nothing change nothing: not one bit."""
        size = self.spec.image_size
        image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        observation = Observation(dict.fromkeys(self.spec.cameras, image), np.zeros(self.spec.state_dim), "")
        fused = [n for n in self.hook_dict if not n.endswith((".hook_attn_scores", ".hook_pattern"))]
        with torch.no_grad():
            batch, x = self.policy.batch([observation]), self.policy.noise(1, 0)
            time = torch.full((1,), 0.5, device=x.device)
            bare = self.policy.velocity(batch, x, time)
            with self.hooks([(fused, _idle)]):
                hooked = self.policy.velocity(batch, x, time)
        if not torch.equal(bare, hooked):
            worst = (bare - hooked).abs().max()
            raise RuntimeError(f"idle hooks change the output of {self.policy.source} by {worst:.1e}")


def _idle(tensor: Tensor, hook: HookPoint) -> None:
    return None


def _grow(root: nn.Module, name: str) -> None:
    """Makes the submodules that give a hook point its dotted name."""
    *path, last = name.split(".")
    at = root
    for part in path:
        if part not in dict(at.named_children()):
            at.add_module(part, nn.Module())
        at = at.get_submodule(part)
    at.add_module(last, TowerHookPoint())
