"""Head slices: trainable parameters for chosen attention heads, and for nothing else.

Head h of a layer owns rows `h*d_head : (h+1)*d_head` of the query projection (what it looks for) and the same
*columns* of the output projection (what it writes). A slice is an additive change to exactly those entries:

    q   = W_q x  with  dW_q[h] x  added to the head's d_head outputs     dW_q[h]: [d_head, d_in]   rows
    out = W_o z  +  sum_h dW_o[h] z_h                                     dW_o[h]: [d_out, d_head]  columns

held whole (`full`) or as a product of rank r per head (`low-rank`: LoRA, Hu et al. 2021, one small adapter a
head). Only the slices are allocated: the frozen weight gets no gradient and no optimiser state, so memory
grows with the number of heads chosen (masking full gradients, as the published code does, saves none).

Keys and values have no slice. In grouped-query attention they are shared between heads (pi0: one K/V head
for all eight), so no row of them belongs to one head; `attach` refuses and says so.

A `SlicedLinear` *is* an `nn.Linear` and shares weight, bias and hooks with the one it stands in for: hooks
that were there before, or come later, see the same tensors, and taking it off restores the very same module.

Axis names: head (of the chosen ones, ascending), d_head, d_in, d_out, rank, slice = head * d_head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy
from steering.recipe import Form

Side = Literal["rows", "columns"]
PROJECTIONS: Mapping[str, Side] = {"q": "rows", "o": "columns"}


class SlicedLinear(nn.Linear):
    """A frozen Linear plus a trainable change to the rows or columns that belong to some heads.

    `delta` is the whole change: [slice, d_in] for rows, [d_out, slice] for columns. The low-rank form keeps
    `down` and `up` instead, delta[head] = up[head] @ down[head]. Both start at a change of exactly zero.
    """

    index: Int[Tensor, " slice"]

    def __init__(
        self,
        base: nn.Linear,
        heads: Iterable[int],
        d_head: int,
        side: Side,
        form: Form = "full",
        rank: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: weight and bias are the base's own
        for name, value in vars(base).items():
            if "_hooks" in name:
                setattr(self, name, value)  # the same dict: a handle taken on the base still removes its hook
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.heads, self.d_head, self.side, self.form = tuple(sorted(heads)), d_head, side, form
        self._base = [base]  # in a list, else torch would register it as a child

        owned = torch.cat([torch.arange(h * d_head, (h + 1) * d_head) for h in self.heads])
        self.register_buffer("index", owned.to(base.weight.device), persistent=False)
        if form == "full":
            shape = (len(owned), base.in_features) if side == "rows" else (base.out_features, len(owned))
            self.delta = self._zeros(*shape)
        else:
            d_from, d_to = (base.in_features, d_head) if side == "rows" else (d_head, base.out_features)
            self.up = self._zeros(len(self.heads), d_to, rank)
            self.down = self._zeros(len(self.heads), rank, d_from)
            noise = torch.rand(self.down.shape, generator=generator, dtype=self.down.dtype)
            with torch.no_grad():  # LoRA's kaiming_uniform(a=sqrt 5), which is uniform in +-1/sqrt(d_from)
                self.down.copy_((2 * noise - 1) / math.sqrt(d_from))

    def _zeros(self, *shape: int) -> nn.Parameter:
        # half-precision weights still get a float32 change: small steps would round away
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return nn.Parameter(torch.zeros(shape, dtype=dtype, device=self.weight.device))

    @property
    def base(self) -> nn.Linear:
        """The Linear that this one stands in for."""
        return self._base[0]

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        out = F.linear(x, self.weight, self.bias)
        if self.side == "rows":
            return out.index_add(-1, self.index, self._through(x))
        return out + self._through(x.index_select(-1, self.index))

    def _through(self, x: Float[Tensor, "... d_from"]) -> Float[Tensor, "... d_to"]:
        """The change applied to x, without building a weight of full size."""
        if self.form == "full":
            return F.linear(x, self.delta.to(x.dtype))
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.side == "rows":
            low = einsum(x, down, "... d_in, head rank d_in -> ... head rank")
            q = einsum(low, up, "... head rank, head d_head rank -> ... head d_head")
            return rearrange(q, "... head d_head -> ... (head d_head)")
        z = rearrange(x, "... (head d_head) -> ... head d_head", d_head=self.d_head)
        low = einsum(z, down, "... head d_head, head rank d_head -> ... head rank")
        return einsum(low, up, "... head rank, head d_out rank -> ... d_out")

    def change(self) -> Tensor:
        """The change of the weight's slice: [slice, d_in] for rows, [d_out, slice] for columns."""
        if self.form == "full":
            return self.delta
        if self.side == "rows":
            per_head = einsum(self.up, self.down, "head d_head rank, head rank d_in -> head d_head d_in")
            return rearrange(per_head, "head d_head d_in -> (head d_head) d_in")
        per_head = einsum(self.up, self.down, "head d_out rank, head rank d_head -> head d_out d_head")
        return rearrange(per_head, "head d_out d_head -> d_out (head d_head)")

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """What trains here: the change, not the frozen weight and bias."""
        return {k: p for k, p in self.named_parameters() if k in ("delta", "up", "down")}

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Add the change to the frozen weight, in place, and return the plain Linear."""
        dim = 0 if self.side == "rows" else 1
        self.weight.index_add_(dim, self.index, self.change().to(self.weight.dtype))
        return self.base

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.form} {self.side} of heads {list(self.heads)}"


@dataclass(frozen=True)
class Site:
    """Where a SlicedLinear sits: the attention module that calls it, under which name, and in which tower."""

    tower: str
    projection: str
    parent: nn.Module
    name: str
    linear: SlicedLinear


@dataclass(frozen=True)
class Slices:
    """All slices on a policy. Ends in one of two ways: `merge` keeps the change, `remove` forgets it."""

    sites: tuple[Site, ...]

    def parameters(self) -> list[nn.Parameter]:
        return [p for site in self.sites for p in site.linear.own_parameters().values()]

    def groups(self) -> dict[str, int]:
        """Trainable parameters by group, for example {"expert query rows": 24576}."""
        labels = {"q": "query rows", "o": "output columns"}
        counts: dict[str, int] = {}
        for site in self.sites:
            group = f"{site.tower} {labels[site.projection]}"
            size = sum(p.numel() for p in site.linear.own_parameters().values())
            counts[group] = counts.get(group, 0) + size
        return counts

    def changes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(the slice of the weight, its change) of every site."""
        for site in self.sites:
            dim = 0 if site.linear.side == "rows" else 1
            yield site.linear.weight.index_select(dim, site.linear.index), site.linear.change()

    def merge(self) -> None:
        """Write every change into its weight and put the plain Linears back."""
        for site in self.sites:
            setattr(site.parent, site.name, site.linear.merge())

    def remove(self) -> None:
        """Put the plain Linears back without the change: the policy is exactly what it was."""
        for site in self.sites:
            setattr(site.parent, site.name, site.linear.base)


def attach(
    policy: Policy,
    heads: Iterable[Head],
    *,
    form: Form = "full",
    rank: int = 4,
    projections: Iterable[str] = ("q", "o"),
    seed: int = 0,
) -> Slices:
    """Give the chosen heads trainable slices and freeze everything else of the policy.

    The policy's outputs are unchanged until an optimiser steps. `rank` counts per head and projection and
    only matters to the low-rank form, whose `down` factors are drawn from `seed`.
    """
    projections = tuple(projections)
    _check_projections(projections, policy)
    _check_form(form, rank)
    by_layer = _by_layer(heads, policy)

    generator = torch.Generator().manual_seed(seed)
    policy.module.requires_grad_(False)
    sites = []
    for (tower, layer), chosen in by_layer.items():
        attention, d_head = policy.attention(tower, layer), policy.spec.tower(tower).d_head
        linears = {"q": policy.query_projection(tower, layer), "o": policy.out_projection(tower, layer)}
        for projection in projections:
            base = linears[projection]
            if isinstance(base, SlicedLinear):
                raise UsageError(f"{tower} layer {layer} already carries head slices: merge or remove them")
            name = next(n for n, child in attention.named_children() if child is base)
            sliced = SlicedLinear(base, chosen, d_head, PROJECTIONS[projection], form, rank, generator)
            setattr(attention, name, sliced)
            sites.append(Site(tower, projection, attention, name, sliced))
    return Slices(tuple(sites))


def _by_layer(heads: Iterable[Head], policy: Policy) -> dict[tuple[str, int], list[int]]:
    by_layer: dict[tuple[str, int], list[int]] = {}
    for head in sorted(heads, key=lambda h: (h.tower, h.layer, h.index)):
        policy.spec.check(head)
        chosen = by_layer.setdefault((head.tower, head.layer), [])
        if head.index in chosen:
            raise UsageError(f"head {head} is chosen twice: name each head once")
        chosen.append(head.index)
    if not by_layer:
        raise UsageError("no heads chosen: a head slice needs at least one head")
    return by_layer


def _check_projections(projections: tuple[str, ...], policy: Policy) -> None:
    for projection in projections:
        if projection in ("k", "v"):
            shared = "; ".join(
                f"{name}: {tower.heads} heads share {tower.kv_heads} K/V head{'s' * (tower.kv_heads > 1)}"
                for name, tower in policy.spec.towers.items()
                if tower.kv_heads < tower.heads
            )
            raise UsageError(
                f"projection '{projection}' cannot be trained for single heads: grouped-query attention "
                f"shares keys and values between heads ({shared or 'never sliced here'}); "
                "train 'q' and 'o', or use recipe lora"
            )
        if projection not in PROJECTIONS:
            raise UsageError(f"projection '{projection}': head slices exist for 'q' and 'o'")
    if not projections:
        raise UsageError("no projections: choose 'q', 'o' or both")


def _check_form(form: str, rank: int) -> None:
    if form not in ("full", "low-rank"):
        raise UsageError(f"slice form '{form}': 'full' or 'low-rank'")
    if form == "low-rank" and rank < 1:
        raise UsageError(f"rank {rank}: a low-rank slice needs rank 1 or more")
