"""Noise: the flow's start noise as a function of what it is for, so that no number depends on what ran before it."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.demos import Demonstrations
from interp.policies.protocol import Policy
from interp.seeds import check_seed


def keyed_noise(
    policy: Policy, seed: int, *key: int, draws: int = 1
) -> Float[Tensor, "draw horizon max_action_dim"]:
    """The noise that belongs to a key like (seed, episode, frame): another key, other noise."""
    word = int(np.random.SeedSequence((check_seed(seed), *key)).generate_state(1, np.uint64)[0])
    return policy.noise(draws, torch.Generator().manual_seed(word >> 1))


def frame_noise(
    policy: Policy, demos: Demonstrations, frames: Sequence[int], seed: int, draws: int = 1
) -> Float[Tensor, "frame_draw horizon max_action_dim"]:
    """The noise of every frame, a function of (seed, episode, frame) alone; its draws are neighbours."""

    def of(frame: int) -> Tensor:
        episode = demos.episodes[int(demos.episode_of[frame])].index
        return keyed_noise(policy, seed, episode, int(demos.frame_of[frame]), draws=draws)

    return torch.cat([of(frame) for frame in frames])
