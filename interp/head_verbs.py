"""The verbs that say what a head does: patch replaces its output, attribute estimates that or reads it off the network.

See verbs.py for what a verb is.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from interp.errors import UsageError
from interp.seeds import takes_seed
from interp.verbs import demos_of, open_run, policy_of, takes_device, towers_of

if TYPE_CHECKING:
    from interp.patching import Pairs
    from interp.policies import Policy
    from interp.runs import Run
    from interp.scores import HeadScores

DEFAULT_TOWERS = ("expert", "vlm")
DEFAULTS = {
    "factor": None, "pairs": 30, "direction": "denoising", "span": None, "position": None, "step": None,
    "frames": 60, "effect": "action", "part": None, "verify": 5, "points": 5,
}  # fmt: skip
"""Options that only some methods read, and what they are where nobody gave them."""
_PAIRS, _ABLATION = {"factor", "pairs", "direction"}, {"frames", "effect"}
READ = {
    "patching": _PAIRS | {"span", "position", "step"},
    "zero": _ABLATION, "mean": _ABLATION, "resample": _ABLATION,
    "atp": _PAIRS | {"verify"}, "ig": _PAIRS | {"points"}, "atp-q": _PAIRS, "atp-k": _PAIRS,
    "direct": {"frames"}, "mass": {"frames", "part"},
}  # fmt: skip
"""Which of them a method reads."""


def patch(a: Namespace) -> None:
    """Score every head by what replacing its output does to the action: exact patching between pairs, or ablation."""
    from interp.ablation import AblationSettings, ablate
    from interp.patching import patch_heads

    settings = None
    _settle(a)
    if a.method != "patching":
        settings = AblationSettings(a.method, a.effect, frames=a.frames, seed=a.seed)
    asked = () if settings else (*_pairs_asked(a), *_place_asked(a))
    name = _name(a, settings.method if settings else "patching", *asked, *_towers_asked(a))
    run = open_run(a.run)
    policy = policy_of(run, a.policy, a.device)
    sweeps = run.path / ".sweeps" / name
    if settings:
        towers = towers_of(a.towers or DEFAULT_TOWERS, policy)
        demos = demos_of(run, a.demos)
        scores = ablate(policy, demos, settings, towers=towers, directory=sweeps, progress=True)
    else:
        towers = towers_of(a.towers, policy) if a.towers else _towers_with_the_place(policy, a)
        scores = patch_heads(
            policy, pairs_of(run, policy, a), towers=towers, span=a.span, position=a.position, step=a.step,
            direction=a.direction, data=run.data, factor=a.factor, seed=a.seed, directory=sweeps, progress=True,
        )  # fmt: skip
    _report(run, scores, name)


def _towers_with_the_place(policy: Policy, a: Namespace) -> Sequence[str]:
    """Those of the default towers that have the span, position or step; the others are named."""
    from interp.edits import having

    towers, without = having(policy, DEFAULT_TOWERS, a.span, a.position, a.step)
    if not towers:
        raise UsageError(next(iter(without.values())))
    for tower, why in without.items():
        print(f"{tower} is left out: {why}")
    return towers


def _patch_takes(p: ArgumentParser) -> None:
    p.add_argument(
        "--method", choices=("patching", "zero", "mean", "resample"), default="patching",
        help="between clean and corrupt observations; or ablation: by zero, the mean, another frame's output",
    )  # fmt: skip
    _pairs_take(p)
    p.add_argument("--effect", choices=("action", "loss"), help="of ablation (action)")
    p.add_argument("--span", help="token span to patch (image/<camera>, language, state, action)")
    p.add_argument("--position", type=int, help="token position to patch")
    p.add_argument("--step", type=int, help="flow step to patch (expert)")


def attribute(a: Namespace) -> None:
    """Estimate what every head does from gradients, or say what it writes into the action or looks at."""
    from interp.attribution import atp, atp_qk, direct_scores, integrated
    from interp.mass import mass_scores

    _settle(a)
    if a.method == "mass" and len(a.towers or ()) > 1:
        raise UsageError(f"--towers {' '.join(a.towers)}: --method mass scores one tower at a time: name one")
    if a.method == "direct" and set(a.towers or ("expert",)) != {"expert"}:
        raise UsageError(
            f"--towers {' '.join(a.towers)}: --method direct scores the expert, whose heads alone write into the "
            "action: leave --towers out"
        )
    asked = () if a.method in ("direct", "mass") else (*_pairs_asked(a), *_towers_asked(a))
    name = _name(a, a.method, *asked)
    run = open_run(a.run)
    policy = policy_of(run, a.policy, a.device)
    if a.method in ("direct", "mass"):
        demos = demos_of(run, a.demos)
        if a.method == "direct":
            scores = direct_scores(policy, demos, frames=a.frames, seed=a.seed)
        else:
            part, tower = a.part or f"image/{policy.spec.cameras[0]}", (a.towers or ["expert"])[0]
            scores = mass_scores(policy, demos, part, tower=tower, frames=a.frames, seed=a.seed)
            name = _name(a, "mass", part, tower if tower != "expert" else None)
    else:
        pairs = pairs_of(run, policy, a)
        how = {"towers": towers_of(a.towers or DEFAULT_TOWERS, policy), "direction": a.direction}
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
        "into the action (the expert's alone); where it looks (one tower, the expert)",
    )  # fmt: skip
    _pairs_take(p)
    p.add_argument("--verify", type=int, help="best heads of atp to patch for real (5)")
    p.add_argument("--points", type=int, help="points of integrated gradients (5)")
    p.add_argument(
        "--part",
        help="mass: what is looked at (image/<camera>, language, ..., image/<camera>/padding, other)",
    )


def _pairs_take(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument(
        "--factor",
        help="pairs that differ in this: visual, linguistic, physical (by default, frames of two episodes)",
    )
    p.add_argument("--pairs", type=int, help="pairs to patch between (30)")
    p.add_argument("--frames", type=int, help="frames of the demonstrations, for methods without pairs (60)")
    p.add_argument("--towers", nargs="+", help="towers to score (expert and vlm)")
    p.add_argument(
        "--direction",
        choices=("denoising", "noising"),
        help="clean values into the corrupt run (denoising, the default), or corrupt ones into the clean run",
    )
    p.add_argument("--policy", help="directory of the run's policy, if it has moved")
    p.add_argument("--demos", help="directory of the run's demonstrations, if they have moved")
    takes_device(p)
    p.add_argument("--name", help="name of the scores (by default, what is asked for: patching-noising)")
    takes_seed(p, "of every draw")


def _settle(a: Namespace) -> None:
    """Refuse what was given although the method does not read it; what was not given gets its default."""
    for option, default in DEFAULTS.items():
        value = getattr(a, option, None)
        if value is None:
            setattr(a, option, default)
        elif option not in READ[a.method]:
            raise UsageError(f"--{option} {value}: --method {a.method} does not read it: leave it out")


# ---- what scores are called: by all that was asked for but sizes and seeds, so that they do not replace others


def _name(a: Namespace, *asked: str | None) -> str:
    """`--name`, or what was asked for. It must be a name before anything is computed for it."""
    from interp.runs import check_name

    default = re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(filter(None, asked)))
    return check_name(a.name or default, "name of the scores")


def _pairs_asked(a: Namespace) -> Iterator[str]:
    if a.factor:
        yield f"{a.factor}-pairs"  # `factors` itself writes patching-visual
    if a.direction != "denoising":
        yield str(a.direction)


def _place_asked(a: Namespace) -> Iterator[str]:
    if a.span:
        yield str(a.span)
    for what in ("position", "step"):
        if getattr(a, what) is not None:
            yield f"{what}{getattr(a, what)}"


def _towers_asked(a: Namespace) -> Iterator[str]:
    if a.towers and set(a.towers) != set(DEFAULT_TOWERS):
        yield from sorted(a.towers)


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
