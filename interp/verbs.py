"""The verbs that understand: capture and every method that scores heads, and what all verbs open.

A verb is thin: it opens what its arguments name, calls one function of the library and prints what a person wants to
know. Heavy imports live inside the verbs, so that `--help` answers at once. VERBS lists every verb with what it takes.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.demos import Demonstrations
    from interp.policies import Policy
    from interp.runs import Run

TOWERS = ("vision", "vlm", "expert")


def capture(a: Namespace) -> None:
    """Run the frozen policy over demonstrations and keep every head's output z."""
    from interp.capture import capture as capture_run

    policy, demos = open_policy(a.policy), open_demos(a.demos)
    run = capture_run(
        policy, demos, a.run, towers=towers_of(a.towers, policy), seed=a.seed, command=command_of(a)
    )
    print(f"{run.path}: {len(demos)} frames, towers {', '.join(t for t in TOWERS if run.tokens(t))}")


def _capture_takes(p: ArgumentParser) -> None:
    p.add_argument("--policy", default="tiny-pi0", help="directory, hub id or tiny-pi0")
    p.add_argument("--demos", required=True, help="LeRobotDataset v3 directory")
    p.add_argument("--run", required=True, help="run directory to make or resume")
    p.add_argument("--towers", nargs="+", help="vision, vlm, expert (all by default)")
    p.add_argument("--seed", type=int, default=0, help="seed of the flow's start noise")


def rank(a: Namespace) -> None:
    """Score every captured head by how well its neighbours predict the action (leave-one-episode-out k-NN)."""
    from interp.knn import DEFAULT_TOKENS, KnnSettings
    from interp.knn import rank as rank_heads

    run = open_run(a.run)
    towers = a.towers or [t for t in ("expert", "vlm") if run.tokens(t)]
    tokens = {**DEFAULT_TOKENS, **({towers[0]: a.token} if a.token else {})}
    settings = KnnSettings(tokens=tokens, ks=tuple(a.k), target=a.target, normalised=a.normalised)
    scores = rank_heads(run, settings, towers=towers, n=a.top, seed=a.seed, progress=True)
    path = run.save_scores(scores, a.name)
    for tower in towers:
        best = ", ".join(f"{h} {scores.score(h):.4g}" for h in scores.best(5, tower))
        null = scores.tower(tower).null
        chance = f"; chance {null.mean:.4g} (95 % {null.low:.4g} to {null.high:.4g})" if null else ""
        print(f"{tower}: best {best} [{scores.units}]{chance}")
    print(path)


def _rank_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True)
    p.add_argument("--towers", nargs="+", help="towers to score (expert and vlm by default)")
    p.add_argument("--token", help="token of the first tower (expert: first_action or state)")
    p.add_argument("--k", type=int, nargs="+", default=[10, 20, 30, 40], help="numbers of neighbours to try")
    p.add_argument("--target", choices=("current", "chunk"), default="current", help="action to predict")
    p.add_argument("--normalised", action="store_true", help="weigh action dimensions equally")
    p.add_argument("--top", type=int, default=20, help="heads whose joint error chooses k")
    p.add_argument("--name", default="knn", help="name of the scores")
    p.add_argument("--seed", type=int, default=0)


# ---- what verbs open


def open_policy(name: str | Path) -> Policy:
    from interp.policies import load_policy

    return load_policy(name)


def open_demos(path: str | Path) -> Demonstrations:
    from interp.demos import Demonstrations

    return Demonstrations.open(path)


def open_run(path: str | Path) -> Run:
    from interp.runs import Run

    return Run.open(path)


def policy_of(run: Run, override: str | None) -> Policy:
    """The run's policy, or the one named instead; its fingerprint must be the run's."""
    policy = open_policy(override or run.info["policy"]["source"])
    run.expect(policy=policy.fingerprint)
    return policy


def demos_of(run: Run, override: str | None) -> Demonstrations:
    demos = open_demos(override or run.info["data"]["path"])
    run.expect(data=demos.fingerprint)
    return demos


def towers_of(names: Sequence[str] | None, policy: Policy) -> Sequence[str]:
    for name in names or ():
        policy.spec.tower(name)
    return names or tuple(policy.spec.towers)


def command_of(a: Namespace) -> list[str]:
    shown = {k: v for k, v in vars(a).items() if k not in ("verb", "run_verb") and v not in (None, False)}
    return ["robosteer", a.verb, *(str(w) for k, v in shown.items() for w in (f"--{k}", v))]


VERBS = (
    (capture, _capture_takes),
    (rank, _rank_takes),
)
