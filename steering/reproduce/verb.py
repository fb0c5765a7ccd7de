"""`robosteer reproduce`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from interp.seeds import seed


def reproduce(a: Namespace) -> None:
    """Repeat the paper's experiments in simulation: five tasks, sixteen arms, three seeds, and what depends on what.
    Stop it at any moment; the same command goes on."""
    from steering.reproduce.experiment import run, run_maps
    from steering.reproduce.plan import PLANS

    plan = PLANS["quick" if a.quick else "full"].only(a.studies, a.tasks, a.arms, a.seeds, a.n)
    work = Path(a.work or f"runs/reproduce-{plan.name}")
    results = Path(a.results) if a.results else work / "results"
    if a.report:
        from steering.reproduce.publish import publish

        for path in publish(plan, results, Path(a.out or work / "REPORT.md"), a.readme and Path(a.readme)):
            print(path)
        return
    if a.scores:
        run_maps(plan, work, results, a.processes, ray=a.ray)
    else:
        run(plan, work, results, a.processes, ray=a.ray)
    print(results)


def reproduce_takes(p: ArgumentParser) -> None:
    p.add_argument("--quick", action="store_true", help="minutes instead of hours: shows that it runs")
    p.add_argument("--studies", nargs="+", metavar="STUDY", help="only these (all by default)")
    p.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
    p.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    p.add_argument(
        "--seeds", nargs="+", type=seed, metavar="SEED", help="only these (0 1 2); the base has the first"
    )
    p.add_argument("--n", type=int, help="rollouts a cell (100); more than before adds to what is there")
    p.add_argument(
        "--work",
        help="demonstrations, trainings, rollouts: what an interruption resumes from (runs/reproduce-full)",
    )
    p.add_argument("--results", help="directory of the records (results/ in the work directory)")
    p.add_argument("--processes", type=int, default=2, help="jobs at a time, a CPU thread each")
    p.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on a Ray cluster instead, a job a CPU: host:port of its head, or auto; its machines share --work",
    )
    p.add_argument(
        "--scores",
        action="store_true",
        help="only the heads' scores that figures show; may run beside the rest",
    )
    p.add_argument(
        "--report", action="store_true", help="run nothing: write the report of the results there are"
    )
    p.add_argument("--out", metavar="FILE", help="the report (REPORT.md in the work directory)")
    p.add_argument(
        "--readme",
        metavar="FILE",
        help="also renew the table between <!-- adaptation --> marks, and its figure",
    )
