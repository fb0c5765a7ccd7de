"""Attribution: which heads made the action, from a run or two instead of one run a head.

AtP (attribution patching)   the effect of patching every head, to first order: gradient of the patching metric in the
    base run, times the difference of z. Same pairs, sign and scale as patching.py. It fails where attention saturates,
    so `verify` patches the best heads for real. Source: Nanda 2023; Kramar et al. (arXiv 2403.00745).

Direct action attribution    the part of the action that a head writes itself: z of an action token through the output
    projection, the final norm and the action projection, summed over flow steps. Linearisation: the norm's scale, one
    number a token, is taken from the run and held fixed; then the velocity is a sum over what wrote to the stream, and

        action = noise + sum over heads + sum over MLPs + embedding + bias          (checked on every call)

    Normalised units, signed. What a head does through later layers or later flow steps counts as theirs.

Axes: those of protocol.py; `frame` is an observation of the batch, `layer`, `head` as in spec.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UsageError
from interp.heads import Head
from interp.patching import UNITS, Direction, Pairs, Sides, patch
from interp.policies.protocol import Batch, Policy
from interp.scores import HeadScores, TowerScores
from interp.sites import Tap, site_name, tapped
from interp.sweep import Edit, bootstrap, head_grid, place_of, single

# ---- attribution patching


@dataclass(frozen=True)
class Check:
    """A head's estimate next to what patching it really does: NIE / TE both."""

    head: Head
    estimate: float
    exact: float


def atp(
    policy: Policy,
    pairs: Pairs,
    *,
    towers: Sequence[str] = ("expert",),
    span: str | None = None,
    position: int | None = None,
    step: int | None = None,
    direction: Direction = "denoising",
    data: str | None = None,
    factor: str | None = None,
    verified: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    block: int = 4,
) -> HeadScores:
    """`patch_heads`, estimated: two forward passes and one backward pass for all heads of all towers.

    `verified` heads with the largest estimates are patched for real; `settings["verified"]` has both numbers.
    """
    edits = {
        tower: [replace(edit, span=span, position=position, step=step) for edit in single(policy, tower)]
        for tower in towers
    }
    every = [edit for tower in towers for edit in edits[tower]]
    rows = []
    for members in pairs.blocks(block):
        sides = Sides.of(policy, pairs, members, direction, seed)
        sides.check_aligned(policy, every)
        rows.append(_estimates(policy, sides, every))
    found = np.concatenate(rows, axis=1)
    indirect, total = found[:-1], found[-1]
    if np.sqrt(total.mean()) < 1e-6:
        raise UsageError(
            "clean and corrupt observations are answered with the same actions: nothing to explain"
        )
    low, high = bootstrap(indirect, total, pairs.groups, resamples, seed)
    effect = indirect.sum(axis=1) / total.sum()
    scored, start = {}, 0
    for tower in towers:
        own = slice(start, start := start + len(edits[tower]))
        scored[tower] = TowerScores(
            value=head_grid(policy, edits[tower], effect[own], tower),
            low=None if low is None else head_grid(policy, edits[tower], low[own], tower),
            high=None if high is None else head_grid(policy, edits[tower], high[own], tower),
            dead=policy.spec.tower(tower).dead,
        )
    checks: Sequence[Check] = ()
    if verified:
        checks = verify(policy, pairs, every, effect, verified, direction=direction, seed=seed, block=block)
    return HeadScores(
        method=f"atp-{direction}",
        label=f"attribution patching, {direction}",
        units=UNITS,
        higher_is_better=True,
        towers=scored,
        policy=policy.fingerprint,
        data=data or pairs.fingerprint,
        n={"pairs": len(pairs), "groups": len(np.unique(pairs.groups))},
        settings={
            "direction": direction,
            "span": span,
            "position": position,
            "step": step,
            "pairs": pairs.fingerprint,
            "seed": seed,
            "resamples": resamples,
            "verified": [{**vars(check), "head": str(check.head)} for check in checks],
        },
        factor=factor,
    )


def verify(
    policy: Policy,
    pairs: Pairs,
    edits: Sequence[Edit],
    estimates: Float[np.ndarray, " edit"],
    k: int,
    **options: Any,
) -> list[Check]:
    """The k single-head edits with the largest estimates, either sign, patched for real; options are `patch`'s."""
    top = np.argsort(-np.abs(estimates), kind="stable")[:k].tolist()
    exact = patch(policy, pairs, [edits[at] for at in top], **options).effect
    return [
        Check(edits[at].heads[0], float(estimates[at]), float(true))
        for at, true in zip(top, exact, strict=True)
    ]


def _estimates(policy: Policy, sides: Sides, edits: Sequence[Edit]) -> Float[np.ndarray, "row pair"]:
    """<gradient, difference of z> of every edit, and <D, D> as the last row."""
    towers = sorted({head.tower for edit in edits for head in edit.heads})
    target, source = sides.source_run(policy, towers)
    seen: dict[str, list[Tensor]] = {}

    def tap(name: str) -> Tap:
        def remember(z: Tensor, step: int | None) -> Tensor:
            # With frozen parameters the first z is where the graph begins.
            z = z if z.requires_grad else z.detach().requires_grad_()
            z.retain_grad()
            seen.setdefault(name, []).append(z)
            return z

        return remember

    with torch.enable_grad(), tapped(policy, {name: tap(name) for name in source}):
        base = policy.denoise(sides.base, sides.noise)[..., : policy.spec.action_dim]
        difference = target - base.detach()
        # Pairs are rows of the batch and do not meet, so one backward pass serves all.
        (base * difference).sum().backward()
    products: dict[str, Tensor] = {}
    for name, kept in seen.items():
        expert = name.startswith("expert.")
        changes = [source[name][at] if expert else source[name] for at in range(len(kept))]
        products[name] = torch.stack(
            [
                # A dead head's z is in no path to the action: no gradient.
                torch.zeros_like(z[..., 0]) if z.grad is None else ((new - z) * z.grad).detach().sum(-1)
                for z, new in zip(kept, changes, strict=True)
            ]
        )  # [step, pair, (camera,) pos, head]
    rows = []
    for edit in edits:
        (head,) = edit.heads
        product = products[site_name(head.tower, head.layer, "attn.hook_z")]
        steps = slice(None) if edit.step is None else slice(edit.step, edit.step + 1)
        place: tuple[Any, ...] = (steps, slice(None), *place_of(policy, edit, head.tower), head.index)
        there = product[place]
        rows.append(reduce(there.double(), "step pair ... -> pair", "sum"))
    rows.append(difference.double().square().sum(dim=(1, 2)))
    return torch.stack(rows).cpu().numpy()


# ---- direct action attribution


@dataclass(frozen=True)
class Direct:
    """What every part of the expert writes into the action chunk. Normalised units; the parts add up to `action`."""

    heads: Float[Tensor, "frame layer head horizon action"]
    mlps: Float[Tensor, "frame layer horizon action"]
    embedding: Float[Tensor, "frame horizon action"]
    bias: Float[Tensor, "horizon action"]
    noise: Float[Tensor, "frame horizon action"]
    action: Float[Tensor, "frame horizon action"]

    def total(self) -> Float[Tensor, "frame horizon action"]:
        parts = self.heads.sum(dim=(1, 2)) + self.mlps.sum(dim=1)
        return parts + self.embedding + self.bias + self.noise

    def grid(self) -> Float[np.ndarray, "frame layer head"]:
        """Root mean square of a head's contribution over the chunk: how much it writes, whatever the sign."""
        return self.heads.double().square().mean(dim=(-1, -2)).sqrt().cpu().numpy()

    def scores(
        self,
        policy: Policy,
        data: str,
        group: Sequence[int] | np.ndarray,
        resamples: int = 1000,
        seed: int = 0,
    ) -> HeadScores:
        """`grid` averaged over frames; the interval resamples groups of frames (episodes)."""
        edits = single(policy, "expert")
        per_head = np.stack([self.grid()[:, e.heads[0].layer, e.heads[0].index] for e in edits])
        low, high = bootstrap(per_head, np.ones(per_head.shape[1]), np.asarray(group), resamples, seed)
        return HeadScores(
            method="direct",
            label="direct action attribution, root mean square",
            units="normalised action units",
            higher_is_better=True,
            towers={
                "expert": TowerScores(
                    value=head_grid(policy, edits, per_head.mean(axis=1), "expert"),
                    low=None if low is None else head_grid(policy, edits, low, "expert"),
                    high=None if high is None else head_grid(policy, edits, high, "expert"),
                    dead=policy.spec.tower("expert").dead,
                )
            },
            policy=policy.fingerprint,
            data=data,
            n={"episodes": len(np.unique(group)), "frames": per_head.shape[1]},
            settings={"resamples": resamples, "seed": seed},
        )


def direct(policy: Policy, batch: Batch, noise: Float[Tensor, "frame horizon max_action_dim"]) -> Direct:
    """Direct attribution of the chunk that `policy.denoise(batch, noise)` answers."""
    spec, tower = policy.spec, policy.spec.tower("expert")
    norm, projection = _readout(policy)
    tokens = spec.positions("expert", "action")
    kept: dict[str, list[Tensor]] = {}

    def tap(name: str) -> Tap:
        def see(tensor: Tensor, step: int | None) -> None:
            kept.setdefault(name, []).append(tensor[:, tokens].clone())

        return see

    layers = range(tower.layers)
    if any(policy.out_projection("expert", layer).bias is not None for layer in layers):
        raise UsageError(f"{spec.family}: output projections with a bias have no direct attribution yet")
    stream, start = (
        site_name("expert", tower.layers - 1, "hook_resid_post"),
        site_name("expert", 0, "hook_resid_pre"),
    )
    z = [site_name("expert", layer, "attn.hook_z") for layer in layers]
    mlp = [site_name("expert", layer, "hook_mlp_out") for layer in layers]
    with torch.no_grad(), tapped(policy, {name: tap(name) for name in (stream, start, *z, *mlp)}):
        action = policy.denoise(batch, noise)
    with torch.no_grad():
        # An Euler step moves the action by -1 / steps times the velocity.
        readout = -projection.weight[: spec.action_dim] / spec.flow_steps
        gain = [_gain(norm, x) for x in kept[stream]]

        def written(name: str, through: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
            """The sum over flow steps of what the named activation adds to the action."""
            steps = [
                einsum(through(x), g, readout, "frame h ... d, frame h d, a d -> frame ... h a")
                for x, g in zip(kept[name], gain, strict=True)
            ]
            return torch.stack(steps).sum(dim=0)

        def of_head(layer: int) -> Callable[[Tensor], Tensor]:
            heads = tower.heads_per_layer[layer]
            weight = rearrange(
                policy.out_projection("expert", layer).weight, "d (head z) -> head z d", head=heads
            )
            return lambda x: einsum(x, weight, "frame h head z, head z d -> frame h head d")

        width = tower.heads
        heads = [written(name, of_head(layer)) for layer, name in enumerate(z)]
        padded = [torch.nn.functional.pad(h, (0, 0, 0, 0, 0, width - h.shape[1])) for h in heads]
        bias = action.new_zeros(spec.horizon, spec.action_dim)
        if projection.bias is not None:
            bias = bias - projection.bias[: spec.action_dim]
        found = Direct(
            heads=torch.stack(padded, dim=1),
            mlps=torch.stack([written(name) for name in mlp], dim=1),
            embedding=written(start),
            bias=bias,
            noise=noise[..., : spec.action_dim],
            action=action[..., : spec.action_dim],
        )
    worst = float((found.total() - found.action).abs().max())
    if worst > 1e-3 * max(1.0, float(found.action.abs().max())):
        raise RuntimeError(f"direct attributions miss the action of {policy.source} by {worst:.1e}")
    return found


def _readout(policy: Policy) -> tuple[nn.Module, nn.Linear]:
    """The final norm and the action projection."""
    norm = getattr(policy.tower_module("expert"), "norm", None)
    projection = getattr(policy.module, "action_out_proj", None)
    if norm is None or projection is None:
        raise UsageError(
            f"policies of family {policy.spec.family} have no known final norm and action projection"
        )
    return norm, projection


def _gain(norm: nn.Module, x: Float[Tensor, "frame horizon d"]) -> Float[Tensor, "frame horizon d"]:
    """The factors by which the norm multiplies x, at x's own scale: norm(x) = gain * x."""
    scale = x.float().square().mean(dim=-1, keepdim=True).sqrt().to(x)
    # RMSNorm multiplies a vector of the same root mean square by the same factors.
    gain = norm(scale.expand_as(x)) / scale
    if not torch.allclose(gain * x, norm(x), rtol=1e-2, atol=1e-3):
        raise UsageError("the final norm is not a root-mean-square norm: it has no direct attribution yet")
    return gain
