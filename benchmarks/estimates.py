"""How well gradients stand in for exact patching, factor by factor: `python benchmarks/estimates.py [--pairs 32]`.

Exact patching of all live heads of vlm and expert, tiny-pi0, full sampling, against attribution patching (AtP) and
integrated gradients with 5 and 20 points, on the testbed's twins. Pearson r over heads, overlap of the twelve heads
with the largest effects (chance: twelve of all), and CPU seconds. Writes benchmarks/results/estimates.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.attribution import atp, integrated
from interp.attribution.atp import agreement
from interp.factors.pairs import FACTORS
from interp.factors.tabletop import tabletop_pairs
from interp.patching import Pairs, patch_heads
from interp.policies import Policy, load_policy
from interp.runs import write_json
from interp.scores import HeadScores

TOWERS = ("vlm", "expert")
TOP = 12
OUT = Path(__file__).parent / "results/estimates.json"
Method = Callable[[Policy, Pairs], HeadScores]
METHODS: dict[str, Method] = {
    "atp": lambda policy, pairs: atp(policy, pairs, towers=TOWERS),
    "ig-5": lambda policy, pairs: integrated(policy, pairs, n=5, towers=TOWERS),
    "ig-20": lambda policy, pairs: integrated(policy, pairs, n=20, towers=TOWERS),
}


def timed(method: Method, policy: Policy, pairs: Pairs) -> tuple[HeadScores, float]:
    began = time.process_time()
    return method(policy, pairs), time.process_time() - began


def largest(scores: HeadScores, tower: str) -> set[int]:
    """Places of the heads with the largest effects, either sign."""
    effects = np.abs(np.nan_to_num(np.asarray(scores.tower(tower).value, float))).ravel()
    return set(np.argsort(-effects, kind="stable")[:TOP].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=32)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy("tiny-pi0")
    found: dict[str, Any] = {
        "command": f"python benchmarks/estimates.py --pairs {asked.pairs}",
        "policy": policy.fingerprint,
        "pairs": asked.pairs,
        "top": TOP,
        "heads": {tower: len(policy.spec.live_heads([tower])) for tower in TOWERS},
        "factors": {},
    }
    print(f"{'factor':12}{'method':8}{'r vlm':>8}{'r expert':>10}{'shared':>12}{'seconds':>9}{'faster':>8}")
    for factor in FACTORS:
        pairs = tabletop_pairs(policy, factor, asked.pairs).pairs
        exact, spent = timed(lambda p, q: patch_heads(p, q, towers=TOWERS), policy, pairs)
        cells: dict[str, Any] = {"exact_seconds": round(spent, 2)}
        for name, method in METHODS.items():
            scores, seconds = timed(method, policy, pairs)
            r = agreement(scores, exact)
            shared = {tower: len(largest(scores, tower) & largest(exact, tower)) for tower in TOWERS}
            cells[name] = {
                "pearson": r,
                "shared": shared,
                "seconds": round(seconds, 2),
                "faster": spent / seconds,
            }
            both = f"{shared['vlm']}, {shared['expert']} of {TOP}"
            print(
                f"{factor:12}{name:8}{r['vlm']:8.2f}{r['expert']:10.2f}{both:>12}{seconds:9.1f}{spent / seconds:8.1f}",
                flush=True,
            )
        found["factors"][factor] = cells
    write_json(OUT, found)


if __name__ == "__main__":
    main()
