"""The verbs that adapt: select, finetune, evaluate, compare, export, serve. See interp/verbs.py for what a verb is."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError
from interp.seeds import seed, takes_seed
from interp.verbs import check_device, demos_of, open_run, policy_of, takes_device
from steering.export_verb import export, export_takes
from steering.options import named_values
from steering.reproduce.verb import reproduce, reproduce_takes
from steering.serve_verb import serve, serve_takes

if TYPE_CHECKING:
    from interp.policies import Policy
    from interp.runs import Run
    from steering.headset import HeadSet
    from steering.results import Result
    from steering.suites import Subject


def select(a: Namespace) -> None:
    """Choose heads by rank, at random or by hand, and save them as a heads file of the run."""
    from interp.heads import Head
    from interp.knn import KnnSettings, best_add, topk
    from interp.runs import check_name, read_json
    from steering.headset import (
        HeadSet,
        best_heads,
        is_heads_file,
        parse_heads,
        random_everywhere,
        united,
        worst_heads,
    )

    if a.name:  # before anything is computed for it
        check_name(a.name, "name of the selection")
    run = open_run(a.run)
    if a.method and (a.heads or a.by == "random"):
        how = f"--heads {a.heads}" if a.heads else "--by random"
        raise UsageError(f"--method {a.method}: {how} reads no scores: leave one of the two out")
    if a.heads and is_heads_file(a.heads):
        if len(a.tower) > 1:
            raise UsageError(
                f"--tower {' '.join(a.tower)}: a heads file is of one tower, or names them: give one"
            )
        published = parse_heads(read_json(a.heads), a.tower[0], f"heads file {a.heads}")
        published.check(run.spec, run.policy, f"heads file {a.heads}")
        name = a.name or Path(a.heads).stem
        chosen = replace(published, policy=run.policy, method=published.method or "published")
    elif a.heads:
        given = HeadSet(tuple(map(Head.parse, a.heads.split(","))), run.policy, "by hand", data=run.data)
        given.check(run.spec, run.policy)
        name, chosen = a.name or "by-hand", given
    elif a.by == "random":
        chosen = random_everywhere(run.spec, dict.fromkeys(a.tower, a.top), a.seed, run.policy)
        name = a.name or f"random-{a.top}"
    else:
        method = a.method or "knn"
        scores, name = run.read_scores(method), a.name or f"{a.by}-{a.top}"
        for tower in a.tower:
            scores.tower(tower)
        if a.by in ("topk", "best-add"):
            choose, settings = topk if a.by == "topk" else best_add, KnnSettings.of(scores)
            found = [choose(run, a.top, tower, settings) for tower in a.tower]
            joint = ", ".join(f"k={f.k}, joint error {f.error:.4g}" for f in found)
            heads = tuple(head for f in found for head in f.heads)
            chosen = HeadSet(heads, run.policy, f"{method} {a.by} ({joint})", data=run.data)
        else:
            pick = best_heads if a.by == "score" else worst_heads
            chosen = united([pick(scores, a.top, tower) for tower in a.tower])
    print(run.save_selection(name, chosen.to_json()))
    print(f"{len(chosen.heads)} heads: {', '.join(map(str, chosen.heads))}")


def _select_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument(
        "--by",
        choices=("score", "topk", "best-add", "bottom", "random"),
        default="score",
        help="best or worst (bottom) of --method's scores; k-NN on several heads at once, set as in --method's scores "
        "(topk, best-add); random",
    )
    p.add_argument("--method", help="name of the scores (knn)")
    p.add_argument(
        "--tower", nargs="+", default=["expert"], help="tower of the heads, or several (default: expert)"
    )
    p.add_argument("--top", type=int, default=12, help="number of heads, of each tower")
    p.add_argument(
        "--heads",
        help="by hand: expert.L3H5,expert.L4H0; or a heads file, ours or the published form (of --tower)",
    )
    p.add_argument("--name", help="name of the selection")
    takes_seed(p, "of --by random")


def finetune(a: Namespace) -> None:
    """Train what a recipe says, by default the chosen heads' query rows and output columns, on the demonstrations."""
    from steering.finetune import finetune as train
    from steering.ranks import is_first, local_device
    from steering.recipe import check_job
    from steering.recipes import PUBLISHED, Recipe
    from steering.retain import check_coefficients, retain

    name = check_job(a.name or a.recipe)
    run = open_run(a.run)
    check_coefficients(a.retain)
    settings = {k: getattr(a, k) for k in ("steps", "lr", "form") if getattr(a, k) is not None}
    published = PUBLISHED if a.published else {}
    recipe = Recipe.named(a.recipe, **{**published, **named_values("--set", a.set, "ema=0.99"), **settings})
    policy, demos = policy_of(run, a.policy, local_device(a.device)), demos_of(run, a.demos)
    directory = run.path / "jobs" / name
    done = train(
        policy,
        demos,
        recipe,
        directory,
        heads=_heads(a.heads, run, policy) if a.heads else None,
        scores=run.read_scores(a.method) if a.recipe == "bottom-k" else None,
        others=[open_run(path).read_scores(a.method) for path in a.others],
        seed=a.seed,
        checkpoint_every=a.checkpoint_every,
        cache_mb=a.cache_mb,
    )
    if is_first():
        count = sum(done.summary["trainable_parameters"].values())
        print(f"{directory / 'policy'}: {count:,} parameters trained")
        for average in retain(directory, a.retain, a.policy):
            print(average / "policy")


def _finetune_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument(
        "--recipe",
        default="aligned",
        help="aligned, paper, all-heads, random-k, bottom-k, generic-k, ffn-only, lora or full (docs/recipes.md)",
    )
    p.add_argument("--heads", help="a selection of the run, a heads file, or expert.L3H5,expert.L4H0")
    p.add_argument("--name", help="name of the job (the recipe by default)")
    p.add_argument("--policy", help="the run's own by default")
    p.add_argument("--demos", help="the run's own by default")
    p.add_argument("--method", default="knn", help="scores that bottom-k and generic-k read")
    p.add_argument(
        "--others", nargs="+", default=[], metavar="RUN", help="runs of other tasks, for generic-k"
    )
    p.add_argument("--steps", type=int, help="steps (250; --published: 3000)")
    p.add_argument(
        "--lr",
        type=float,
        help="peak learning rate (2e-3, full: 3e-4, which suit tiny-pi0; released policies: --published)",
    )
    p.add_argument("--form", choices=("full", "low-rank"), help="form of the head slices")
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE",
        help="any setting of the recipe, e.g. ema=0.99",
    )
    p.add_argument("--published", action="store_true", help="the published steps, batch and learning rate")
    p.add_argument(
        "--retain",
        nargs="+",
        type=float,
        default=[],
        metavar="A",
        help="also average with the base: 0.5 weighs both alike",
    )
    p.add_argument("--checkpoint-every", type=int, default=50, help="steps between two checkpoints")
    p.add_argument("--cache-mb", type=float, default=2048, help="memory for activations that are frozen")
    takes_device(p, " (under accelerate launch, cuda is a device a process)")
    takes_seed(p, "of every draw of the training")


def evaluate(a: Namespace) -> None:
    """Let a policy act in closed loop on seeded episodes, in-domain or under perturbation suites.
    With --run results are kept, paired with the base, and episodes that were run before are not run again."""
    from tqdm import tqdm

    from steering import suites
    from steering.environments import place
    from steering.results import IN_DOMAIN, file_stem
    from steering.rollouts import film
    from steering.video import check_format

    run = open_run(a.run) if a.run else None
    check_format(a.video_format)
    check_device(a.device)  # the workers load the policy
    variation = _variation(a.vary)
    if variation and a.suite:
        raise UsageError(f"--suite {' '.join(a.suite)}: --vary is a suite of its own: give one of the two")
    where = place(a.env, a.task)
    cameras = {
        camera: str(image) for camera, image in named_values("--camera", a.camera, "front=top").items()
    }
    chosen = (suites.custom(variation),) if variation else suites.choose(a.suite or [IN_DOMAIN], where.suites)
    subject = _subject(a, run)
    task = re.sub(r"[^A-Za-z0-9._+-]+", "-", where.task)
    called = subject.name if run else f"{subject.name}-{task}"
    stems = [file_stem(called, suite.name) for suite in chosen] if run or a.video else []
    done = suites.run_suites(
        subject,
        where.task,
        chosen,
        a.n,
        a.seed,
        directory=run.path / "results" if run else None,
        execute=run.spec.execute if run and a.execute is None else a.execute,
        against=a.against,
        again=a.again,
        workers=a.workers,
        env=where.env,
        env_options=where.options,
        cameras=cameras,
        device=a.device,
    )
    results = []
    for result, path, new in done:
        results.append(result)
        rate, paired = result.success_rate, result.paired
        interval = f"95 % {rate.low:.0%} to {rate.high:.0%}, n = {len(result.episodes)}"
        line = f"{_about(result)}: {rate.value:.0%} success ({interval})"
        if paired:
            interval = f"95 % {paired.low:+.0%} to {paired.high:+.0%}"
            line += f"\n  paired with {paired.against}: {paired.difference:+.0%} ({interval})"
        tqdm.write(line + (f"\n  {path}{'' if new else ' (was there)'}" if path else ""))
    for suite, result, stem in zip(chosen, results, stems, strict=True) if a.video else ():
        folder = run.path / "videos" if run else Path()
        films = {seed: folder / f"{stem}-seed{seed}.{a.video_format}" for seed in a.video}
        scored = {e.seed: e for e in result.episodes}
        shown = film(
            subject.policy,
            suite.condition(where.task),
            films,
            title=_about(result),
            scored=scored,
            execute=result.settings["execute"],
            env=where.env,
            env_options=where.options,
            cameras=cameras,
            device=a.device,
        )
        for file, episode in shown:
            print(f"{file}: {episode.failure or 'success'} after {episode.steps} steps")


def _about(result: Result) -> str:
    """`aligned on pick-cube (lighting)`"""
    from steering.results import IN_DOMAIN

    suite = "" if result.suite == IN_DOMAIN else f" ({result.suite})"
    return f"{result.name} on {result.task}{suite}"


def _subject(a: Namespace, run: Run | None) -> Subject:
    """Who is evaluated and under which name: a finetuned policy brings the summary of its training along."""
    from steering.suites import Subject

    policy = a.policy or (run.info["policy"]["source"] if run else "tiny-pi0")
    training = _training_of(Path(policy)) if a.policy else None
    name = a.name or (Path(policy).parent.name if training else Path(policy).name)
    arm = training["recipe"]["name"] if training else ("base" if not a.policy else name)
    fingerprint = training["policy"] if training else run.policy if run and not a.policy else None
    return Subject(policy, name, arm, training, fingerprint)


def _training_of(policy: Path) -> dict[str, Any] | None:
    """The summary of the training that made the policy; what else may be called summary.json beside it is not ours."""
    from interp.runs import read_json

    path = policy.parent / "summary.json"
    if not policy.is_dir() or not path.is_file():
        return None
    try:
        found = read_json(path)
    except UsageError:
        return None
    recipe = found.get("recipe")
    ours = {"schema", "policy"} <= found.keys() and isinstance(recipe, dict) and "name" in recipe
    return found if ours else None


def _evaluate_takes(p: ArgumentParser) -> None:
    p.add_argument("--policy", help="directory or name (the run's base policy by default)")
    p.add_argument("--task", help="what the policy was adapted to; suites start from it")
    p.add_argument(
        "--env",
        default="tabletop",
        help="tabletop, a LIBERO task such as libero_spatial:3 (docs/libero.md), or module:id of a gymnasium.Env",
    )
    p.add_argument(
        "--camera",
        nargs="+",
        default=[],
        metavar="CAMERA=IMAGE",
        help="the environment's image for a camera of the policy, where names do not tell",
    )
    p.add_argument("--run", help="run that keeps the results")
    p.add_argument("--name", help="name of the results")
    p.add_argument("--against", help="results of the run to pair with, suite by suite")
    p.add_argument(
        "--suite",
        nargs="+",
        metavar="SUITE",
        help="in-domain (the default), lighting, form, distractors, camera, paraphrase, other-object, pose-shift, "
        "robot-start, gripper-offset, unseen:TASK, forgetting:TASK, or visual, linguistic, physical, unseen, "
        "forgetting, all; in LIBERO object, language, task, position, or all of visual, linguistic, physical, all",
    )
    p.add_argument("--n", type=int, default=100, help="episodes a suite")
    takes_seed(p, "seed of the first episode; the same seeds pair arms")
    p.add_argument("--workers", type=int, default=2, help="processes, each with a policy and an environment")
    takes_device(p, "; every worker holds a copy")
    p.add_argument(
        "--execute",
        type=int,
        help="actions of a chunk to run before the next sample (by default what the policy says)",
    )
    p.add_argument(
        "--vary",
        nargs="+",
        default=[],
        metavar="KNOB=VALUE",
        help="a suite of your own, e.g. light=0.5 (knobs: docs/evaluate.md)",
    )
    p.add_argument(
        "--again",
        action="store_true",
        help="run all episodes again and replace results of this name, also another policy's",
    )
    p.add_argument("--video", type=seed, nargs="+", default=[], metavar="SEED", help="film these episodes")
    p.add_argument("--video-format", choices=("gif", "mp4"), default="gif", help="mp4 needs PyAV")


def compare(a: Namespace) -> None:
    """Put results side by side: success with intervals, differences to a baseline, robustness, forgetting, cost."""
    from steering.compare import compare as compare_results
    from steering.compare_report import FORMATS, render, write

    comparison = compare_results(a.results, a.against)
    if a.out:
        for path in write(comparison, a.out, a.format or FORMATS):
            print(path)
    else:
        for name in a.format or ["md"]:
            print(render(comparison, name), end="")


def _compare_takes(p: ArgumentParser) -> None:
    p.add_argument("results", nargs="+", metavar="RUN", help="runs, directories of results, or result files")
    p.add_argument("--against", help="the baseline's name (base, if there is one)")
    p.add_argument("--out", help="directory for compare.md, .json and .html (else Markdown is printed)")
    p.add_argument("--format", nargs="+", choices=("md", "json", "html"), help="all with --out, else md")


# ---- what these verbs share


def _heads(name: str, run: Run, policy: Policy) -> HeadSet:
    """A selection of the run by name, heads written out, or a heads file by path."""
    from interp.heads import Head
    from steering.headset import HeadSet, is_heads_file, read_heads

    if name in run.selections:
        return read_heads(run.selections[name], policy)
    try:
        written = tuple(map(Head.parse, name.split(",")))
    except UsageError:
        if is_heads_file(name):
            return read_heads(name, policy)
        raise UsageError(
            f"--heads {name}: no selection of the run (it has {', '.join(run.selections) or 'none'}), no file, and no "
            "heads such as expert.L3H5,expert.L4H0"
        ) from None
    return HeadSet(written, policy.fingerprint, "by hand", data=run.data)


def _variation(pairs: Sequence[str]) -> dict[str, object] | None:
    return named_values("--vary", pairs, "light=0.5") or None


VERBS = (
    (select, _select_takes),
    (finetune, _finetune_takes),
    (evaluate, _evaluate_takes),
    (compare, _compare_takes),
    (export, export_takes),
    (serve, serve_takes),
    (reproduce, reproduce_takes),
)
