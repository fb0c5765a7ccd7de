"""The verbs that understand: capture, and what scores and explains heads (more in head_verbs.py); what all verbs open.

A verb is thin: it opens what its arguments name, calls one function of the library and prints what a person wants to
know. Heavy imports live inside the verbs, so that `--help` answers at once. VERBS lists every verb with what it takes.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from interp.devices import DEVICES
from interp.seeds import takes_seed

if TYPE_CHECKING:
    import torch

    from interp.demos import Demonstrations
    from interp.policies import Policy
    from interp.runs import Run

TOWERS = ("vision", "vlm", "expert")


def capture(a: Namespace) -> None:
    """Run the frozen policy over demonstrations and keep every head's output z."""
    from interp.capture import capture as capture_run

    policy, demos = open_policy(a.policy, a.device), open_demos(a.demos)
    run = capture_run(
        policy, demos, a.run, towers=towers_of(a.towers, policy), seed=a.seed, command=command_of(a)
    )
    print(f"{run.path}: {len(demos)} frames, towers {', '.join(t for t in TOWERS if run.tokens(t))}")
    if a.footage:
        from interp.filming import footage
        from interp.footage import EDITS

        for edit in (None, *(EDITS if a.footage == "twins" else ())):
            footage(policy, demos, run, edit=edit)
        print(run.path / "attention")


def _capture_takes(p: ArgumentParser) -> None:
    p.add_argument("--policy", default="tiny-pi0", help="directory, hub id or tiny-pi0")
    p.add_argument("--demos", required=True, help="LeRobotDataset v3 directory")
    p.add_argument("--run", required=True, help="run directory to make or resume")
    p.add_argument("--towers", nargs="+", help="vision, vlm, expert (all by default)")
    takes_device(p)
    takes_seed(p, "seed of the flow's start noise")
    p.add_argument(
        "--footage",
        nargs="?",
        const="frames",
        choices=("frames", "twins"),
        help="also write every frame's attention, for the dashboard's Watch page; twins: of edited frames too",
    )


def rank(a: Namespace) -> None:
    """Score every captured head by how well its neighbours predict the action (leave-one-episode-out k-NN)."""
    from interp.knn import DEFAULT_TOKENS, KnnSettings
    from interp.knn import rank as rank_heads
    from interp.runs import check_name

    check_name(a.name, "name of the scores")
    run = open_run(a.run)
    towers = a.towers or [t for t in ("expert", "vlm") if run.tokens(t)]
    tokens = {**DEFAULT_TOKENS, **{tower: a.token for tower in towers[:1] if a.token}}
    settings = KnnSettings(
        tokens=tokens, ks=tuple(a.k), target=a.target, normalised=a.normalised, metric=a.metric
    )
    if a.stability is not None:  # the rest may take minutes
        from interp.stability import check_halving, stability

        check_halving(run, towers, a.top, a.stability)
    scores = rank_heads(run, settings, towers=towers, n=a.top, greedy=a.greedy, seed=a.seed, progress=True)
    path = run.save_scores(scores, a.name)
    for tower in towers:
        best = ", ".join(f"{h} {scores.score(h):.4g}" for h in scores.ranked(tower)[:5])
        null = scores.tower(tower).null
        chance = f"; chance {null.mean:.4g} (95 % {null.low:.4g} to {null.high:.4g})" if null else ""
        print(f"{tower}: best {best} [{scores.units}]{chance}")
    for tower, found in scores.settings.get("greedy", {}).items():
        print(f"{tower}: greedy {', '.join(found['heads'])}; joint error {found['joint_error'][-1]:.4g}")
    print(path)
    if a.stability is not None:
        often = stability(run, scores, splits=a.stability, seed=a.seed, progress=True)
        for tower, agreement in often.settings["agreement"].items():
            rho, tau, shared = (agreement[name] for name in ("spearman", "kendall", "shared"))
            print(
                f"{tower}: halves of the demonstrations agree at Spearman {rho['mean']:.2f} ({rho['low']:.2f} to "
                f"{rho['high']:.2f}), Kendall {tau['mean']:.2f}; they share {shared['mean']:.1f} of the "
                f"{often.settings['n'][tower]} best heads, chance {shared['chance']:.1f}"
            )
        print(run.save_scores(often, f"{a.name}-stability"))


def _rank_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument("--towers", nargs="+", help="towers to score (expert and vlm by default)")
    p.add_argument("--token", help="token of the first tower (expert: first_action or state)")
    p.add_argument("--k", type=int, nargs="+", default=[10, 20, 30, 40], help="numbers of neighbours to try")
    p.add_argument("--target", choices=("current", "chunk"), default="current", help="action to predict")
    p.add_argument("--normalised", action="store_true", help="weigh action dimensions equally")
    p.add_argument("--metric", choices=("cosine", "euclidean"), default="cosine", help="distance between z")
    p.add_argument("--top", type=int, default=20, help="heads whose joint error chooses k")
    p.add_argument("--greedy", action="store_true", help="choose the --top heads jointly, too (slower)")
    p.add_argument(
        "--stability",
        type=int,
        nargs="?",
        const=20,
        metavar="SPLITS",
        help="rank halves of the demonstrations, too, and say how often a head is in the top (20 splits)",
    )
    p.add_argument("--name", default="knn", help="name of the scores")
    takes_seed(p, "of every draw")


def explain(a: Namespace) -> None:
    """Say which heads made the action of one frame, and what they look at: JSON and a picture (SVG)."""
    from interp.explain import ExplainSettings
    from interp.explain import explain as explain_action
    from interp.explain_figure import figure
    from interp.runs import write_atomic, write_json

    run = open_run(a.run)
    policy, demos = policy_of(run, a.policy, a.device), demos_of(run, a.demos)
    settings = ExplainSettings(
        towers=tuple(a.towers), by=a.by, shown=a.top, reference=a.reference,
        seed=int(run.info["seeds"].get("capture", 0)),
    )  # fmt: skip
    found = explain_action(policy, demos, a.episode, a.frame, settings, progress=True)
    print(f"episode {a.episode}, frame {a.frame}: {found.instruction}")
    for name, predicted, shown in zip(found.names, found.predicted[0], found.demonstrated[0], strict=True):
        print(f"  {name:14} predicted {predicted:+.4f}   demonstrated {shown:+.4f}")
    print("root mean square of what heads bring into the chunk, normalised units")
    for part in found.heads[: a.top]:
        direct = "     -" if part.direct is None else f"{part.direct.rms:6.3f}"
        print(f"  {part.head!s:14} direct {direct}   zero {part.zero.rms:6.3f}   mean {part.mean.rms:6.3f}")
    out = Path(a.out) if a.out else run.path / "explanations"
    name = f"{a.episode}-{a.frame}"
    write_json(out / f"{name}.json", found.to_json())
    write_atomic(out / f"{name}.svg", figure(found, demos).encode())
    print(out / f"{name}.json", out / f"{name}.svg", sep="\n")


def _explain_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument("--episode", type=int, required=True, help="as the data set numbers it")
    p.add_argument("--frame", type=int, required=True, help="within the episode, from 0")
    p.add_argument("--towers", nargs="+", default=["expert"], help="towers whose heads are explained")
    p.add_argument("--by", default="mean", choices=("mean", "zero", "direct"), help="what orders the heads")
    p.add_argument("--top", type=int, default=6, help="heads to look at closely")
    p.add_argument("--reference", type=int, default=24, help="frames behind the mean ablation")
    p.add_argument("--policy", help="directory, if the policy is not where the run found it")
    p.add_argument("--demos", help="directory, if the demonstrations are not where the run found them")
    takes_device(p)
    p.add_argument("--out", help="directory to write to (explanations/ in the run by default)")


def factors(a: Namespace) -> None:
    """Score every head by factor: how much of a visual, linguistic or physical change it carries into the action."""
    from interp.factors.study import pairs_for, study

    run = open_run(a.run)
    policy = policy_of(run, a.policy, a.device)
    towers = towers_of(a.towers, policy)
    recordings = partial(demos_of, run, a.demos)
    pairs = pairs_for(run, policy, recordings, a.factors, a.pairs, tasks=a.task, seed=a.seed, progress=True)
    done = study(
        run, policy, pairs, method=a.method, towers=towers, direction=a.direction, seed=a.seed, progress=True
    )
    for line in done.summary():
        print(line)
    for path in done.save(run):
        print(path)


def _factors_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument(
        "--factors", nargs="+", default=["visual", "linguistic", "physical"], help="factors to measure"
    )
    p.add_argument("--pairs", type=int, default=30, help="pairs a factor")
    p.add_argument(
        "--method", choices=("patching", "atp"), default="patching", help="exact, or a fast estimate"
    )
    p.add_argument("--towers", nargs="+", default=["vlm", "expert"], help="towers to score")
    p.add_argument(
        "--direction",
        choices=("denoising", "noising"),
        default="denoising",
        help="clean values into the corrupt run, or corrupt ones into the clean run",
    )
    p.add_argument(
        "--task", nargs="+", help="tasks of the testbed to make pairs in (by default those that the run's instructions "
        "come from; edits of the recordings if they come from none)",
    )  # fmt: skip
    p.add_argument("--policy", help="directory of the run's policy, if it has moved")
    p.add_argument("--demos", help="directory of the run's demonstrations, if they have moved")
    takes_device(p)
    takes_seed(p, "of every draw")


# ---- what verbs open


def takes_device(p: ArgumentParser, more: str = "") -> None:
    """The option of every verb that computes with a policy."""
    p.add_argument("--device", default="cpu", help=f"where the policy computes: {DEVICES}{more}")


def check_device(name: str) -> None:
    """For a verb that has something else to do before the policy is loaded, or that lets others load it."""
    from interp.devices import device_of

    if name != "cpu":  # which every machine has: no need to import PyTorch
        device_of(name)


def open_policy(name: str | Path, device: str | torch.device = "cpu") -> Policy:
    from interp.policies import load_policy

    return load_policy(name, device)


def open_demos(path: str | Path) -> Demonstrations:
    from interp.demos import Demonstrations

    return Demonstrations.open(path)


def open_run(path: str | Path) -> Run:
    from interp.runs import Run

    return Run.open(path)


def policy_of(run: Run, override: str | None, device: str | torch.device = "cpu") -> Policy:
    """The run's policy, or the one named instead; its fingerprint must be the run's."""
    policy = open_policy(override or run.info["policy"]["source"], device)
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
    """The words that repeat what was asked; `shlex.join` makes a line for a terminal of them."""
    command = ["robosteer", a.verb]
    for name, value in vars(a).items():
        if name in ("verb", "run_verb") or value is None or value is False or value == []:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    return command


VERBS = (
    (capture, _capture_takes),
    (rank, _rank_takes),
    (explain, _explain_takes),
    (factors, _factors_takes),
)
