"""What serving adds to a sample: `python benchmarks/serving.py`. Writes benchmarks/results/serving.json.

A server process and this one hold the same policy. Turn by turn, in one run, the same observation is sampled here and
through openpi-client on loopback, with the same noise: the answers must be equal. Cases: an observation of the testbed
(two 64 px cameras, 24 kB), of a LIBERO robot (two 224 px cameras, 301 kB; the resize is part of both sides), and the
testbed's again with eight heads switched off, on both sides.

What serving adds is the round trip minus the sample in process: of the 95th percentiles (the claim, at most 3 ms), and
turn by turn. `round trip - infer` is the round trip minus the time that the server itself took for that very sample:
the protocol alone, without the noise of sampling twice.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from interp.heads import Head
from interp.policies import Policy, load_policy
from interp.runs import write_json
from steering.episode import noise_seed
from steering.serving import LivePolicy, Reader, switch_heads

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/serving.json"
POLICY, LIMIT_MS = "tiny-pi0", 3.0
WARM = 10
"""Turns that are not counted."""
OFF = 8


@contextmanager
def served(layout: str) -> Iterator[int]:
    """The port of a server in a process of its own, with as many threads as this one."""
    command = [sys.executable, str(ROOT / "robosteer.py"), "serve", "--policy", POLICY]
    child = subprocess.Popen(
        [*command, "--layout", layout, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise RuntimeError("the server did not start")
        yield int(found[1])
    finally:
        child.terminate()
        child.wait()


def observation(layout: str, rng: np.random.Generator) -> dict[str, Any]:
    def image(size: int) -> np.ndarray:
        return rng.integers(0, 256, (size, size, 3), np.uint8)

    if layout == "testbed":
        images = {"front": image(64), "wrist": image(64)}
        return {
            "images": images,
            "state": rng.normal(size=8).astype(np.float32),
            "instruction": "pick up the cube",
        }
    return {
        "observation/image": image(224),
        "observation/wrist_image": image(224),
        "observation/state": rng.normal(size=8),
        "prompt": "pick up the cube",
    }


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What the work returns, and its milliseconds."""
    began = time.perf_counter()
    result = work(*arguments)
    return result, (time.perf_counter() - began) * 1e3


def turns(
    policy: Policy, client: WebsocketClientPolicy, layout: str, n: int, off: Sequence[Head] = ()
) -> dict[str, Float[np.ndarray, " turn"]]:
    """Milliseconds of each turn: the round trip, the sample in process, and the sample as the server timed it."""
    rng, read, live = np.random.default_rng(0), Reader(layout, policy.spec), LivePolicy(policy)
    live.switch(off)

    def sample(message: dict[str, Any], seed: int) -> np.ndarray:
        return live.sample(read(message), seed)

    times: dict[str, list[float]] = {"round trip": [], "in process": [], "infer": []}
    for turn in range(WARM + n):
        message = {**observation(layout, rng), "robosteer/seed": 0, "robosteer/step": turn}
        seed = noise_seed(0, turn)
        if turn % 2:  # who comes second finds warm caches
            here, in_process = timed(sample, message, seed)
            reply, round_trip = timed(client.infer, message)
        else:
            reply, round_trip = timed(client.infer, message)
            here, in_process = timed(sample, message, seed)
        if not np.array_equal(here, reply["actions"]):
            raise RuntimeError(f"turn {turn}: the served actions differ from those in process")
        if turn >= WARM:
            times["round trip"].append(round_trip)
            times["in process"].append(in_process)
            times["infer"].append(reply["server_timing"]["infer_ms"])
    return {name: np.array(values) for name, values in times.items()}


def summary(times: dict[str, Float[np.ndarray, " turn"]]) -> dict[str, Any]:
    differences = {
        "added turn by turn": times["round trip"] - times["in process"],
        "round trip - infer": times["round trip"] - times["infer"],
    }
    found: dict[str, Any] = {
        name: {"p50_ms": round(float(np.median(v)), 3), "p95_ms": round(float(np.quantile(v, 0.95)), 3)}
        for name, v in {**times, **differences}.items()
    }
    found["added_p95_ms"] = round(found["round trip"]["p95_ms"] - found["in process"]["p95_ms"], 3)
    return found


def measure(n: int) -> dict[str, Any]:
    policy = load_policy(POLICY)
    heads = policy.spec.live_heads(["expert"])[:OFF]
    cases = {}
    for layout in ("testbed", "libero"):
        with served(layout) as port:
            client = WebsocketClientPolicy("127.0.0.1", port)
            cases[layout] = summary(turns(policy, client, layout, n))
            if layout == "testbed":
                switch_heads(port, heads)
                cases[f"testbed, {OFF} heads off"] = summary(turns(policy, client, layout, n, heads))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=300, help="turns a case")
    n = parser.parse_args().n
    cases = measure(n)
    result = {
        "command": f"python benchmarks/serving.py --n {n}",
        "policy": POLICY,
        "n": n,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "limit_ms": LIMIT_MS,
        "cases": cases,
        "holds": all(case["added_p95_ms"] <= LIMIT_MS for case in cases.values()),
    }
    write_json(OUT, result)
    print(
        "| case | round trip p95 | in process p95 | added at p95 | round trip - infer, p95 |\n|---|---|---|---|---|"
    )
    for name, case in cases.items():
        print(
            f"| {name} | {case['round trip']['p95_ms']:.1f} ms | {case['in process']['p95_ms']:.1f} ms "
            f"| {case['added_p95_ms']:+.2f} ms | {case['round trip - infer']['p95_ms']:.2f} ms |"
        )


if __name__ == "__main__":
    main()
