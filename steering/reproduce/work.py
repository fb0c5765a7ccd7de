"""One job of the reproduction: demonstrations, scores, training, rollouts; everything that is there is not made again.

    <work>/<task>/seed<seed>-demos<n>/             a run: demonstrations' scores, and jobs/<arm>/
    <work>/<task>/seed<seed>-demos<n>-recordings/  the demonstrations
    <work>/<task>/seed<seed>-results/              a file an arm and suite (steering/results.py)

Two processes may want the same demonstrations, scores or training at once: whoever comes first makes them, the other
waits. A killed process leaves its lock free and its work resumable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from interp.capture import capture
from interp.demos import Demonstrations
from interp.heads import Head
from interp.policies import load_policy
from interp.runs import Run, alone, read_json
from interp.scores import HeadScores
from steering.finetune import SUMMARY, finetune
from steering.headset import united
from steering.recipes import Recipe
from steering.reproduce.plan import RETAINED, Arm, Job, Plan
from steering.reproduce.scores import choose as choose_heads
from steering.reproduce.scores import head_scores, settings_of
from steering.results import Result, asked_of, load_result, result_path, save_result
from steering.retain import retain
from steering.suites import SUITES, Subject, choose, run_suites
from testbed.demos import FIRST_SEED, record
from testbed.tasks import TARGETS

POLICY = "tiny-pi0"
CHOSEN = ("aligned", "bottom-k", "generic-k", "paper", "retain")
"""Recipes whose heads depend on scores."""
APART = 10_000
"""Distance of the first demonstrations' seeds of two training seeds."""


class Adapted(NamedTuple):
    """What an arm is adapted from."""

    run: Run
    demos: Demonstrations


def run_path(work: Path, task: str, seed: int, demos: int) -> Path:
    return work / task / f"seed{seed}-demos{demos}"


def results_path(work: Path, task: str, seed: int) -> Path:
    return work / task / f"seed{seed}-results"


def results_of(work: Path, task: str, seed: int, arm: str) -> list[Result]:
    """All that is there of an arm, under whatever suite."""
    paths = sorted(results_path(work, task, seed).glob("*.json"))
    return [load_result(path) for path in paths if path.stem.split("--")[0] == arm]


def prepare(work: Path, task: str, seed: int, demos: int) -> Adapted:
    """Demonstrations of a seed, and the run that keeps what is found out about them."""
    path = run_path(work, task, seed, demos)
    recordings = path.with_name(f"{path.name}-recordings")
    with alone(path.with_name(f".{path.name}.lock")):
        if not recordings.exists():
            record(task, demos, recordings, seed=FIRST_SEED + APART * seed, workers=1, progress=False)
        opened = Demonstrations.open(recordings)
        run = capture(load_policy(POLICY), opened, path, towers=("expert",), thumbnails=False, progress=False)
    return Adapted(run, opened)


def recipe_of(plan: Plan, arm: Arm) -> Recipe:
    """What an arm is trained with: `retain` averages what `aligned` trained."""
    name = "aligned" if arm.recipe == "retain" else arm.recipe
    return Recipe.named(name, steps=plan.steps_of(arm), lora_targets=arm.targets)


@cache
def base() -> str:
    """Fingerprint of the policy that every arm is adapted from."""
    return load_policy(POLICY).fingerprint


def adapted_from(plan: Plan, arm: Arm) -> dict[str, Any]:
    """What decides an arm's policy besides recipe and seed. Results say it, so that those of another plan show."""
    chosen = {"scores": settings_of(arm.by, plan.settings)} if arm.recipe in CHOSEN else {}
    return {"base": base(), "demos": plan.demos_of(arm), **chosen}


def as_planned(plan: Plan, arm: Arm, result: Result) -> bool:
    """Whether a result is of the training and the suite that the plan asks for, not of those before a change.

    What an older result does not say is not held against it.
    """
    if not _tried_as_today(result):
        return False
    if not arm.trained:
        return result.policy == base()
    asked = recipe_of(plan, arm).to_json()
    if arm.recipe == "retain":
        asked |= {"name": "retain", "of": asked["name"], "coefficient": RETAINED}
    recorded = result.settings.get("recipe")
    off = {setting: value for setting, value in Recipe().to_json().items() if setting != "name"}
    return (
        recorded is not None
        and _agree(asked, {**off, **recorded})  # a setting that is younger than the result was off
        and _agree(adapted_from(plan, arm), result.settings.get("adapted_from", {}))
        and _as_many_heads(arm, result.heads)
    )


def _agree(asked: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    return all(said[what] == value for what, value in asked.items() if what in said)


def _as_many_heads(arm: Arm, heads: tuple[str, ...] | None) -> bool:
    if heads is None or arm.recipe == "all-heads":
        return True
    if arm.recipe == "paper":  # the expert's places in the vlm, and some of these are dead
        return len(heads) <= arm.heads
    return Counter(Head.parse(head).tower for head in heads) == dict.fromkeys(arm.towers, arm.heads)


def _tried_as_today(result: Result) -> bool:
    suite = SUITES.get(result.suite)
    return suite is not None and result.condition == asked_of(suite.condition(result.task))


def scored(plan: Plan, arm: Arm, adapted: Adapted) -> HeadScores:
    """The scores that choose the arm's heads, of all its towers."""
    run, demos = adapted
    policy, found = load_policy(POLICY), []
    for tower in arm.towers:
        with alone(run.path / f".{arm.by}-{tower}.lock"):
            found.append(head_scores(arm.by, policy, demos, run, tower, plan.settings))
    return replace(found[0], towers={name: tower for each in found for name, tower in each.towers.items()})


def train(plan: Plan, work: Path, task: str, arm: Arm, seed: int) -> Path:
    """The directory of the arm's finished training."""
    if arm.recipe == "retain":
        job = train(plan, work, task, replace(arm, recipe="aligned"), seed)
        with alone(job.with_name(f".{job.name}-retain.lock")):
            (averaged,) = retain(job, [RETAINED])
        return averaged
    adapted = prepare(work, task, seed, plan.demos_of(arm))
    job = adapted.run.path / "jobs" / arm.name
    with alone(job.with_name(f".{job.name}.lock")):
        scores = scored(plan, arm, adapted)
        others = (t for t in TARGETS if t != task and arm.recipe == "generic-k")
        finetune(  # goes on from a checkpoint, returns at once when it is finished, refuses another recipe's
            load_policy(POLICY),
            adapted.demos,
            recipe_of(plan, arm),
            job,
            heads=united([choose_heads(arm.by, scores, adapted.run, arm.heads, t) for t in arm.towers]),
            scores=scores,
            others=[scored(plan, arm, prepare(work, t, seed, plan.demos_of(arm))) for t in others],
            seed=seed,
            checkpoint_every=plan.checkpoint_every,
            progress=False,
        )
    return job


def perform(plan: Plan, work: Path, job: Job) -> list[Result]:
    """Train the job's arm and roll it out under its suites.

    Another machine's arithmetic may have trained another policy from the same seed: what is there of that one is
    measured again with this one, so that all suites of an arm are of one policy. So is what was tried before a suite
    changed.
    """
    directory = results_path(work, job.task, job.seed)
    for suite in job.suites:
        path = result_path(directory, job.arm.name, suite)
        if path.is_file() and not _tried_as_today(load_result(path)):
            path.unlink()
    there = results_of(work, job.task, job.seed, job.arm.name)
    if job.arm.trained:
        training, today = train(plan, work, job.task, job.arm, job.seed), adapted_from(plan, job.arm)
        summary = {**read_json(training / SUMMARY), "adapted_from": today}
        subject = Subject(
            training / "policy", job.arm.name, job.arm.recipe, summary, fingerprint=summary["policy"]
        )
        for r in there:
            if r.policy == subject.fingerprint and r.settings.get("adapted_from", today) != today:
                settings = {**r.settings, "adapted_from": today}  # what is asked now gave the very policy
                save_result(result_path(directory, r.name, r.suite), replace(r, settings=settings))
    else:
        subject = Subject(POLICY, job.arm.name, job.arm.recipe, fingerprint=base())
    of_another = [r.suite for r in there if r.suite in SUITES and r.policy != subject.fingerprint]
    suites = [*job.suites, *(suite for suite in of_another if suite not in job.suites)]
    done = run_suites(
        subject,
        job.task,
        choose(suites),
        plan.n,
        directory=directory,
        retrained=True,
        workers=1,
        progress=False,
    )
    return [result for result, _, _ in done]
