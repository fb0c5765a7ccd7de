"""How long do 100 rollouts of tiny-pi0 take? `taskset -c 0,1 python benchmarks/rollouts.py`

Closed loop on the target task with the median episode length, two workers, their start included. Writes
benchmarks/results/rollouts.json: wall-clock and CPU seconds (the machine may be busy), and whether every episode ended
as it did in the committed records of the base policy (benchmarks/results/reproduce), before anything was made faster.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

from interp.runs import write_json
from steering.reproduce.records import read_record
from steering.results import IN_DOMAIN
from steering.rollouts import evaluate

TASK, ROLLOUTS, WORKERS = "cube-in-bowl", 100, 2
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    done = evaluate("tiny-pi0", TASK, ROLLOUTS, workers=WORKERS)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)  # the workers have been waited for
    recorded = read_record(RESULTS / f"reproduce/{TASK}/base.json")
    (usual,) = (entry.result for entry in recorded if entry.result.suite == IN_DOMAIN)
    before = {e.seed: (e.success, e.steps) for e in usual.episodes}
    found = {
        "command": "taskset -c 0,1 python benchmarks/rollouts.py",
        "task": TASK,
        "rollouts": done.n,
        "steps": sum(e.steps for e in done.episodes),
        "workers": WORKERS,
        "cores": len(os.sched_getaffinity(0)),
        "seconds": round(done.seconds, 1),
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "as_before": sum(before.get(e.seed) == (e.success, e.steps) for e in done.episodes),
    }
    write_json(RESULTS / "rollouts.json", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
