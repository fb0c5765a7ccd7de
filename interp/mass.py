"""Attention mass: how much a head attends to each token span, padding apart.

Letterbox bars of an image and padded prompt tokens are not what the policy looks at, but bars are ordinary tokens to
it and may take much of the mass (openpi #496): they are parts of their own, `image/front/padding`,
`language/padding`, so that nobody mistakes them for the picture. Tokens that lie in no span, such as those with which
some policies mark where an image begins and ends, are the part `other`, which there is only where there are such.

Axes: frame (an observation), layer, head; q and k are the pattern's query and key tokens; part, a set of keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from interp.assembly import bootstrap, spread, tower_scores
from interp.demos import Demonstrations
from interp.devices import exactly
from interp.errors import UsageError, unknown
from interp.noise import frame_noise
from interp.policies.protocol import Batch, Observation, Policy
from interp.scores import HeadScores
from interp.sites import Tap, site_name, tapped


@dataclass(frozen=True)
class AttentionMass:
    """Mean attention from the query tokens to every part of the sequence, over queries and flow steps.

    Parts are token spans; `<span>/padding` is the part of a span that shows nothing, and `other` what lies between
    spans. Over all parts a head sums to 1.
    """

    tower: str
    query: str
    mass: Mapping[str, Float[np.ndarray, "frame layer head"]]

    def content(self) -> dict[str, Float[np.ndarray, "frame layer head"]]:
        """Shares of the mass that is not on padding."""
        seen = {part: mass for part, mass in self.mass.items() if not part.endswith("/padding")}
        total = np.maximum(sum(seen.values()), 1e-12)
        return {part: mass / total for part, mass in seen.items()}


def attention_mass(
    policy: Policy,
    observations: Sequence[Observation],
    noise: Float[Tensor, "frame horizon max_action_dim"],
    *,
    tower: str = "expert",
    query: str | None = None,
) -> AttentionMass:
    """Where the heads of the expert (from the action tokens) or of the vlm (from the language tokens) look."""
    spec = policy.spec
    if tower not in ("vlm", "expert"):
        raise UsageError(
            f"attention mass is known for towers vlm, expert, not {tower!r}: vision sees one camera"
        )
    query = query or ("action" if tower == "expert" else "language")
    queries = spec.positions(tower, query)
    batch = policy.batch(observations)
    keys = spec.length if tower == "expert" else spec.prefix_length
    parts = parts_of(policy, observations, batch, keys)
    words = parts.get("language/padding")
    # Padded queries are computed too, but nobody reads them.
    real = torch.ones(len(observations), queries.stop - queries.start, device=noise.device)
    if query == "language" and words is not None:
        real = (~words[:, spec.span("language").slice]).float()
    members = torch.stack(list(parts.values())).float().to(noise.device)
    sums: dict[int, list[Tensor]] = {}

    def tap(layer: int) -> Tap:
        def see(pattern: Tensor, step: int | None) -> None:
            attended = einsum(pattern[:, :, queries].float(), real, "frame head q k, frame q -> frame head k")
            mean = attended / real.sum(dim=1)[:, None, None]
            mean = torch.nn.functional.pad(
                mean, (0, keys - mean.shape[-1])
            )  # cross-attention sees the prefix alone
            share = einsum(mean, members, "frame head k, part frame k -> part frame head")
            sums.setdefault(layer, []).append(share)

        return see

    layers = range(spec.tower(tower).layers)
    taps = {site_name(tower, layer, "attn.hook_pattern"): tap(layer) for layer in layers}
    with torch.no_grad(), tapped(policy, taps):
        prefix = policy.prefix(batch)
        if tower == "expert":
            policy.denoise(batch, noise, prefix)
    width = spec.tower(tower).heads
    means = [torch.stack(sums[layer]).mean(dim=0) for layer in layers]
    padded = [torch.nn.functional.pad(mean, (0, width - mean.shape[-1])) for mean in means]
    mass = exactly(torch.stack(padded, dim=2)).numpy()
    return AttentionMass(tower, query, dict(zip(parts, mass, strict=True)))


def parts_of(
    policy: Policy, observations: Sequence[Observation], batch: Batch, keys: int
) -> dict[str, Bool[Tensor, "frame key"]]:
    """Which keys belong to which part; every key to exactly one."""
    spec = policy.spec
    empty = torch.zeros(len(observations), keys, dtype=torch.bool, device=batch["attention_mask"].device)
    tokens = batch["attention_mask"].shape[1]
    empty[:, :tokens] = batch["attention_mask"] == 0
    for camera in spec.cameras:
        span = spec.span(f"image/{camera}")
        for frame, observation in enumerate(observations):
            padded = bars(policy, observation.images[camera].shape[:2], span.grid or (1, len(span)))
            empty[frame, span.slice] |= torch.tensor(padded.ravel(), device=empty.device)
    parts = {}
    for name, span in spec.spans.items():
        if span.stop > keys:
            continue
        inside = torch.zeros_like(empty)
        inside[:, span.slice] = True
        parts[name] = inside & ~empty
        if span.grid is not None or name == "language":
            parts[f"{name}/padding"] = inside & empty
    between = ~torch.stack(list(parts.values())).any(dim=0)
    return {**parts, "other": between} if between.any() else parts


def bars(policy: Policy, shape: tuple[int, ...], grid: tuple[int, int]) -> Bool[np.ndarray, "row column"]:
    """Patches of which no pixel shows the image."""
    box = policy.spec.letterbox(shape[0], shape[1])

    def outside(start: int, length: int, cells: int) -> Bool[np.ndarray, " cell"]:
        edges = np.arange(cells + 1) * box.size / cells
        return (edges[1:] <= start) | (edges[:-1] >= start + length)

    return outside(box.top, box.height, grid[0])[:, None] | outside(box.left, box.width, grid[1])[None, :]


def mass_scores(
    policy: Policy,
    demos: Demonstrations,
    part: str,
    *,
    tower: str = "expert",
    frames: int | None = 60,
    seed: int = 0,
    resamples: int = 1000,
) -> HeadScores:
    """How much every head looks at one part (`image/front`, `language`, `image/front/padding`): mean over frames."""
    chosen = spread(len(demos), frames).tolist()
    observations = list(demos.for_policy(policy.spec).observations(chosen))
    found = attention_mass(policy, observations, frame_noise(policy, demos, chosen, seed), tower=tower)
    if part not in found.mass:
        raise unknown(f"part that tower {tower} attends to", part, found.mass)
    heads = policy.spec.live_heads([tower])
    share = np.stack([found.mass[part][:, head.layer, head.index] for head in heads])
    group = np.array([demos.episodes[int(demos.episode_of[frame])].index for frame in chosen])
    interval = bootstrap(share, np.ones(len(chosen)), group, resamples, seed)
    return HeadScores(
        method="mass",
        label=f"attention on {part}",
        units="share of the attention",
        higher_is_better=True,
        towers={tower: tower_scores(policy, tower, heads, share.mean(axis=1), interval)},
        policy=policy.fingerprint,
        data=demos.fingerprint,
        n={"episodes": len(np.unique(group)), "frames": len(chosen)},
        settings={"part": part, "query": found.query, "seed": seed, "resamples": resamples},
    )
