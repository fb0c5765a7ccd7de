"""The testbed's verbs of the command line: a function each, and what it takes. robosteer.py reads VERBS."""

from argparse import ArgumentParser, Namespace


def record(a: Namespace) -> None:
    """Record demonstrations of the scripted expert on the simulated tabletop."""
    from testbed.demos import record as record_demos

    path = record_demos(a.task, a.episodes, a.demos, seed=a.seed, workers=a.workers)
    print(f"{a.episodes} demonstrations of {a.task}: {path}")


def _record_takes(p: ArgumentParser) -> None:
    p.add_argument(
        "--task",
        required=True,
        help="pick, put, press or push, which tiny-pi0 can do; marker-in-mug, press-button-hard, pick-cube, "
        "cube-in-bowl, push-cup-to-bowl or pick-mug, which it has to learn",
    )
    p.add_argument("--demos", required=True, help="directory to write (LeRobotDataset v3)")
    p.add_argument("--episodes", type=int, default=20, help="how many successes to record")
    p.add_argument("--seed", type=int, default=500_000, help="seed of the first episode")
    p.add_argument("--workers", type=int, default=2, help="processes")


VERBS = ((record, _record_takes),)
