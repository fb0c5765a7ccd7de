"""The verbs that say what a head does: patch replaces its output, attribute estimates that or reads it off the network.

See verbs.py for what a verb is.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from typing import TYPE_CHECKING

from interp.verbs import demos_of, open_run, policy_of, takes_device, towers_of

if TYPE_CHECKING:
    from interp.patching import Pairs
    from interp.policies import Policy
    from interp.runs import Run
    from interp.scores import HeadScores


def patch(a: Namespace) -> None:
    """Score every head by what replacing its output does to the action: exact patching between pairs, or ablation."""
    from interp.ablation import AblationSettings, ablate
    from interp.patching import patch_heads

    run = open_run(a.run)
    policy = policy_of(run, a.policy, a.device)
    towers = towers_of(a.towers or ["expert", "vlm"], policy)
    if a.method == "patching":
        name = a.name or "-".join(filter(None, ("patching", a.factor)))
        scores = patch_heads(
            policy, pairs_of(run, policy, a), towers=towers, span=a.span, position=a.position, step=a.step,
            direction=a.direction, data=run.data, factor=a.factor, seed=a.seed,
            directory=run.path / ".sweeps" / name, progress=True,
        )  # fmt: skip
    else:
        settings = AblationSettings(a.method, a.effect, frames=a.frames, seed=a.seed)
        name = a.name or settings.method
        demos, sweeps = demos_of(run, a.demos), run.path / ".sweeps" / name
        scores = ablate(policy, demos, settings, towers=towers, directory=sweeps, progress=True)
    _report(run, scores, name)


def _patch_takes(p: ArgumentParser) -> None:
    p.add_argument(
        "--method", choices=("patching", "zero", "mean", "resample"), default="patching",
        help="between clean and corrupt observations; or ablation: by zero, the mean, another frame's output",
    )  # fmt: skip
    _pairs_take(p)
    p.add_argument("--effect", choices=("action", "loss"), default="action", help="of ablation")
    p.add_argument("--span", help="token span to patch (image/<camera>, language, state, action)")
    p.add_argument("--position", type=int, help="token position to patch")
    p.add_argument("--step", type=int, help="flow step to patch (expert)")


def attribute(a: Namespace) -> None:
    """Estimate what every head does from gradients, or say what it writes into the action or looks at."""
    from interp.attribution import atp, atp_qk, direct_scores, integrated
    from interp.mass import mass_scores

    run = open_run(a.run)
    policy = policy_of(run, a.policy, a.device)
    if a.method in ("direct", "mass"):
        demos, name = demos_of(run, a.demos), a.name or a.method
        if a.method == "direct":
            scores = direct_scores(policy, demos, frames=a.frames, seed=a.seed)
        else:
            part, tower = a.part or f"image/{policy.spec.cameras[0]}", (a.towers or ["expert"])[0]
            scores = mass_scores(policy, demos, part, tower=tower, frames=a.frames, seed=a.seed)
            name = a.name or f"mass-{part.replace('/', '-')}"
    else:
        pairs, name = pairs_of(run, policy, a), a.name or "-".join(filter(None, (a.method, a.factor)))
        how = {"towers": towers_of(a.towers or ["expert", "vlm"], policy), "direction": a.direction}
        how |= {"data": run.data, "factor": a.factor, "seed": a.seed}
        if a.method == "atp":
            scores = atp(policy, pairs, verified=a.verify, **how)
        elif a.method == "ig":
            scores = integrated(policy, pairs, n=a.points, **how)
        else:
            scores = atp_qk(policy, pairs, a.method.removeprefix("atp-"), **how)
    _report(run, scores, name)
    for check in scores.settings.get("verified", ()):
        print(f"  {check['head']}: estimated {check['estimate']:.4g}, really {check['exact']:.4g}")


def _attribute_takes(p: ArgumentParser) -> None:
    p.add_argument(
        "--method", choices=("atp", "ig", "atp-q", "atp-k", "direct", "mass"), default="atp",
        help="attribution patching; integrated gradients; attribution patching of queries or keys; what a head writes "
        "into the action; where it looks",
    )  # fmt: skip
    _pairs_take(p)
    p.add_argument("--verify", type=int, default=5, help="best heads of atp to patch for real")
    p.add_argument("--points", type=int, default=5, help="points of integrated gradients")
    p.add_argument(
        "--part", help="mass: what is looked at (image/<camera>, language, ..., or image/<camera>/padding)"
    )


def _pairs_take(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True)
    p.add_argument(
        "--factor", help="pairs that differ in this: visual, linguistic, physical (by default, in episode)"
    )
    p.add_argument("--pairs", type=int, default=30, help="pairs to patch between")
    p.add_argument(
        "--frames", type=int, default=60, help="frames of the demonstrations, for methods without pairs"
    )
    p.add_argument("--towers", nargs="+", default=None, help="towers to score (expert and vlm)")
    p.add_argument("--direction", choices=("denoising", "noising"), default="denoising")
    p.add_argument("--policy", help="directory of the run's policy, if it has moved")
    p.add_argument("--demos", help="directory of the run's demonstrations, if they have moved")
    takes_device(p)
    p.add_argument("--name", help="name of the scores (by default, the method and the factor)")
    p.add_argument("--seed", type=int, default=0)


def _report(run: Run, scores: HeadScores, name: str) -> None:
    path = run.save_scores(scores, name)
    for tower in scores.towers:
        ranked = scores.ranked(tower)[:5]
        print(f"{tower}: best {', '.join(f'{h} {scores.score(h):.4g}' for h in ranked)} [{scores.units}]")
    print(path)


def pairs_of(run: Run, policy: Policy, a: Namespace) -> Pairs:
    """Pairs of the factor, or without one of frames of different episodes."""
    from interp.factors.study import pairs_for
    from interp.patching import Pairs

    recordings = partial(demos_of, run, a.demos)
    if a.factor is None:
        return Pairs.of_frames(policy, recordings().for_policy(policy.spec), a.pairs, a.seed)
    (found,) = pairs_for(run, policy, recordings, [a.factor], a.pairs, seed=a.seed, progress=True)
    return found.pairs


VERBS = ((patch, _patch_takes), (attribute, _attribute_takes))
