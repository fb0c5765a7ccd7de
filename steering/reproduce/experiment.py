"""The reproduction as one resumable experiment: jobs of a plan in worker processes, records as they are done.

Stop it at any moment, with Ctrl-C or `kill -9`; the same call goes on: trainings from their last checkpoint, rollouts
from their last suite. Every worker computes on one thread, on which a resumed training gives the weights of one that
was never stopped, so the records come out the same. One experiment at a time works in a directory.

The jobs run in processes of this machine, or on a Ray cluster (`--ray`) whose machines share the work directory.

What the records already hold is not measured again: a work directory that is new, or on another machine, goes on from
the records of a repository. Only the trainings behind cells that are missing are repeated.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, as_completed, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from interp.errors import UsageError
from steering.episode import Condition
from steering.reproduce import maps
from steering.reproduce.plan import Arm, Job, Plan
from steering.reproduce.pool import Cluster, local
from steering.reproduce.records import read_record, read_records, record_path, write_costs, write_record
from steering.reproduce.work import POLICY, as_planned, perform, results_of, results_path
from steering.results import Result, result_path, save_result
from steering.rollouts import TABLETOP, RolloutError, settings_of


def run(
    plan: Plan,
    work: Path,
    results: Path,
    processes: int = 2,
    say: Callable[[str], None] = tqdm.write,
    progress: bool = True,
    ray: str | None = None,
) -> None:
    """Do what is missing of the plan in `work` and keep its records in `results`; with `ray`, on that cluster."""
    work, results = work.resolve(), results.resolve()  # another machine's processes start elsewhere
    with _claimed(work):
        restore(plan, work, results)
        jobs = list(plan.jobs())
        missing = [job for job in jobs if not done(plan, work, job)]
        for task, arm in dict.fromkeys((job.task, job.arm) for job in jobs if job not in missing):
            keep(plan, work, results, task, arm)
        with (
            tqdm(
                total=_rollouts(plan, jobs),
                initial=_rollouts(plan, jobs) - _rollouts(plan, missing),
                desc=f"reproduce ({plan.name})",
                unit="rollout",
                disable=not progress,
                smoothing=0.1,
            ) as bar,
            _pool(processes, ray) as (pool, at_a_time),
        ):
            for job, found in _in_order(pool, plan, work, missing, 2 * at_a_time):
                keep(plan, work, results, job.task, job.arm)
                bar.update(plan.n * len(job.suites))
                rates = ", ".join(f"{r.suite} {r.success_rate.value:.0%}" for r in found)
                say(f"{job}: {rates} (n = {plan.n})")
            _make_maps(pool, plan, work, results, say)


def run_maps(
    plan: Plan,
    work: Path,
    results: Path,
    processes: int = 2,
    say: Callable[[str], None] = tqdm.write,
    ray: str | None = None,
) -> None:
    """Only the heads' scores that figures show (steering/reproduce/maps.py); an experiment may run beside it."""
    work, results = work.resolve(), results.resolve()
    with _pool(processes, ray) as (pool, _):
        _make_maps(pool, plan, work, results, say)


def _make_maps(pool: Executor, plan: Plan, work: Path, results: Path, say: Callable[[str], None]) -> None:
    parts = [pool.submit(maps.make, plan, work, results, *part) for part in maps.missing(plan, results)]
    for part in as_completed(parts):
        say(part.result())


def restore(plan: Plan, work: Path, results: Path) -> None:
    """Put into the work directory what only the records have, as if it had been measured there.

    Records may have grown since the last time (`git pull`): episodes of the same policy are added to those that are
    there. Of two policies the longer result stays, but what is being measured again with one is left alone.
    """
    if not any(results.glob("*/*.json")):
        return
    arms = {arm.name: arm for study in plan.studies for arm in study.arms}
    recorded: dict[tuple[str, int, str], list[Result]] = {}
    for entry in read_records(results):
        r = entry.result
        recorded.setdefault((r.task, r.settings["seed"], r.name), []).append(r)
    for (task, seed, name), of_arm in recorded.items():
        there = {r.suite: r for r in results_of(work, task, seed, name)}
        settled = _one_policy(there.values())
        for r in of_arm:
            ours = there.get(r.suite)
            if ours is None or (settled and name in arms and _better(plan, arms[name], r, ours)):
                asked = settings_of(
                    Condition(r.settings["rolled_out"], {}), POLICY, r.episodes[0].seed, None, TABLETOP
                )
                whole = replace(r, settings={**asked, **r.settings})
            else:
                whole = _joined(ours, r)
            if whole is not ours:
                save_result(result_path(results_path(work, task, seed), name, r.suite), whole)


def _better(plan: Plan, arm: Arm, recorded: Result, ours: Result) -> bool:
    """Whether another policy's result, or one under another condition, is to take the place of ours."""
    if _alike(recorded, ours) or not as_planned(plan, arm, recorded):
        return False
    return len(recorded.episodes) > len(ours.episodes) or not as_planned(plan, arm, ours)


def _alike(a: Result, b: Result) -> bool:
    """Whether the episodes of both are of one policy under one condition."""
    of_a, of_b = ((r.policy, r.condition, r.settings.get("execute")) for r in (a, b))
    return of_a == of_b


def _joined(ours: Result, other: Result) -> Result:
    """Ours with the episodes that only the other has, if they are alike."""
    missing = {e.seed: e for e in other.episodes}.keys() - {e.seed for e in ours.episodes}
    if not missing or not _alike(ours, other):
        return ours
    added = [e for e in other.episodes if e.seed in missing]
    episodes = tuple(sorted((*ours.episodes, *added), key=lambda e: e.seed))
    evaluate = max(r.seconds.get("evaluate", 0.0) for r in (ours, other))
    return replace(ours, episodes=episodes, paired=None, seconds={**ours.seconds, "evaluate": evaluate})


def done(plan: Plan, work: Path, job: Job) -> bool:
    """Whether all rollouts of a job are there, under today's suites, and all of the arm's are of one policy that was
    trained as the plan says."""
    there = {r.suite: r for r in _planned(plan, work, job.task, job.seed, job.arm)}
    return _one_policy(there.values()) and all(
        suite in there and len(there[suite].episodes) >= plan.n for suite in job.suites
    )


def keep(plan: Plan, work: Path, results: Path, task: str, arm: Arm) -> None:
    """Write the record of all that is there of an arm on a task, whatever part of the plan it came from.

    A record has one recipe and one condition a suite: what was trained or tried otherwise, before a default or a suite
    changed, is left out until it is repeated. And one policy a seed: while another machine's suites are being measured
    again, the record keeps what it has of that seed. It never loses episodes of the policy that is there.
    """
    path, found = record_path(results, task, arm.name), list[tuple[int, Result]]()
    recorded = [entry.result for entry in read_record(path)] if path.is_file() else []
    seeds = {
        int(directory.name.removeprefix("seed").removesuffix("-results"))
        for directory in (work / task).glob("seed*-results")
    }
    for seed in sorted(seeds | {r.settings["seed"] for r in recorded}):
        there = _planned(plan, work, task, seed, arm)
        before = [r for r in recorded if r.settings["seed"] == seed and as_planned(plan, arm, r)]
        found += [(seed, result) for result in _kept(there, before)]
    command = ["robosteer", "reproduce", *(["--quick"] if plan.name == "quick" else [])]
    command += ["--tasks", task, "--arms", arm.name]
    write_record(results, found, shlex.join(command))
    write_costs(results, found)


def _planned(plan: Plan, work: Path, task: str, seed: int, arm: Arm) -> list[Result]:
    return [r for r in results_of(work, task, seed, arm.name) if as_planned(plan, arm, r)]


def _kept(there: Sequence[Result], recorded: Sequence[Result]) -> list[Result]:
    """What a record shall have of a seed, given what is there and what it had."""
    if not there or not _one_policy(there):
        return list(recorded)
    before = {r.suite: r for r in recorded if r.policy == there[0].policy}
    joined = [_joined(r, before.pop(r.suite, r)) for r in there]
    return [*joined, *before.values()]


def _one_policy(results: Iterable[Result]) -> bool:
    return len({result.policy for result in results}) <= 1


@contextmanager
def _pool(processes: int, ray: str | None) -> Iterator[tuple[Executor, int]]:
    """Who works, and how many jobs at a time."""
    if processes < 1:
        raise UsageError(f"processes = {processes}: at least one has to do the work")
    if ray is None:
        with local(processes) as pool:
            yield pool, processes
    else:
        with Cluster(ray) as cluster:
            yield cluster, cluster.processes


def _rollouts(plan: Plan, jobs: Sequence[Job]) -> int:
    return plan.n * sum(len(job.suites) for job in jobs)


def _in_order(
    pool: Executor, plan: Plan, work: Path, jobs: Sequence[Job], ahead: int
) -> Iterator[tuple[Job, list[Result]]]:
    """Jobs and their results as they are done; only a few are handed out ahead, so that a stop ends soon."""
    waiting, running = list(jobs), dict[Future[list[Result]], Job]()
    while waiting or running:
        while waiting and len(running) < ahead:
            job = waiting.pop(0)
            running[pool.submit(perform, plan, work, job)] = job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            try:
                yield job, future.result()
            except RolloutError as error:
                raise RolloutError(f"{job}: {error}") from error


@contextmanager
def _claimed(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                f"{work}: process {file.read().strip()} is reproducing there: stop it, or take another --work"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
