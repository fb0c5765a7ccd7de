"""Jobs: finetunings as processes of their own, which outlive the page, the browser and this server.

A job is a folder of its run, jobs/<id>/:

    config.json      what was asked, the command, and which process answers it (id and time of birth)
    heads.json       the chosen heads, as a heads file
    status.json      how far it is (steering/progress.py)
    progress.jsonl   one line a step
    log              what the process printed
    ...              what `robosteer finetune` leaves there: recipe, checkpoint, policy, summary

Everything that is shown is read from these files and from the process table, so nothing is lost with the server. A
process is the job's only if it was born when the job's was: numbers of dead processes are given out again. The process
leads a group of its own and is stopped with it; `robosteer finetune` then saves and can go on later.

One job runs at a time, over all runs of the library: two would only make each other slow.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.errors import UsageError, unknown
from interp.runs import Run, read_json, write_json
from interp.scores import now
from steering.headset import HeadSet, write_heads
from steering.recipe import check_job

SCHEMA = 1
POINTS = 600  # of a curve on the screen
LOG = 64 * 1024  # bytes of the log's end that are shown
SILENT = 90.0  # seconds without a sign of life of a job that somebody else started
ACTIVE = ("starting", "running", "finishing", "cancelling")
ENDED_EARLY = ("cancelled", "interrupted", "killed", "failed", "silent")

PROGRAM = (sys.executable, "-m", "robosteer")

_LAUNCHING = threading.Lock()


@dataclass(frozen=True)
class Request:
    """What is to be trained. `options` are further flags of `robosteer finetune`, with the words that follow each."""

    name: str
    recipe: str
    heads: HeadSet | None = None
    options: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        check_job(self.name)


@dataclass(frozen=True)
class Point:
    """The state after a step."""

    step: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Job:
    """A job as its files and its process tell of it now; ask anew for the next moment."""

    run: str
    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Empty for a training that was started from a terminal."""
        return _read(self.path / "config.json")

    @cached_property
    def status(self) -> dict[str, Any]:
        return _read(self.path / "status.json")

    @cached_property
    def recipe(self) -> str:
        asked = _read(self.path / "recipe.json").get("recipe", {})
        return str(self.config.get("recipe") or asked.get("name") or "unknown recipe")

    @cached_property
    def alive(self) -> bool:
        pid = self.config.get("pid")
        began = born(pid) if isinstance(pid, int) else None
        return began is not None and began == self.config.get("born")

    @cached_property
    def state(self) -> str:
        """starting, running, cancelling, finishing | done, cancelled, interrupted, failed, killed, silent."""
        said = self.status.get("state")
        if (self.path / "summary.json").is_file():
            return "done"
        if "pid" not in self.config:  # from a terminal: its files are all there is to know
            if _held(
                self.path / "lock"
            ):  # also before the first status, while frozen activations are computed
                return "running"
            fresh = time.time() - _written(self.path / "status.json") < SILENT
            return str(said) if said in ("interrupted", "failed") else "running" if fresh else "silent"
        if self.alive:
            if self.config.get("cancelled"):
                return "cancelling"
            return {None: "starting", "done": "finishing"}.get(said, "running")
        if self.config.get("cancelled"):
            return "cancelled"
        if said in ("interrupted", "failed"):
            return str(said)
        return "killed" if said == "running" else "failed"

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @cached_property
    def message(self) -> str | None:
        """What went wrong, if anything did."""
        if self.state == "killed":
            return f"The process died without a word after step {self.step}: out of memory, or killed from outside."
        if self.state == "silent":
            return "No sign of life, and the process is not known here: it was started from a terminal."
        if self.state == "failed":
            lines = [line for line in self.log().splitlines() if line.strip()]
            return str(
                self.status.get("message") or (lines[-1] if lines else "It ended before the first step.")
            )
        return None

    @property
    def step(self) -> int:
        return int(self.status.get("step", 0))

    @property
    def total(self) -> int | None:
        total = self.status.get("total")
        return int(total) if total else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        return _read(self.path / "summary.json")

    def points(self) -> list[Point]:
        """The curve so far; a line that a kill has cut short is left out."""
        found = []
        for line in _lines(self.path / "progress.jsonl"):
            try:
                entry = json.loads(line)
                found.append(Point(int(entry["step"]), float(entry["seconds"]), float(entry["loss"])))
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def log(self) -> str:
        """The end of the log, as a terminal would show it: a progress bar is its last state."""
        try:
            with (self.path / "log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")).strip("\n")


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most that many points: means over equal runs of steps, so that a peak cannot hide between two."""
    size = -(-len(points) // most) if points else 1
    runs = [points[at : at + size] for at in range(0, len(points), size)]
    return [Point(run[-1].step, run[-1].seconds, sum(p.loss for p in run) / len(run)) for run in runs]


def remaining(points: Sequence[Point], total: int | None, over: int = 30) -> float | None:
    """Seconds until the last step at the pace of the latest ones; None before there is a pace."""
    latest = points[-over:]
    if total is None or len(latest) < 2:
        return None
    pace = (latest[-1].seconds - latest[0].seconds) / (latest[-1].step - latest[0].step)
    return max(0.0, (total - latest[-1].step) * pace)


# ---- finding


def jobs_of(run: Run) -> list[Job]:
    """The run's trainings, the one that was touched last first."""
    folders = [
        path for path in (run.path / "jobs").glob("*") if path.is_dir() and not path.name.startswith(".")
    ]
    jobs = [Job(run.name, path) for path in folders if _is_job(path)]
    return sorted(jobs, key=lambda job: (-_touched(job.path), job.id))


def job_of(run: Run, name: str) -> Job:
    found = {job.id: job for job in jobs_of(run)}
    if name not in found:
        raise unknown(f"job of run {run.name}", name, found)
    return found[name]


def running(runs: Iterable[Run]) -> Job | None:
    """The job of this machine that is not over, whichever run it belongs to."""
    return next((job for run in runs for job in jobs_of(run) if "pid" in job.config and job.active), None)


def free_name(run: Run, recipe: str) -> str:
    """`aligned`, or `aligned-2` if that is taken."""
    taken = {path.name for path in (run.path / "jobs").glob("*")}
    names = (recipe if i == 1 else f"{recipe}-{i}" for i in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


# ---- starting and stopping


def launch(run: Run, request: Request, runs: Iterable[Run] = ()) -> Job:
    """Start the job; it goes on whatever becomes of this process. `runs`: where another job may be running."""
    with _LAUNCHING:
        _check_free(runs)
        path = run.path / "jobs" / request.name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise UsageError(f"job {request.name} exists in run {run.name}: choose another name") from None
        options = dict(request.options or {})
        if request.heads is not None:
            options["heads"] = (str(write_heads(path / "heads.json", request.heads)),)
        return _start(
            Job(run.name, path), {"recipe": request.recipe, "command": command(run, request, options)}
        )


def resume(run: Run, name: str, runs: Iterable[Run] = ()) -> Job:
    """Start a job again that ended early; it goes on from its last checkpoint."""
    with _LAUNCHING:
        _check_free(runs)
        job = job_of(run, name)
        if job.active or job.state == "done" or not job.config.get("command"):
            raise UsageError(
                f"job {name} is {job.state}: only one that was started here and ended early goes on"
            )
        (job.path / "status.json").unlink(missing_ok=True)  # it tells of the earlier process
        kept = {key: job.config[key] for key in ("recipe", "command")}
        return _start(Job(run.name, job.path), kept)


def command(run: Run, request: Request, options: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The words after `robosteer`, as they can be typed too."""
    flags = {"run": (str(run.path),), "recipe": (request.recipe,), "name": (request.name,), **options}
    return ["finetune", *(word for flag, values in flags.items() for word in (f"--{flag}", *values))]


def cancel(run: Run, name: str) -> Job:
    """Ask the job to save and stop; asked again, stop it at once."""
    job = job_of(run, name)
    if not job.alive:
        raise UsageError(f"job {name} is {job.state}: there is nothing to cancel")
    again = bool(job.config.get("cancelled"))
    write_json(job.path / "config.json", {**job.config, "cancelled": now()})
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.killpg(job.config["pid"], signal.SIGKILL if again else signal.SIGTERM)
    return Job(job.run, job.path)


def _start(job: Job, asked: Mapping[str, Any]) -> Job:
    config = {"schema": SCHEMA, "id": job.id, "created": now(), **asked}
    write_json(job.path / "config.json", config)
    words = [*PROGRAM, *asked["command"]]
    quiet = {"TQDM_MININTERVAL": "5", "PYTHONUNBUFFERED": "1"}
    with (job.path / "log").open("ab") as log:
        log.write(f"$ robosteer {' '.join(asked['command'])}\n".encode())
        log.flush()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **quiet},
        )
    write_json(job.path / "config.json", {**config, "pid": process.pid, "born": born(process.pid)})
    threading.Thread(target=process.wait, daemon=True).start()  # else it would stay as a zombie
    return Job(job.run, job.path)


def _check_free(runs: Iterable[Run]) -> None:
    other = running(runs)
    if other is not None:
        raise UsageError(
            f"job {other.id} of run {other.run} is {other.state}: one job at a time; wait for it, or cancel it"
        )


# ---- the process table and the files


def born(pid: int) -> str | None:
    """When the living process with that number began, in words that only serve to be compared; None without one."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.parent.parent.joinpath("self").exists():  # not Linux
        asked = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True)
        state, _, began = asked.stdout.strip().partition(" ")
        return None if not began or state.startswith("Z") else began.strip()
    try:
        fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def _held(lock: Path) -> bool:
    """Whether a process holds the lock, as a training does as long as it lives."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or a file system that has none
        return False
    return False


def _is_job(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "recipe.json", "status.json"))


def _touched(path: Path) -> float:
    return max(_written(path / name) for name in ("config.json", "status.json", "recipe.json"))


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Any]:
    """A file of a job, or nothing while it is not there or not whole."""
    try:
        return read_json(path)
    except UsageError:
        return {}


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [line for line in file if line.endswith("\n")]
    except OSError:
        return []
