"""The verbs that adapt: select, finetune, evaluate, export. See interp/verbs.py for what a verb is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interp.verbs import demos_of, open_policy, open_run, policy_of

if TYPE_CHECKING:
    from interp.policies import Policy
    from interp.runs import Run
    from steering.headset import HeadSet


def select(a: Namespace) -> None:
    """Choose heads by rank, at random or by hand, and save them as a heads file of the run."""
    from interp.heads import Head
    from interp.knn import best_add, topk
    from steering.headset import HeadSet, best_heads, random_heads, worst_heads

    run = open_run(a.run)
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


def _select_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True)
    p.add_argument("--by", choices=("score", "topk", "best-add", "bottom", "random"), default="score")
    p.add_argument("--method", default="knn", help="name of the scores")
    p.add_argument("--tower", default="expert")
    p.add_argument("--top", type=int, default=12, help="number of heads")
    p.add_argument("--heads", help="by hand: expert.L3H5,expert.L4H0")
    p.add_argument("--name", help="name of the selection")
    p.add_argument("--seed", type=int, default=0)


def finetune(a: Namespace) -> None:
    """Train what a recipe says, by default the chosen heads' query rows and output columns, on the demonstrations."""
    from steering.finetune import finetune as train
    from steering.recipes import Recipe

    run = open_run(a.run)
    policy, demos = policy_of(run, a.policy), demos_of(run, a.demos)
    heads = _heads(a.heads, run, policy) if a.heads else None
    scores = run.read_scores(a.method) if a.recipe == "bottom-k" else None
    changes = {k: v for k, v in (("steps", a.steps), ("lr", a.lr), ("form", a.form)) if v is not None}
    recipe = Recipe.named(a.recipe, **changes)
    directory = run.path / "jobs" / (a.name or a.recipe)
    done = train(policy, demos, recipe, directory, heads=heads, scores=scores, seed=a.seed)
    print(
        f"{directory / 'policy'}: {sum(done.summary['trainable_parameters'].values()):,} parameters trained"
    )


def _finetune_takes(p: ArgumentParser) -> None:
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


def evaluate(a: Namespace) -> None:
    """Let a policy act in closed loop on seeded episodes; with --run the result is kept and paired with the base."""
    from interp.runs import read_json
    from steering.results import Result, load_result, save_result
    from steering.rollouts import evaluate as roll_out

    run = open_run(a.run) if a.run else None
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


def _evaluate_takes(p: ArgumentParser) -> None:
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


def export(a: Namespace) -> None:
    """Write a finetuned policy as a merged checkpoint, reloaded in a fresh process and compared before it is done."""
    from interp.errors import UsageError
    from interp.runs import read_json
    from steering.export import export as export_policy

    run = open_run(a.run)
    job = run.path / "jobs" / a.name
    if not (job / "summary.json").is_file():
        raise UsageError(f"{job}: no finished training of that name; finetune first")
    policy, demos = open_policy(job / "policy"), demos_of(run, a.demos)
    frames = [demos.observation(f) for f in range(0, len(demos), max(1, len(demos) // 8))][:8]
    results = [read_json(p) for n, p in run.results.items() if n in ("base", a.name)]
    card = {**read_json(job / "summary.json"), "results": results}
    done = export_policy(policy, a.out or run.path / "exports" / a.name, frames, card, overwrite=a.overwrite)
    print(f"{done.directory}: reloaded, {done.frames} frames agree within {done.difference:.1e}")


def _export_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True)
    p.add_argument("--name", default="aligned", help="the finished job to export")
    p.add_argument("--out", help="directory to write (exports/NAME in the run by default)")
    p.add_argument("--demos", help="frames to verify on (the run's own by default)")
    p.add_argument("--overwrite", action="store_true")


# ---- what these verbs share


def _heads(name: str, run: Run, policy: Policy) -> HeadSet:
    """A selection of the run by name, or a heads file by path."""
    from steering.headset import read_heads

    return read_heads(run.selections.get(name, Path(name)), policy)


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


VERBS = (
    (select, _select_takes),
    (finetune, _finetune_takes),
    (evaluate, _evaluate_takes),
    (export, _export_takes),
)
