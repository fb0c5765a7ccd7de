"""Direct action attribution: the part of the action that a head writes itself, through no later layer.

z of an action token through the output projection, the final norm and the action projection (`Policy.readout`), summed
over flow steps. Linearisation: the norm's scale, one number a token, is taken from the run and held fixed; then the
velocity is a sum over what wrote to the stream, and

    action = noise + sum over heads + sum over MLPs + embedding + bias          (checked on every call)

up to the rounding of the stream, float32 or bfloat16; the parts are computed in float32 at least.

Normalised units, signed. What a head does through later layers or later flow steps counts as theirs; for what it does
with nothing linearised see paths.py.

Axes: those of protocol.py; `frame` is an observation of the batch, `layer`, `head` as in spec.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from interp.assembly import bootstrap, spread, tower_scores
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.errors import UsageError
from interp.noise import frame_noise
from interp.policies.protocol import Batch, Policy
from interp.scores import HeadScores
from interp.sites import Tap, site_name, tapped

_ROUNDINGS = 8
"""By how many of the stream's last digits the parts may miss the action: bfloat16 takes one in 8 layers and 5 steps."""


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
        return exactly(self.heads).square().mean(dim=(-1, -2)).sqrt().numpy()

    def scores(
        self,
        policy: Policy,
        data: str,
        group: Sequence[int] | np.ndarray,
        resamples: int = 1000,
        seed: int = 0,
    ) -> HeadScores:
        """`grid` averaged over frames; the interval resamples groups of frames (episodes)."""
        heads = policy.spec.live_heads(["expert"])
        per_head = np.stack([self.grid()[:, head.layer, head.index] for head in heads])
        interval = bootstrap(per_head, np.ones(per_head.shape[1]), np.asarray(group), resamples, seed)
        return HeadScores(
            method="direct",
            label="direct action attribution, root mean square",
            units="normalised action units",
            higher_is_better=True,
            towers={"expert": tower_scores(policy, "expert", heads, per_head.mean(axis=1), interval)},
            policy=policy.fingerprint,
            data=data,
            n={"episodes": len(np.unique(group)), "frames": per_head.shape[1]},
            settings={"resamples": resamples, "seed": seed},
        )


def direct(policy: Policy, batch: Batch, noise: Float[Tensor, "frame horizon max_action_dim"]) -> Direct:
    """Direct attribution of the chunk that `policy.denoise(batch, noise)` answers."""
    spec, tower = policy.spec, policy.spec.tower("expert")
    way = policy.readout()
    tokens = spec.positions("expert", "action")
    precision = torch.promote_types(way.projection.weight.dtype, torch.float32)
    kept: dict[str, list[Tensor]] = {}
    rounded: dict[str, torch.dtype] = {}

    def tap(name: str) -> Tap:
        def see(tensor: Tensor, step: int | None) -> None:
            rounded[name] = tensor.dtype
            kept.setdefault(name, []).append(tensor[:, tokens].to(precision, copy=True))

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
        action = policy.denoise(batch, noise).to(precision)
    with torch.no_grad():
        readout = way.scale * way.projection.weight[: spec.action_dim].to(precision)
        gain = [_gain(way.norm, x) for x in kept[stream]]

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
                policy.out_projection("expert", layer).weight.to(precision),
                "d (head z) -> head z d",
                head=heads,
            )
            return lambda x: einsum(x, weight, "frame h head z, head z d -> frame h head d")

        width = tower.heads
        heads = [written(name, of_head(layer)) for layer, name in enumerate(z)]
        padded = [torch.nn.functional.pad(h, (0, 0, 0, 0, 0, width - h.shape[1])) for h in heads]
        bias = action.new_zeros(spec.horizon, spec.action_dim)
        if way.projection.bias is not None:
            bias = bias + spec.flow_steps * way.scale * way.projection.bias[: spec.action_dim]
        found = Direct(
            heads=torch.stack(padded, dim=1),
            mlps=torch.stack([written(name) for name in mlp], dim=1),
            embedding=written(start),
            bias=bias,
            noise=noise[..., : spec.action_dim].to(precision),
            action=action[..., : spec.action_dim],
        )
    worst = float((found.total() - found.action).abs().max())
    limit = 1e-3 * max(1.0, float(found.action.abs().max()))
    # The network adds the parts up in the stream's precision: of what is largest, the last digit is rounded.
    largest = max(float(part.abs().max()) for part in vars(found).values())
    limit += _ROUNDINGS * torch.finfo(rounded[stream]).eps * largest
    if worst > limit:
        raise RuntimeError(f"direct attributions miss the action of {policy.source} by {worst:.1e}")
    return found


def direct_scores(
    policy: Policy,
    demos: Demonstrations,
    *,
    frames: int | None = 60,
    seed: int = 0,
    resamples: int = 1000,
    block: int = 16,
) -> HeadScores:
    """Direct attribution of frames taken evenly from the demonstrations (None: all), as scores."""
    chosen = spread(len(demos), frames)
    blocks = [chosen[at : at + block].tolist() for at in range(0, len(chosen), block)]
    found = []
    for members in blocks:
        batch = policy.batch(list(demos.for_policy(policy.spec).observations(members)))
        found.append(direct(policy, batch, frame_noise(policy, demos, members, seed)))
    joined = Direct(
        **{
            name: getattr(found[0], name)
            if name == "bias"
            else torch.cat([getattr(each, name) for each in found])
            for name in vars(found[0])
        }
    )
    group = [demos.episodes[int(demos.episode_of[frame])].index for frame in chosen]
    return joined.scores(policy, demos.fingerprint, group, resamples, seed)


def _gain(norm: nn.Module, x: Float[Tensor, "frame horizon d"]) -> Float[Tensor, "frame horizon d"]:
    """The factors by which the norm multiplies x, at x's own scale: norm(x) = gain * x."""
    scale = x.float().square().mean(dim=-1, keepdim=True).sqrt().to(x)
    # RMSNorm multiplies a vector of the same root mean square by the same factors.
    gain = norm(scale.expand_as(x)) / scale
    if not torch.allclose(gain * x, norm(x), rtol=1e-2, atol=1e-3):
        raise UsageError("the final norm is not a root-mean-square norm: it has no direct attribution yet")
    return gain
