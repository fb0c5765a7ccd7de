"""A stand-in for `robosteer finetune` that trains nothing: it leaves the same files, stops when it is asked to, and
goes on where it was. It knows the standard library alone, so a test waits for tenths of seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import json, os, signal, sys, time
words = sys.argv[1:]
flags = dict(zip(words[1::2], words[2::2]))
folder = os.path.join(flags["--run"], "jobs", flags["--name"])
total, pace = int(flags.get("--steps", 40)), float(flags.get("--lr", 0.05))
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
def write(name, data):
    with open(os.path.join(folder, name + ".new"), "w") as file:
        json.dump(data, file)
    os.replace(os.path.join(folder, name + ".new"), os.path.join(folder, name))
log = os.path.join(folder, "progress.jsonl")
done = len(open(log).readlines()) if os.path.exists(log) else 0
print("stand-in starts at step", done, flush=True)
if flags["--recipe"] == "full":
    sys.exit("robosteer finetune: there is no room for that")
for step in range(done + 1, total + 1):
    time.sleep(pace)
    with open(log, "a") as file:
        file.write(json.dumps({"step": step, "seconds": step * pace, "loss": 1 / step}) + "\\n")
    state = "interrupted" if stopped else "running"
    write("status.json", {"state": state, "step": step, "total": total, "message": None})
    if stopped:
        sys.exit(130)
write("status.json", {"state": "done", "step": total, "total": total, "message": None})
write("summary.json", {"trainable_parameters": {"expert query rows": 4096}})
print("stand-in is done", flush=True)
"""

PROGRAM = (sys.executable, "-c", SCRIPT)


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for something to become true; the time is what a busy machine may take, nothing waits for it otherwise."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.03)


def log_of(folder: Path) -> str:
    return (folder / "log").read_text() if (folder / "log").exists() else ""
