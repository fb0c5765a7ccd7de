"""Progress of a long job, for a person (a bar) and for programs (files that the dashboard polls).

    progress.jsonl   one line an event: {"step": 12, "seconds": 3.1, "loss": 0.41}
    status.json      the latest state, replaced whole: {"state": "running", "step": 12, "total": 250,
                     "loss": 0.41, "seconds": 3.1, "message": null}

`state` is running, done, interrupted or failed. A job killed outright leaves "running" behind: whoever
reads the status must also look whether the process lives.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from interp.runs import write_atomic, write_json

STATUS_INTERVAL = 0.5  # seconds between two writes of status.json


class Progress:
    """A context manager: `with Progress(...) as progress: progress.update(step, loss=0.4)`.

    `directory` None keeps no files; `show` False draws no bar. `start` and `seconds` continue an earlier part
    of the same job, whose later lines are dropped from progress.jsonl: they describe steps that are redone.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        directory: Path | None = None,
        show: bool = True,
        start: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.total, self.label, self.directory, self.show = total, label, directory, show
        self.step, self.values = start, dict[str, float]()
        self._earlier = seconds

    @property
    def seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._started

    def __enter__(self) -> Self:
        self._started, self._written = time.perf_counter(), 0.0
        self._bar = tqdm(
            total=self.total, initial=self.step, desc=self.label, disable=not self.show, dynamic_ncols=True
        )
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            log = self.directory / "progress.jsonl"
            kept = [line for line in _complete_lines(log) if json.loads(line)["step"] <= self.step]
            write_atomic(log, "".join(f"{line}\n" for line in kept if self.step).encode())
            self._log = log.open("a", encoding="utf-8")
            self._status("running")
        return self

    def update(self, step: int, **values: float) -> None:
        """Report that `step` steps are done."""
        self._bar.update(step - self.step)
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()})
        self.step, self.values = step, values
        if self.directory is not None:
            with suppress(OSError):  # a full disk stops a job where it saves its work, not here
                self._log.write(
                    json.dumps({"step": step, "seconds": round(self.seconds, 3), **values}) + "\n"
                )
                self._log.flush()
                if time.perf_counter() - self._written > STATUS_INTERVAL:
                    self._status("running")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self.directory is not None:
            with suppress(OSError):
                self._log.close()
            state = "done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
            with suppress(OSError):
                self._status(state, str(error) or kind.__name__ if kind else None)

    def _status(self, state: str, message: str | None = None) -> None:
        assert self.directory is not None
        self._written = time.perf_counter()
        write_json(
            self.directory / "status.json",
            {
                "state": state,
                "step": self.step,
                "total": self.total,
                "seconds": round(self.seconds, 3),
                **self.values,
                "message": message,
            },
        )


def _complete_lines(path: Path) -> list[str]:
    """Lines of a log that a kill may have cut short: the last one counts only with its newline."""
    if not path.exists():
        return []
    return [line.rstrip("\n") for line in path.open(encoding="utf-8") if line.endswith("\n")]
