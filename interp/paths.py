"""Path patching: what one head tells another, or the action, directly.

Patching a head (patching.py) counts everything that comes of it. A path is one way of that: z of the sender is taken
from the source, everything else is held at the base run, and what is left is the sender's own contribution in the
residual stream, which

head -> action  reaches the final norm and the action projection, in every flow step
head -> head    reaches the receiver's queries, keys and values (or only those that `via` names); what the receiver then
                puts out is patched into a base run in which everything after the receiver may answer

MLPs are held too, unless `mlps="free"` lets them pass on what they get. Held across flow steps as well: the noisy
action that a step starts from is the base's. A vlm head can reach expert heads, through keys and values of its tower;
the action it cannot reach directly. Nothing is linearised: unlike in direct attribution, the norm's scale answers too.

Effects are NIE / TE as in patching.py. The cost is one pass a sender, and one stacked sweep over its receivers.

Source: Wang et al. (arXiv 2211.00593), section 3.1; Goldowsky-Dill et al. (arXiv 2304.05969). Axes: sender, receiver,
pair, action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.assembly import Interval, bootstrap, resumable
from interp.devices import exactly
from interp.edits import Edit, Values
from interp.errors import UsageError
from interp.heads import Head
from interp.patching import Direction, Pairs, Sides, check_effect
from interp.policies.protocol import Policy
from interp.sites import Tap, site_name, tapped
from interp.sweep import BUDGET, Stage

_ORDER = {"vlm": 0, "expert": 1}


@dataclass(frozen=True)
class Paths:
    """What went along every path. Receivers come in the caller's order; the action is apart."""

    senders: tuple[Head, ...]
    receivers: tuple[Head, ...]
    indirect: Float[np.ndarray, "sender receiver_action pair action"]
    """<P, D> by action dimension; the last receiver is the action."""
    total: Float[np.ndarray, "pair action"]

    def _share(self) -> Float[np.ndarray, "sender receiver_action"]:
        return self.indirect.sum(axis=(2, 3)) / self.total.sum()

    @property
    def heads(self) -> Float[np.ndarray, "sender receiver"]:
        """NIE / TE of head -> head; NaN where no path leads."""
        there = np.array([[_leads(s, r) for r in self.receivers] for s in self.senders], dtype=bool)
        return np.where(there.reshape(len(self.senders), len(self.receivers)), self._share()[:, :-1], np.nan)

    @property
    def action(self) -> Float[np.ndarray, " sender"]:
        """NIE / TE of head -> action."""
        return self._share()[:, -1]

    def interval(self, group: Sequence[int] | np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
        """95 % of every effect over resampled groups of pairs: [sender, receiver], the action last."""
        flat = self.indirect.sum(axis=3).reshape(-1, self.indirect.shape[2])
        low, high = bootstrap(flat, self.total.sum(axis=1), np.asarray(group), resamples, seed)
        shape = self.indirect.shape[:2]
        return (None, None) if low is None or high is None else (low.reshape(shape), high.reshape(shape))


def patch_paths(
    policy: Policy,
    pairs: Pairs,
    senders: Sequence[Head],
    receivers: Sequence[Head] = (),
    *,
    via: str = "qkv",
    mlps: Literal["held", "free"] = "held",
    direction: Direction = "denoising",
    seed: int = 0,
    block: int = 4,
    budget: int = BUDGET,
    directory: str | Path | None = None,
    progress: bool = False,
) -> Paths:
    """The effect of every path sender -> receiver and sender -> action. With a directory it resumes, as `patch`."""
    if not senders:
        raise UsageError("path patching needs at least one sender")
    for head in (*senders, *receivers):
        policy.spec.check(head)
        if head.tower not in _ORDER:
            raise UsageError(f"head {head}: paths begin and end in the vlm or the expert")
    if not via or set(via) - set("qkv"):
        raise UsageError(f"a path enters a head via q, k or v, or several of them, not {via!r}")
    if mlps not in ("held", "free"):
        raise UsageError(f"unknown mlps {mlps!r}: known are held, free")

    def compute(members: Sequence[int]) -> Float[np.ndarray, "row pair action"]:
        sides = Sides.of(policy, pairs, members, direction, seed)
        sides.check_aligned(policy, [Edit((head,)) for head in (*senders, *receivers)])
        return _Held(policy, sides, via, mlps == "held", budget).rows(senders, receivers)

    found = resumable(
        None if directory is None else Path(directory),
        {
            "policy": policy.fingerprint,
            "pairs": pairs.fingerprint,
            "senders": list(map(str, senders)),
            "receivers": list(map(str, receivers)),
            "how": [via, mlps, direction, seed, block, budget],
        },
        pairs.blocks(block),
        compute,
        desc=f"path patching {direction}",
        progress=progress,
    )
    rows = np.concatenate(found, axis=1)
    check_effect(rows[-1])
    indirect = rows[:-1].reshape(len(senders), len(receivers) + 1, *rows.shape[1:])
    return Paths(tuple(senders), tuple(receivers), indirect, rows[-1])


def _leads(sender: Head, receiver: Head) -> bool:
    """Whether the sender's contribution enters the receiver's layer."""
    if sender.tower == receiver.tower:
        return sender.layer < receiver.layer
    # A layer of the expert reads what enters the same layer of the vlm.
    return _ORDER[sender.tower] < _ORDER[receiver.tower] and sender.layer < receiver.layer


class _Held:
    """The base run of some pairs, which can be run again with everything held but one sender's contribution."""

    def __init__(self, policy: Policy, sides: Sides, via: str, mlps: bool, budget: int) -> None:
        self.policy = policy
        self.sides = sides
        self.via = via
        self.mlps = mlps
        self.stage = Stage(policy, sides.base, budget)
        if not self.stage.prefix.keys:
            raise UsageError(
                f"{policy.spec.family}: its expert reads what the vlm puts out at its end, not keys and values of its "
                "layers, so paths between heads are not defined here; use patch, ablation or attribute"
            )
        self.target, self.source = sides.source_run(policy, _ORDER)
        self.base = self._base_run()

    def rows(
        self, senders: Sequence[Head], receivers: Sequence[Head]
    ) -> Float[np.ndarray, "row pair action"]:
        """<P, D> of every sender's receivers and of the action, then <D, D>."""
        dims = self.policy.spec.action_dim
        with torch.no_grad():
            answer = self.policy.denoise(self.sides.base, self.sides.noise, self.stage.prefix)
        base = exactly(answer[..., :dims])
        difference = exactly(self.target) - base
        rows = []
        for sender in senders:
            values, action = self._sent(sender)
            reached = [receiver for receiver in receivers if _leads(sender, receiver)]
            answers = iter(())
            if reached:
                edits = [Edit((receiver,)) for receiver in reached]
                answers = iter(exactly(self.stage.denoise(self.sides.noise, edits, values)) - base)
            changes = [next(answers) if r in reached else torch.zeros_like(base) for r in receivers]
            changes.append(exactly(action) - base)
            rows.append(einsum(torch.stack(changes), difference, "to pair h a, pair h a -> to pair a"))
        total = einsum(difference, difference, "pair h a, pair h a -> pair a")
        return torch.cat([*rows, total[None]]).numpy()

    def _names(self) -> list[str]:
        kinds = ["attn.hook_z", "hook_mlp_out"] + [
            f"attn.hook_{node}" for node in "qkv" if node not in self.via
        ]
        names = [
            site_name(tower, layer, kind)
            for tower in _ORDER
            for layer in range(self.policy.spec.tower(tower).layers)
            for kind in kinds
        ]
        return [*names, site_name("expert", 0, "hook_resid_pre")]

    def _base_run(self) -> Mapping[str, Sequence[Tensor]]:
        seen: dict[str, list[Tensor]] = {name: [] for name in self._names()}

        def keep(name: str) -> Tap:
            return lambda tensor, step: seen[name].append(tensor.clone())

        with torch.no_grad(), tapped(self.policy, {name: keep(name) for name in seen}):
            self.policy.denoise(self.sides.base, self.sides.noise)
        return seen

    def _sent(self, sender: Head) -> tuple[Values, Float[Tensor, "pair horizon action"]]:
        """z of all heads that hear the sender, and the action that it writes; nothing else answers."""
        heard: dict[str, list[Tensor]] = {}

        def hold(name: str) -> Tap:
            own = name == site_name(sender.tower, sender.layer, "attn.hook_z")

            def tap(here: Tensor, step: int | None) -> Tensor:
                held = self.base[name][step or 0]
                if name.endswith("hook_z"):
                    heard.setdefault(name, []).append(here.clone())
                if own:
                    source = self.source[name] if step is None else self.source[name][step]
                    held = held.clone()
                    held[..., sender.index, :] = source[..., sender.index, :]
                return held

            return tap

        names = [name for name in self._names() if self.mlps or not name.endswith("hook_mlp_out")]
        with torch.no_grad(), tapped(self.policy, {name: hold(name) for name in names}):
            # The expert alone, if the prefix cannot have changed.
            prefix = self.stage.prefix if sender.tower == "expert" else None
            if prefix is not None:
                heard.update({name: list(self.base[name]) for name in names if name.startswith("vlm.")})
            action = self.policy.denoise(self.sides.base, self.sides.noise, prefix)
        values = {
            name: torch.stack(z) if name.startswith("expert.") else z[0]
            for name, z in heard.items()
            if name.endswith("hook_z")
        }
        return values, action[..., : self.policy.spec.action_dim]
