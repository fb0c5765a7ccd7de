"""What the tests of the k-NN ranking share: the procedure, frame by frame, and a run whose answer is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import zarr

from interp.heads import Head
from interp.policies import Policy, TowerSpec
from interp.runs import Run, Signals

LENGTHS = (14, 11, 16, 12, 13, 10)
PLANTED = (Head("expert", 0, 2), Head("expert", 2, 1))


def naive_errors(
    z: np.ndarray,
    target: np.ndarray,
    episode: np.ndarray,
    frame: np.ndarray,
    k: int,
    window: int = 30,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    single = len(set(episode)) == 1
    found = []
    for i in range(len(z)):
        allowed = abs(frame - frame[i]) > window if single else episode != episode[i]
        lengths = np.linalg.norm(z, axis=1) * np.linalg.norm(z[i])
        distances = 1 - z @ z[i] / np.where(lengths > 0, lengths, np.inf)
        candidates = [(distances[j], j) for j in np.flatnonzero(allowed)]
        if not candidates:
            found.append(np.nan)
            continue
        chosen = sorted(candidates)[:k]
        if chosen[0][0] < 1e-8:
            prediction = target[chosen[0][1]]
        else:
            weights = np.array([1 / (distance + 1e-8) for distance, _ in chosen])
            prediction = sum(w * target[j] for w, (_, j) in zip(weights, chosen, strict=True)) / weights.sum()
        square = (prediction - target[i]) ** 2
        found.append(square.mean() if valid is None else square[valid[i]].mean())
    return np.array(found)


def planted_run(policy: Policy, path: Path, lengths: Sequence[int] = LENGTHS) -> Run:
    """A run in which two heads carry the action, one half of it each, and all others noise."""
    rng = np.random.default_rng(4)
    n = sum(lengths)
    towers = {**policy.spec.towers, "expert": TowerSpec((4, 4, 4), 1, 8, dead=((1, 3),))}
    made = Run.create(
        path,
        policy="pi0-x",
        source="made up",
        spec=replace(policy.spec, towers=towers),
        data={"fingerprint": "demos-x"},
    )
    action = rng.normal(size=(n, 7)).astype(np.float32)
    z = rng.normal(size=(n, 3, 4, 8)).astype(np.float32)
    z[:, 0, 2, :4] = 3 * action[:, :4]
    z[:, 2, 1, :3] = 3 * action[:, 4:]
    z[:, 1, 3, :7] = 3 * action  # a dead head that seems to know everything
    zarr.open_group(made.store("expert"), mode="w").create_array("first_action", data=z, chunks=(32, 1, 4, 8))
    signals = Signals(
        episode=np.repeat(np.arange(len(lengths)) * 10, lengths),
        frame=np.concatenate([np.arange(length) for length in lengths]),
        instruction=["do it"] * n,
        state=rng.normal(size=(n, 8)),
        action=action,
        prediction=rng.normal(size=(n, 6, 7)),
    )
    pq.write_table(signals.to_table(), made.path / "signals.parquet")
    made.update(captured={"expert": ["first_action"]})
    return made


def arrays(run: Run) -> tuple[np.ndarray, Signals]:
    return run.activations("expert")[:].astype(float), run.signals()
