"""What transformers' PI0 makes of a LeRobot directory: `python core_pi0.py DIRECTORY ASKED ANSWER`.

Run by the core environment's Python, whose transformers has PI0; test_pi0_loading.py runs in LeRobot's. ASKED holds
observations and noise, ANSWER the chunks: normalised and in the robot's units, with the flow time's embedding as
transformers computes it (float32) and as LeRobot does (float64).
"""

import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.policies import Observation, Policy, load_policy


def main(directory: Path, asked: Path, answer: Path) -> None:
    given = load_file(asked)
    policy = load_policy(directory)
    seen = [
        Observation(
            {camera: given[f"{at}.{camera}"].numpy() for camera in policy.spec.cameras},
            given[f"{at}.state"].numpy(),
            bytes(given[f"{at}.task"].tolist()).decode(),
        )
        for at in range(len(given["noise"]))
    ]
    found = {f"float32.{name}": chunk for name, chunk in chunks(policy, seen, given["noise"]).items()}
    embed_time_in_double(policy)
    found |= {f"float64.{name}": chunk for name, chunk in chunks(policy, seen, given["noise"]).items()}
    save_file(found, answer)


def chunks(policy: Policy, seen: list[Observation], noise: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        normalised = policy.denoise(policy.batch(seen), noise)[..., : policy.spec.action_dim].contiguous()
        return {"normalised": normalised, "real": policy.unnormalise_actions(normalised)}


def embed_time_in_double(policy: Policy) -> None:
    config = policy.module.config
    fraction = torch.linspace(0, 1, config.dit_config.hidden_size // 2, dtype=torch.float64)
    frequency = 2 * math.pi / (config.min_period * (config.max_period / config.min_period) ** fraction)

    def forward(time: Tensor) -> Tensor:
        angle = frequency * time.double()[:, None]
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    policy.module.embed_action_time.sinusoid_embeds.forward = forward


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
