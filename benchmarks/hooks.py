"""What do hooks cost? A forward pass bare, with hooks that nobody uses, and while z of all towers is captured.

    python benchmarks/hooks.py            tiny-pi0: ratios to a bare pass, and cost against frames and heads

The three kinds of pass take turns; ratios are of medians over all turns. Cost against frames captures z of 1 to 16
frames a pass, cost against heads patches 8 to all heads of the expert exactly; both should be straight lines.
Writes benchmarks/results/hooks.json and hooks.svg.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from interp.edits import single
from interp.hooked import HookedVLA
from interp.patching import Pairs, patch
from interp.policies import Observation, Policy, load_policy
from interp.runs import write_atomic, write_json

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/hooks.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="tiny-pi0")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy = load_policy(arguments.policy)
    found = {
        "policy": arguments.policy,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "pass": overhead(policy, arguments.repeats),
        "frames": against_frames(policy, max(3, arguments.repeats // 8)),
        "heads": against_heads(policy, max(3, arguments.repeats // 8)),
    }
    write_json(RESULT, found)
    write_atomic(RESULT.with_suffix(".svg"), figure(found).to_image("svg"))
    for frames, kinds in found["pass"].items():
        for kind, row in kinds.items():
            print(
                f"{frames} frames, {kind:14}{row['milliseconds']:9.2f} ms{row['ratio']:8.3f} of a bare pass"
            )
    for axis in ("frames", "heads"):
        print(f"{axis}: r^2 of a straight line {found[axis]['r2']:.4f}")
    print(RESULT.relative_to(ROOT))


def overhead(policy: Policy, repeats: int) -> dict[str, dict[str, Any]]:
    """One sample (all flow steps), by frames in the batch."""
    vla = HookedVLA(policy)
    found = {}
    for frames in (1, 8):
        batch, noise = policy.batch(observations(policy, frames)), policy.noise(frames, 0)
        kinds: dict[str, Callable[[], object]] = {
            "bare": partial(policy.sample, batch, noise),
            "idle hooks": partial(vla, batch, noise),
            "z captured": partial(vla.run_with_cache, batch, noise, names_filter=_is_z),
        }
        seconds = in_turns(kinds, repeats)
        bare = np.median(seconds["bare"])
        found[str(frames)] = {
            kind: {
                "milliseconds": round(float(np.median(s)) * 1e3, 3),
                "ratio": round(float(np.median(s) / bare), 4),
            }
            for kind, s in seconds.items()
        }
    return found


def against_frames(policy: Policy, repeats: int) -> dict[str, Any]:
    vla = HookedVLA(policy)

    def capture(frames: int) -> Callable[[], object]:
        batch, noise = policy.batch(observations(policy, frames)), policy.noise(frames, 0)
        return partial(vla.run_with_cache, batch, noise, names_filter=_is_z)

    return line({frames: capture(frames) for frames in (1, 2, 4, 8, 16)}, repeats)


def against_heads(policy: Policy, repeats: int) -> dict[str, Any]:
    few = observations(policy, 2)
    pairs, edits = Pairs((few[0],), (few[1],)), single(policy, "expert")
    # Every k-th head, so that every number of heads has the same mix of layers.
    chosen = {len(edits[::k]): edits[::k] for k in (8, 4, 2, 1)}
    return line({n: partial(patch, policy, pairs, some) for n, some in chosen.items()}, repeats)


def _is_z(name: str) -> bool:
    return name.endswith("hook_z")


def line(runs: dict[int, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Medians, and how straight the line through them is."""
    seconds = in_turns(runs, repeats)
    x, y = np.array(list(runs), float), np.array([np.median(s) for s in seconds.values()])
    slope, start = np.polyfit(x, y, 1)
    left = ((y - slope * x - start) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {
        "n": list(runs),
        "seconds": [round(float(s), 5) for s in y],
        "slope": float(slope),
        "start": float(start),
        "r2": round(float(1 - left), 5),
    }


def in_turns(kinds: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, list[float]]:
    seconds: dict[Any, list[float]] = {kind: [] for kind in kinds}
    with torch.no_grad():
        for run in kinds.values():
            run()
        for _ in range(repeats):
            for kind, run in kinds.items():
                begin = time.perf_counter()
                run()
                seconds[kind].append(time.perf_counter() - begin)
    return seconds


def observations(policy: Policy, n: int) -> list[Observation]:
    spec, found = policy.spec, []
    for at in range(n):
        rng = np.random.default_rng(at)
        shape = (spec.image_size, spec.image_size, 3)
        images = {camera: rng.integers(0, 256, shape, np.uint8) for camera in spec.cameras}
        found.append(
            Observation(images, rng.normal(size=spec.state_dim).astype(np.float32), "pick up the red cube")
        )
    return found


def figure(found: dict[str, Any]) -> go.Figure:
    titles = ("z of all heads captured", "expert heads patched exactly")
    fig = make_subplots(rows=1, cols=2, subplot_titles=titles)
    for column, (axis, label) in enumerate((("frames", "frames a pass"), ("heads", "heads")), start=1):
        each = found[axis]
        x = np.array([0, max(each["n"])])
        fit = go.Scatter(x=x, y=each["start"] + each["slope"] * x, mode="lines", line={"color": "#9aa0a6"})
        fig.add_trace(fit, row=1, col=column)
        points = go.Scatter(
            x=each["n"], y=each["seconds"], mode="markers", marker={"color": "#1f6feb", "size": 9}
        )
        fig.add_trace(points, row=1, col=column)
        fig.update_xaxes(title_text=f"{label} (r² {each['r2']:.3f})", row=1, col=column)
    fig.update_yaxes(title_text="seconds", rangemode="tozero")
    return fig.update_layout(
        template="plotly_white", width=900, height=340, showlegend=False, margin={"t": 40}
    )


if __name__ == "__main__":
    main()
