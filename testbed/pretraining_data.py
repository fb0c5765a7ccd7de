"""What tiny-pi0 is pretrained on: scripted episodes with actions, and grounding frames without.

The four pretraining tasks carry actions. Scenes with marker, mug and cup carry none: they only teach where the named
object is, as a vision-language backbone would know from the web. So targets are unseen as *behaviour*.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from testbed.episodes import in_workers, play
from testbed.tabletop import CAMERAS, Tabletop
from testbed.tasks import PRETRAINING

GROUNDING = ("marker-in-mug", "push-cup-to-bowl", "pick-mug")
FIRST_SEED = 1_000_000
"""Pretraining seeds begin here; evaluation and demonstrations use seeds below."""
EPISODES_A_SHARD = 120
NOISES = (0.0, 0.005, 0.01)
"""Standard deviations [m] of the noise on executed actions, drawn an episode."""


@dataclass(frozen=True)
class Shard:
    """A file's worth of episodes."""

    path: Path
    index: int
    image_size: int


def write_shard(shard: Shard) -> int:
    """Play one shard's episodes and write them by rename; returns the number of frames."""
    env = Tabletop(image_size=shard.image_size)
    columns: dict[str, list[np.ndarray]] = {
        k: [] for k in ("images", "state", "action", "labels", "where", "episode", "acts")
    }
    instructions: list[str] = []
    for i in range(EPISODES_A_SHARD):
        seed = FIRST_SEED + shard.index * EPISODES_A_SHARD + i
        rng = np.random.default_rng([seed, 7])
        grounding = i % 8 == 7
        task = GROUNDING[i // 8 % 3] if grounding else PRETRAINING[i % 4]
        episode = play(env, task, seed, noise=float(rng.choice(NOISES)), labels=True)
        if episode is None or episode.labels is None:
            continue
        every = 3 if grounding else 1
        n = len(episode.state[::every])
        columns["images"].append(np.stack([episode.images[c] for c in CAMERAS], 1)[::every])
        columns["state"].append(episode.state[::every])
        columns["action"].append(episode.action[::every])
        columns["labels"].append(episode.labels[::every])
        columns["where"].append(episode.where[::every])
        columns["episode"].append(np.full(n, seed))
        columns["acts"].append(np.full(n, not grounding))
        instructions += [episode.instruction] * n
    env.close()
    arrays = {k: np.concatenate(v) for k, v in columns.items()}
    temporary = shard.path.with_suffix(".tmp.npz")
    np.savez(temporary, instruction=np.array(instructions), **arrays)  # type: ignore[arg-type]
    temporary.replace(shard.path)
    return len(instructions)


def generate(directory: Path, episodes: int, image_size: int, workers: int = 2) -> list[Path]:
    """Write the shards that are missing; safe to interrupt and call again."""
    directory.mkdir(parents=True, exist_ok=True)
    count = -(-episodes // EPISODES_A_SHARD)
    shards = [Shard(directory / f"shard-{i:03d}-{image_size}.npz", i, image_size) for i in range(count)]
    missing = [s for s in shards if not s.path.exists()]
    for _ in tqdm(
        in_workers(write_shard, missing, workers), total=len(missing), desc="pretraining data", unit="shard"
    ):
        pass
    return [s.path for s in shards]
