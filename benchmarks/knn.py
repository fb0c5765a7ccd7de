"""k-NN ranking and greedy selection against the published procedure: `python benchmarks/knn.py [--heads 16]`.

1200 frames (20 episodes of 60), 144 heads (18 x 8) of 256, four k; made-up activations, of which each head knows more
or less about a smooth trajectory. Ours is what users call, `knn.rank` and `knn.best_add` on a run on disk. The
reference (knn_reference.py) runs twice: frame by frame, as the paper states the procedure, and an episode at a time, as
the released code does it. Seconds are wall time with all cores on both sides (ours ranks heads in parallel, the
reference has what numpy's matrix products take); CPU time is recorded beside it, for a machine that is not quiet.

Ranking (every head alone at every k, then the 20 best of each k together) runs in full on both sides. Greedy selection
of 20 heads takes the reference about 10,000 evaluations, so it is timed on SAMPLED candidates at five sizes of the set
and scaled to all of them, linear in the set's size; a smaller problem, and the error of our set after every addition,
show that both sides do the same. Values are compared with the reference in float64; how far its float32, which the
released code uses, is off by itself is reported too.

Writes benchmarks/results/knn.json and prints the table. `--heads` takes fewer heads for a quick look and saves nothing.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import knn_reference as reference
import numpy as np
import pyarrow.parquet as pq
import torch
import zarr

from interp.knn import KnnSettings, best_add, rank
from interp.policies.spec import PolicySpec, TowerSpec
from interp.runs import Run, Signals, read_json, write_json

OUT = Path(__file__).parent / "results/knn.json"
KS = (10, 20, 30, 40)
EPISODES, LENGTH, LAYERS, HEADS, D_HEAD = 20, 60, 18, 8, 256
CHOSEN = 20
SIZES, SAMPLED = (1, 5, 10, 15, 20), 3
"""Sizes of the greedy set at which the reference is timed, and candidates at each."""


def made_up(
    layers: int, heads: int, episodes: int, length: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z [frame, layer, head, d_head], action [frame, action], episode [frame]."""
    rng = np.random.default_rng(seed)
    frames = episodes * length
    latent = rng.normal(size=(episodes, length, 6)).cumsum(axis=1).reshape(frames, 6) / 10
    action = np.tanh(latent @ rng.normal(size=(6, 7))).astype(np.float32)
    z = np.empty((frames, layers, heads, D_HEAD), np.float32)
    for layer in range(layers):
        for head in range(heads):
            # Signal on top of noise and of a mean: z at one token points much the same way in all frames.
            signal = latent @ rng.normal(size=(6, D_HEAD)) * rng.uniform(0, 1)
            z[:, layer, head] = signal + rng.normal(size=(frames, D_HEAD)) + 3 * rng.normal(size=D_HEAD)
    return z, action, np.repeat(np.arange(episodes), length)


def run_of(folder: Path, z: np.ndarray, action: np.ndarray, episode: np.ndarray) -> Run:
    """A run as capture would have left it."""
    info = read_json("testbed/tiny_pi0/robosteer.json")
    frames, layers, heads, d_head = z.shape
    tower = TowerSpec((heads,) * layers, 1, d_head)
    names = tuple(info["action_names"])
    spec = PolicySpec(
        family="pi0",
        towers={"expert": tower},
        spans={},
        cameras=(),
        image_size=224,
        state_dim=8,
        action_dim=len(names),
        max_action_dim=len(names),
        horizon=1,
        flow_steps=5,
        fps=10,
        execute=1,
        state_names=tuple(info["state_names"]),
        action_names=names,
    )
    run = Run.create(folder, policy="made-up", source="made up", spec=spec, data={"fingerprint": "made-up"})
    chunks = (32, 1, heads, d_head)
    zarr.open_group(run.store("expert"), mode="w").create_array("first_action", data=z, chunks=chunks)
    signals = Signals(
        episode=episode,
        frame=np.concatenate([np.arange(n) for n in np.bincount(episode)]),
        instruction=["made up"] * frames,
        state=np.zeros((frames, 8)),
        action=action,
        prediction=np.zeros((frames, 1, len(names))),
    )
    pq.write_table(signals.to_table(), run.path / "signals.parquet")
    run.update(captured={"expert": ["first_action"]})
    return run


Seconds = np.ndarray
"""[wall, CPU]"""


def clocks() -> Seconds:
    return np.array([time.perf_counter(), time.process_time()])


def timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    began = clocks()
    found = work()
    return clocks() - began, found


def compared(ours: Seconds, straight: Seconds, released: Seconds) -> dict[str, Any]:
    """Seconds of all three, and how often ours fits into the others' wall time."""
    ways = {"ours": ours, "frame by frame": straight, "episode at a time": released}
    return {
        "seconds": {way: seconds[0] for way, seconds in ways.items()},
        "CPU seconds": {way: seconds[1] for way, seconds in ways.items()},
        "ratio": {way: seconds[0] / ours[0] for way, seconds in ways.items() if way != "ours"},
    }


def ranking(folder: Path, z: np.ndarray, action: np.ndarray, episode: np.ndarray) -> dict[str, Any]:
    run = run_of(folder / "ranking", z, action, episode)
    flat = z.reshape(len(z), -1, z.shape[-1])

    def ours() -> dict[int, Any]:
        """At every k by itself, to compare: `rank` reports the one at which the best heads together predict best."""
        return {k: rank(run, KnnSettings(ks=(k,)), n=1, resamples=0, permutations=0) for k in KS}

    n = min(CHOSEN, flat.shape[1])
    seconds, _ = timed(lambda: rank(run, KnnSettings(ks=KS), n=n, resamples=0, permutations=0))
    theirs: dict[int, Any] = {}

    def reference_topk(at_once: int | None) -> None:
        theirs.update(reference.rank(flat, action, episode, KS, at_once))
        reference.topk(flat, action, episode, theirs, n, at_once)

    straight, _ = timed(lambda: reference_topk(1))
    released, _ = timed(lambda: reference_topk(None))
    exact = reference.rank(flat.astype(np.float64), action.astype(np.float64), episode, KS)
    worst, own, same = 0.0, 0.0, True
    for k, scores in ours().items():
        value = scores.tower("expert").value.ravel()
        released_value = {head: error for error, head in theirs[k]}
        for error, head in exact[k]:
            worst = max(worst, abs(value[head] - error))
            own = max(own, abs(released_value[head] - error))
        order = [head.layer * z.shape[2] + head.index for head in scores.ranked("expert")]
        same = same and order == [head for _, head in exact[k]]
    return {
        "evaluations": (flat.shape[1] + 1) * len(KS),
        **compared(seconds, straight, released),
        "largest difference": worst,
        "largest difference of the reference in float32": own,
        "same ranking": same,
    }


def greedy(folder: Path, z: np.ndarray, action: np.ndarray, episode: np.ndarray) -> dict[str, Any]:
    run = run_of(folder / "greedy", z, action, episode)
    flat = z.reshape(len(z), -1, z.shape[-1])
    heads = flat.shape[1]
    n = min(CHOSEN, heads - 1)
    seconds, selection = timed(lambda: best_add(run, n, settings=KnnSettings(ks=KS)))
    chosen = [head.layer * z.shape[2] + head.index for head in selection.heads]
    wide = flat.astype(np.float64), action.astype(np.float64)
    theirs = [reference.error(*wide, episode, chosen[: m + 1], selection.k) for m in range(n)]
    others = [head for head in range(heads) if head not in chosen]

    def scaled(at_once: int | None) -> Seconds:
        sizes = [m for m in SIZES if m <= n]
        each = []
        for m in sizes:
            sets = [[*chosen[: m - 1], head] for head in others[:SAMPLED]]
            work = [
                timed(lambda s=s: reference.error(flat, action, episode, s, KS[1], at_once)) for s in sets
            ]
            each.append(np.min([spent for spent, _ in work], axis=0))
        candidates = heads - np.arange(n)
        per_clock = [np.interp(np.arange(1, n + 1), sizes, clock) for clock in np.transpose(each)]
        return np.array([len(KS) * (per_size * candidates).sum() for per_size in per_clock])

    straight, released = scaled(1), scaled(None)
    return {
        "evaluations": len(KS) * sum(heads - m for m in range(n)),
        **compared(seconds, straight, released),
        "largest difference": float(np.abs(np.array(selection.path) - theirs).max()),
        "reference seconds are": f"scaled from {SAMPLED} candidates at sets of {list(SIZES)}",
    }


def small_greedy(folder: Path) -> bool:
    """Whether both sides choose the same heads in the same order where the reference can finish."""
    z, action, episode = made_up(layers=4, heads=6, episodes=8, length=30, seed=1)
    run = run_of(folder / "small", z, action, episode)
    found = best_add(run, 6, settings=KnnSettings(ks=(10, 20)))
    error, k, chosen = reference.best_add(
        z.reshape(len(z), -1, z.shape[-1]), action, episode, ks=(10, 20), n=6
    )
    ours = [head.layer * 6 + head.index for head in found.heads]
    return ours == chosen and found.k == k and abs(found.error - error) < 1e-6


def growth(folder: Path, z: np.ndarray, action: np.ndarray, episode: np.ndarray) -> list[dict[str, float]]:
    """Wall seconds of ranking fewer heads, or fewer frames: linear in heads, quadratic in frames (all pairs)."""
    found = []
    for layers, episodes in ((4, 20), (9, 20), (18, 20), (18, 10), (18, 5)):
        keep = episode < episodes
        run = run_of(folder / f"growth-{layers}-{episodes}", z[keep][:, :layers], action[keep], episode[keep])
        settings = KnnSettings(ks=KS)
        seconds, _ = timed(lambda r=run, s=settings: rank(r, s, n=1, resamples=0, permutations=0))
        heads = run.spec.tower("expert").heads * run.spec.tower("expert").layers
        found.append({"heads": heads, "frames": int(keep.sum()), "seconds": seconds[0]})
    return found


def table(found: dict[str, Any]) -> str:
    lines = ["| | ours | frame by frame | episode at a time | largest difference |", "|---" * 5 + "|"]
    for name in ("ranking", "greedy"):
        part = found[name]
        cells = [
            f"{part['seconds'][way]:.1f} s ({part['ratio'][way]:.0f}x)"
            for way in ("frame by frame", "episode at a time")
        ]
        ours = f"{part['seconds']['ours']:.2f} s"
        lines.append(f"| {name} | {ours} | {' | '.join(cells)} | {part['largest difference']:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--heads", type=int, default=LAYERS * HEADS, help="a multiple of 8; fewer: not saved")
    heads = parser.parse_args().heads
    z, action, episode = made_up(max(1, heads // HEADS), HEADS, EPISODES, LENGTH)
    found: dict[str, Any] = {
        "command": "python benchmarks/knn.py",
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"numpy": np.__version__, "torch": torch.__version__},
        "frames": len(z),
        "episodes": EPISODES,
        "heads": z.shape[1] * z.shape[2],
        "d_head": D_HEAD,
        "ks": list(KS),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found["ranking"] = ranking(folder, z, action, episode)
        found["greedy"] = greedy(folder, z, action, episode)
        found["greedy"]["same choice on a small problem"] = small_greedy(folder)
        found["growth"] = growth(folder, z, action, episode)
    print(table(found))
    print("same ranking:", found["ranking"]["same ranking"])
    print("greedy, same choice on a small problem:", found["greedy"]["same choice on a small problem"])
    if heads == LAYERS * HEADS:
        OUT.parent.mkdir(exist_ok=True)
        write_json(OUT, found)
        print(OUT)


if __name__ == "__main__":
    main()
