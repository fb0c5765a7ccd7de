"""The command line: one function a verb, nothing else. `robosteer VERB --help` says what each takes.

Heavy imports live inside the verbs so that `--help` answers at once. Bad input is one line on stderr and status 2.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from interp.demos import Demonstrations
    from interp.policies import Policy
    from interp.runs import Run
    from steering.headset import HeadSet

DEMO_TASK = "cube-in-bowl"
TOWERS = ("vision", "vlm", "expert")


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = build_parser().parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from interp.errors import UsageError
    from testbed.variation import TestbedError

    try:
        arguments.run_verb(arguments)
    except (UsageError, TestbedError) as error:
        print(f"robosteer {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nrobosteer {arguments.verb}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# -- verbs ----------------------------------------------------------------------------------------------------------


def record(a: argparse.Namespace) -> None:
    """Record demonstrations of the scripted expert on the simulated tabletop."""
    from testbed.demos import record as record_demos

    path = record_demos(a.task, a.episodes, a.demos, seed=a.seed, workers=a.workers)
    print(f"{a.episodes} demonstrations of {a.task}: {path}")


def capture(a: argparse.Namespace) -> None:
    """Run the frozen policy over demonstrations and keep every head's output z."""
    from interp.capture import capture as capture_run

    policy, demos = _policy(a.policy), _demos(a.demos)
    run = capture_run(
        policy, demos, a.run, towers=_towers(a.towers, policy), seed=a.seed, command=_command(a)
    )
    print(f"{run.path}: {len(demos)} frames, towers {', '.join(t for t in TOWERS if run.tokens(t))}")


def rank(a: argparse.Namespace) -> None:
    """Score every captured head by how well its neighbours predict the action (leave-one-episode-out k-NN)."""
    from interp.knn import DEFAULT_TOKENS, KnnSettings
    from interp.knn import rank as rank_heads

    run = _run(a.run)
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


def select(a: argparse.Namespace) -> None:
    """Choose heads by rank, at random or by hand, and save them as a heads file of the run."""
    from interp.heads import Head
    from interp.knn import best_add, topk
    from steering.headset import HeadSet, best_heads, random_heads, worst_heads

    run = _run(a.run)
    if a.heads:
        given = HeadSet(tuple(map(Head.parse, a.heads.split(","))), run.policy, "by hand", data=run.data)
        given.check(run.spec, run.policy)
        name, chosen = a.name or "by-hand", given
    elif a.by == "random":
        name, chosen = a.name or f"random-{a.top}", random_heads(run.spec, a.top, a.tower, a.seed, run.policy)
    elif a.by in ("topk", "best-add"):
        found = (topk if a.by == "topk" else best_add)(run, a.top, a.tower)
        method = f"{a.method} {a.by} (k={found.k}, joint error {found.error:.4g})"
        name, chosen = a.name or f"{a.by}-{a.top}", HeadSet(found.heads, run.policy, method, data=run.data)
    else:
        pick = best_heads if a.by == "score" else worst_heads
        name, chosen = a.name or f"{a.by}-{a.top}", pick(run.read_scores(a.method), a.top, a.tower)
    print(run.save_selection(name, chosen.to_json()))
    print(f"{len(chosen.heads)} heads: {', '.join(map(str, chosen.heads))}")


def finetune(a: argparse.Namespace) -> None:
    """Train what a recipe says, by default the chosen heads' query rows and output columns, on the demonstrations."""
    from steering.finetune import finetune as train
    from steering.recipes import Recipe

    run = _run(a.run)
    policy, demos = _run_policy(run, a.policy), _run_demos(run, a.demos)
    heads = _heads(a.heads, run, policy) if a.heads else None
    scores = run.read_scores(a.method) if a.recipe == "bottom-k" else None
    changes = {k: v for k, v in (("steps", a.steps), ("lr", a.lr), ("form", a.form)) if v is not None}
    recipe = Recipe.named(a.recipe, **changes)
    directory = run.path / "jobs" / (a.name or a.recipe)
    done = train(policy, demos, recipe, directory, heads=heads, scores=scores, seed=a.seed)
    print(
        f"{directory / 'policy'}: {sum(done.summary['trainable_parameters'].values()):,} parameters trained"
    )


def evaluate(a: argparse.Namespace) -> None:
    """Let a policy act in closed loop on seeded episodes; with --run the result is kept and paired with the base."""
    from interp.runs import read_json
    from steering.results import Result, load_result, save_result
    from steering.rollouts import evaluate as roll_out

    run = _run(a.run) if a.run else None
    policy = a.policy or (run.info["policy"]["source"] if run else "tiny-pi0")
    summary = Path(policy).parent / "summary.json"
    training = read_json(summary) if a.policy and summary.is_file() else None
    name = a.name or (Path(policy).parent.name if training else Path(policy).name)
    done = roll_out(
        policy, a.task, a.n, a.seed, workers=a.workers, variation=_variation(a.vary), execute=a.execute
    )
    arm = training["recipe"]["name"] if training else ("base" if not a.policy else name)
    result = Result.of(done, name=name, arm=arm, training=training)
    if a.against and run:
        baseline = run.results.get(a.against)
        if baseline is None:
            from interp.errors import unknown

            raise unknown(f"result in run {run.path}", a.against, run.results)
        result = result.against(load_result(baseline))
    rate = result.success_rate
    print(f"{name} on {a.task}: {rate.value:.0%} success (95 % {rate.low:.0%} to {rate.high:.0%}, n = {a.n})")
    if result.paired:
        p = result.paired
        print(f"  paired with {p.against}: {p.difference:+.0%} (95 % {p.low:+.0%} to {p.high:+.0%})")
    if run:
        print(save_result(run.path / "results" / f"{name}.json", result))


def export(a: argparse.Namespace) -> None:
    """Write a finetuned policy as a merged checkpoint, reloaded in a fresh process and compared before it is done."""
    from interp.errors import UsageError
    from interp.runs import read_json
    from steering.export import export as export_policy

    run = _run(a.run)
    job = run.path / "jobs" / a.name
    if not (job / "summary.json").is_file():
        raise UsageError(f"{job}: no finished training of that name; finetune first")
    policy, demos = _policy(job / "policy"), _run_demos(run, a.demos)
    frames = [demos.observation(f) for f in range(0, len(demos), max(1, len(demos) // 8))][:8]
    results = [read_json(p) for n, p in run.results.items() if n in ("base", a.name)]
    card = {**read_json(job / "summary.json"), "results": results}
    done = export_policy(policy, a.out or run.path / "exports" / a.name, frames, card, overwrite=a.overwrite)
    print(f"{done.directory}: reloaded, {done.frames} frames agree within {done.difference:.1e}")


def app(a: argparse.Namespace) -> None:
    """Open the dashboard over the runs under a directory."""
    from app import serve

    serve(a.runs, host=a.host, port=a.port)


def demo(a: argparse.Namespace) -> None:
    """The whole loop on the embedded default; every step is printed as the command that repeats it."""
    import time

    began, run = time.time(), Path(a.run)
    demos = run.parent / f"{run.name}-demonstrations"
    if not demos.exists():
        _say("record", "--task", a.task, "--episodes", a.episodes, "--demos", demos)
    _say("capture", "--demos", demos, "--run", run)
    _say("rank", "--run", run)
    _say("select", "--run", run, "--top", a.heads, "--name", "chosen")
    _say("evaluate", "--run", run, "--task", a.task, "--n", a.n, "--name", "base")
    _say("finetune", "--run", run, "--heads", "chosen")
    aligned = run / "jobs/aligned/policy"
    _say("evaluate", "--run", run, "--policy", aligned, "--task", a.task, "--n", a.n, "--against", "base")
    _say("export", "--run", run, "--name", "aligned", "--overwrite")
    print(f"\nthe loop took {time.time() - began:.0f} s")
    if not a.no_app:
        _say("app", "--runs", run.parent, "--port", a.port)


def _say(*words: object) -> None:
    """Show a command and run it."""
    line = [str(w) for w in words]
    print(f"\n$ robosteer {shlex.join(line)}", flush=True)
    arguments = build_parser().parse_args(line)
    arguments.run_verb(arguments)


# -- what verbs share -----------------------------------------------------------------------------------------------


def _policy(name: str | Path) -> Policy:
    from interp.policies import load_policy

    return load_policy(name)


def _demos(path: str | Path) -> Demonstrations:
    from interp.demos import Demonstrations

    return Demonstrations.open(path)


def _run(path: str | Path) -> Run:
    from interp.runs import Run

    return Run.open(path)


def _run_policy(run: Run, override: str | None) -> Policy:
    """The run's policy, or the one named instead; its fingerprint must be the run's."""
    policy = _policy(override or run.info["policy"]["source"])
    run.expect(policy=policy.fingerprint)
    return policy


def _run_demos(run: Run, override: str | None) -> Demonstrations:
    demos = _demos(override or run.info["data"]["path"])
    run.expect(data=demos.fingerprint)
    return demos


def _heads(name: str, run: Run, policy: Policy) -> HeadSet:
    """A selection of the run by name, or a heads file by path."""
    from steering.headset import read_heads

    return read_heads(run.selections.get(name, Path(name)), policy)


def _towers(names: Sequence[str] | None, policy: Policy) -> Sequence[str]:
    for name in names or ():
        policy.spec.tower(name)
    return names or tuple(policy.spec.towers)


def _variation(pairs: Sequence[str]) -> dict[str, object] | None:
    """`light=0.5` -> {"light": 0.5}: values are JSON where they can be, else text."""
    import json

    from interp.errors import UsageError

    knobs: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--vary {pair}: write KNOB=VALUE, for example light=0.5")
        try:
            knobs[name] = json.loads(value)
        except json.JSONDecodeError:
            knobs[name] = value
    return knobs or None


def _command(a: argparse.Namespace) -> list[str]:
    shown = {k: v for k, v in vars(a).items() if k not in ("verb", "run_verb") and v not in (None, False)}
    return ["robosteer", a.verb, *(str(w) for k, v in shown.items() for w in (f"--{k}", v))]


# -- what they take -------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    parser = Parser(
        prog="robosteer", description="Find, look at and finetune the heads that carry a robot's task."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").strip()
        added = verbs.add_parser(
            function.__name__,
            help=text.split("\n")[0],
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        added.set_defaults(run_verb=function)
        return added

    p = verb(demo)
    p.add_argument("--task", default=DEMO_TASK, help="a task of the testbed")
    p.add_argument("--run", default="runs/demo", help="run directory to make or continue")
    p.add_argument("--episodes", type=int, default=20, help="demonstrations to record")
    p.add_argument("--heads", type=int, default=12, help="how many heads to finetune")
    p.add_argument("--n", type=int, default=100, help="rollouts before and after")
    p.add_argument("--port", type=int, default=8050)
    p.add_argument("--no-app", action="store_true", help="end instead of opening the dashboard")

    p = verb(record)
    p.add_argument("--task", required=True, help="a task of the testbed")
    p.add_argument("--demos", required=True, help="directory to write (LeRobotDataset v3)")
    p.add_argument("--episodes", type=int, default=20)
    p.add_argument("--seed", type=int, default=500_000, help="seed of the first episode")
    p.add_argument("--workers", type=int, default=2)

    p = verb(capture)
    p.add_argument("--policy", default="tiny-pi0", help="directory, hub id or tiny-pi0")
    p.add_argument("--demos", required=True, help="LeRobotDataset v3 directory")
    p.add_argument("--run", required=True, help="run directory to make or resume")
    p.add_argument("--towers", nargs="+", help="vision, vlm, expert (all by default)")
    p.add_argument("--seed", type=int, default=0, help="seed of the flow's start noise")

    p = verb(rank)
    p.add_argument("--run", required=True)
    p.add_argument("--towers", nargs="+", help="towers to score (expert and vlm by default)")
    p.add_argument("--token", help="token of the first tower (expert: first_action or state)")
    p.add_argument("--k", type=int, nargs="+", default=[10, 20, 30, 40], help="numbers of neighbours to try")
    p.add_argument("--target", choices=("current", "chunk"), default="current", help="action to predict")
    p.add_argument("--normalised", action="store_true", help="weigh action dimensions equally")
    p.add_argument("--top", type=int, default=20, help="heads whose joint error chooses k")
    p.add_argument("--name", default="knn", help="name of the scores")
    p.add_argument("--seed", type=int, default=0)

    p = verb(select)
    p.add_argument("--run", required=True)
    p.add_argument("--by", choices=("score", "topk", "best-add", "bottom", "random"), default="score")
    p.add_argument("--method", default="knn", help="name of the scores")
    p.add_argument("--tower", default="expert")
    p.add_argument("--top", type=int, default=12, help="number of heads")
    p.add_argument("--heads", help="by hand: expert.L3H5,expert.L4H0")
    p.add_argument("--name", help="name of the selection")
    p.add_argument("--seed", type=int, default=0)

    p = verb(finetune)
    p.add_argument("--run", required=True)
    p.add_argument("--recipe", default="aligned", help="aligned, random-k, bottom-k, all-heads, lora or full")
    p.add_argument("--heads", help="a selection of the run, or a heads file")
    p.add_argument("--name", help="name of the job (the recipe by default)")
    p.add_argument("--policy", help="the run's own by default")
    p.add_argument("--demos", help="the run's own by default")
    p.add_argument("--method", default="knn", help="scores that bottom-k reads")
    p.add_argument("--steps", type=int)
    p.add_argument("--lr", type=float)
    p.add_argument("--form", choices=("full", "low-rank"), help="form of the head slices")
    p.add_argument("--seed", type=int, default=0)

    p = verb(evaluate)
    p.add_argument("--policy", help="directory or name (the run's base policy by default)")
    p.add_argument("--task", required=True)
    p.add_argument("--run", help="run that keeps the result")
    p.add_argument("--name", help="name of the result")
    p.add_argument("--against", help="result of the run to pair with")
    p.add_argument("--n", type=int, default=100, help="episodes")
    p.add_argument("--seed", type=int, default=0, help="seed of the first episode; the same seeds pair arms")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--execute", type=int, help="actions of a chunk to run before the next sample")
    p.add_argument("--vary", nargs="+", default=[], metavar="KNOB=VALUE", help="variation, e.g. light=0.5")

    p = verb(export)
    p.add_argument("--run", required=True)
    p.add_argument("--name", default="aligned", help="the finished job to export")
    p.add_argument("--out", help="directory to write (exports/NAME in the run by default)")
    p.add_argument("--demos", help="frames to verify on (the run's own by default)")
    p.add_argument("--overwrite", action="store_true")

    p = verb(app)
    p.add_argument("--runs", default="runs", help="directory of runs, or one run")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8050)
    return parser


if __name__ == "__main__":
    sys.exit(main())
