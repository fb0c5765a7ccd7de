"""The command line: ties the verbs of the packages together. `robosteer VERB --help` says what each takes.

Bad input is one line on stderr and status 2; what fails for another reason that we know is status 1.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import interp.data.verbs
import interp.head_verbs
import interp.verbs
import steering.verbs
import testbed.verbs

DEMO_TASK = "cube-in-bowl"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults that say something: none is not one, and neither is a flag that is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = build_parser().parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    usual, warnings.formatwarning = warnings.formatwarning, _in_a_line
    from concurrent.futures.process import BrokenProcessPool

    from interp.errors import Failure, UsageError
    from testbed.variation import TestbedError

    try:
        _check_filled(arguments)
        status: int | None = arguments.run_verb(arguments)
    except (UsageError, TestbedError) as error:
        print(f"robosteer {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"robosteer {arguments.verb}: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        said = "a worker was killed, as the system does when memory runs out: run the same command again"
        for option in ("workers", "processes"):
            if hasattr(arguments, option):
                said += f", with fewer --{option} than {getattr(arguments, option)} if it happens again"
        print(f"robosteer {arguments.verb}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = getattr(arguments, "run", "") is not None  # an evaluation may do without a run
        after = "the same command goes on from here" if kept else "without --run nothing is kept"
        if kept and getattr(arguments, "again", False):
            after = (
                "a result that was there stays until its new one is complete; the same command begins anew"
            )
        print(f"\nrobosteer {arguments.verb}: stopped; {after}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not of a file: a bug
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"robosteer {arguments.verb}: {where}{error.strerror}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = usual
    return status or 0


def _check_filled(arguments: argparse.Namespace) -> None:
    """Refuse empty words, such as a shell variable that is not set leaves: verbs would take them for not given."""
    from interp.errors import UsageError

    for name, value in vars(arguments).items():
        if value == "" or (isinstance(value, list) and name != "rest" and "" in value):
            raise UsageError(
                f"{name.replace('_', '-')} is empty: give a value or leave it out (is a variable unset?)"
            )


def _in_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"robosteer: warning: {message}\n"


def app(a: argparse.Namespace) -> None:
    """Open the dashboard over the runs under a directory."""
    from app import serve

    serve(a.runs, host=a.host, port=a.port, allow_launch=a.allow_launch, allow_hosts=a.allow_host)


def _app_takes(p: argparse.ArgumentParser) -> None:
    p.add_argument("--runs", default="runs", help="directory of runs, or one run")
    p.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; there is no password")
    p.add_argument(
        "--allow-host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names by which this machine is asked for, besides its own (0.0.0.0 also answers to any address)",
    )
    p.add_argument("--port", type=int, default=8050, help="of the dashboard")
    p.add_argument("--allow-launch", action="store_true", help="let its pages start and stop finetunings")


def bench(a: argparse.Namespace) -> int | None:
    """List the repository's benchmarks, or run one: speed and memory beside its peers, in one run."""
    import subprocess

    from interp.errors import UsageError, unknown

    folder = Path(__file__).parent / "benchmarks"
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if "__main__" in path.read_text()}
    if not scripts:
        raise UsageError(f"{folder} has no benchmarks: they come with the repository, not with the package")
    if a.name is None:
        for name, path in scripts.items():
            about = path.read_text().splitlines()[0].strip('" ')
            print(f"{name:<12}{about}")
        return None
    if a.name not in scripts:
        raise unknown("benchmark", a.name, scripts)
    return subprocess.run([sys.executable, scripts[a.name], *a.rest], check=False).returncode


def _bench_takes(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", help="which one; without it, the list")
    p.add_argument(
        "rest", nargs=argparse.REMAINDER, help="what the benchmark takes: robosteer bench NAME --help"
    )


def demo(a: argparse.Namespace) -> None:
    """The whole loop on the embedded default; every step is printed as the command that repeats it."""
    import time

    interp.verbs.check_device(a.device)
    _check_numbers(a)
    began, run = time.time(), Path(a.run)
    here = () if a.device == "cpu" else ("--device", a.device)
    demos = run.parent / f"{run.name}-{a.task}-{a.episodes}-demonstrations"
    _check_same_request(run, demos, a.heads)
    if not demos.exists():
        _say("record", "--task", a.task, "--episodes", a.episodes, "--demos", demos)
    _say("capture", "--demos", demos, "--run", run, "--footage", *here)
    _say("rank", "--run", run)
    _say("factors", "--run", run, "--pairs", 10, "--task", a.task, *here)
    _say("select", "--run", run, "--top", a.heads, "--name", "chosen")
    rolled = ("--task", a.task, "--n", a.n, *here)
    _say("evaluate", "--run", run, *rolled, "--name", "base")
    _say("finetune", "--run", run, "--heads", "chosen", *here)
    aligned = run / "jobs/aligned/policy"
    _say("evaluate", "--run", run, "--policy", aligned, *rolled, "--against", "base")
    _say("export", "--run", run, "--name", "aligned", "--overwrite", *here)
    print(f"\nthe loop took {time.time() - began:.0f} s")
    if not a.no_app:
        _say("app", "--runs", run.parent, "--port", a.port)


def _check_numbers(a: argparse.Namespace) -> None:
    """What only a late step would refuse; told before any step."""
    from interp.errors import UsageError
    from interp.policies import load_policy

    live = len(load_policy("tiny-pi0").spec.live_heads(["expert"]))
    for option, value, least, most in (
        ("heads", a.heads, 1, live),
        ("n", a.n, 1, None),
        ("port", a.port, 0, 65535),
    ):
        if value < least or (most is not None and value > most):
            rule = f"from {least} to {most}" if most is not None else f"at least {least}"
            raise UsageError(f"--{option} {value}: give {rule}")


def _check_same_request(run: Path, demos: Path, heads: int) -> None:
    """What an earlier demo left in the run is gone on from only if it was asked for the same; told before any step."""
    from interp.errors import UsageError
    from interp.runs import read_json

    if (run / "run.json").is_file():
        made_of = Path(str(interp.verbs.open_run(run).info["data"].get("path")))
        if made_of.name != demos.name:
            raise UsageError(
                f"--run {run} is of {made_of}, and --task and --episodes ask for {demos}: choose another --run"
            )
    job = run / "jobs/aligned"
    if (job / "recipe.json").is_file():
        trained = len(read_json(job / "recipe.json").get("heads") or ())
        if trained != heads:
            raise UsageError(f"--heads {heads}: {job} trains {trained}; choose another --run")


def _demo_takes(p: argparse.ArgumentParser) -> None:
    p.add_argument("--task", default=DEMO_TASK, help="a task of the testbed")
    p.add_argument("--run", default="runs/demo", help="run directory to make or continue")
    p.add_argument("--episodes", type=int, default=20, help="demonstrations to record")
    p.add_argument("--heads", type=int, default=12, help="how many heads to finetune")
    p.add_argument("--n", type=int, default=100, help="rollouts before and after")
    interp.verbs.takes_device(p)
    p.add_argument("--port", type=int, default=8050, help="of the dashboard")
    p.add_argument("--no-app", action="store_true", help="end instead of opening the dashboard")


def _say(*words: object) -> None:
    """Show a command and run it. An error says whose it is: the options that it names are that command's."""
    from interp.errors import UsageError
    from testbed.variation import TestbedError

    line = [str(w) for w in words]
    print(f"\n$ robosteer {shlex.join(line)}", flush=True)
    arguments = build_parser().parse_args(line)
    try:
        arguments.run_verb(arguments)
    except (UsageError, TestbedError) as error:
        raise UsageError(f"its step `robosteer {line[0]}`: {error}") from error


VERBS = (
    (demo, _demo_takes),
    *testbed.verbs.VERBS,
    *interp.data.verbs.VERBS,
    *interp.verbs.VERBS,
    *interp.head_verbs.VERBS,
    *steering.verbs.VERBS,
    (app, _app_takes),
    (bench, _bench_takes),
)


def build_parser() -> Parser:
    parser = Parser(
        prog="robosteer", description="Find, look at and finetune the heads that carry a robot's task."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for function, takes in VERBS:
        text = (function.__doc__ or "").strip()
        added = verbs.add_parser(
            function.__name__,
            help=text.split("\n")[0],
            description=text,
            formatter_class=Help,
        )
        takes(added)
        added.set_defaults(run_verb=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
