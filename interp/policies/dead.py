"""Which heads cannot matter: those whose z has no path to any action.

In PI0 the last vlm layer hands only its keys and values to the expert, so the output of its attention is
computed and thrown away: choosing such a head for finetuning trains nothing, and published head sets contain
some. Rather than knowing this for one architecture, measure it: run one velocity with gradients and look at
d velocity / d z. A head is dead if that gradient is exactly zero everywhere, which also finds heads whose
output weights have been zeroed. One forward and one backward pass for all heads of all towers.
"""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from interp.errors import UsageError
from interp.policies.protocol import Observation, Policy
from interp.sites import Tap, site_name, tapped


def dead_heads(policy: Policy, seed: int = 0) -> dict[str, tuple[tuple[int, int], ...]]:
    """(layer, head) by tower of the heads with exactly no effect on the velocity of a random observation."""
    spec = policy.spec
    rng = np.random.default_rng(seed)
    shape = (spec.image_size, spec.image_size, 3)
    images = {camera: rng.integers(0, 256, shape, dtype=np.uint8) for camera in spec.cameras}
    batch = policy.batch([Observation(images, rng.normal(size=spec.state_dim), "")])
    x = policy.noise(1, seed)
    seen: dict[tuple[str, int], Tensor] = {}

    def remember(tower: str, layer: int) -> Tap:
        def tap(z: Tensor, step: int | None) -> Tensor:
            # With frozen parameters the first z is where the graph begins.
            z = z if z.requires_grad else z.detach().requires_grad_()
            z.retain_grad()
            seen[tower, layer] = z
            return z

        return tap

    layers = [(tower, layer) for tower, towers in spec.towers.items() for layer in range(towers.layers)]
    taps = {site_name(tower, layer, "attn.hook_z"): remember(tower, layer) for tower, layer in layers}
    with torch.enable_grad(), tapped(policy, taps):
        velocity = policy.velocity(batch, x, x.new_full((1,), 0.5))[..., : spec.action_dim]
        # Random weights, so that contributions to different action dimensions cannot cancel.
        total = (velocity * policy.noise(1, seed + 1)[..., : spec.action_dim]).sum()
        if not torch.isfinite(total):
            raise UsageError(
                f"policy {policy.source}: its weights are broken, it answers with non-finite numbers"
            )
        total.backward()
    return {
        tower: tuple(pair for layer in range(towers.layers) for pair in _unreached(layer, seen[tower, layer]))
        for tower, towers in spec.towers.items()
    }


def _unreached(layer: int, z: Tensor) -> list[tuple[int, int]]:
    if z.grad is None:
        return [(layer, head) for head in range(z.shape[-2])]
    reach = rearrange(z.grad, "... head d_head -> head (... d_head)").abs().amax(dim=1)
    return [(layer, head) for head, most in enumerate(reach.tolist()) if most == 0]
