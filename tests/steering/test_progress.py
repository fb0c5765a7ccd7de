"""Promises of progress files: they tell one story of a job that was stopped and resumed, and never stop it."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from steering.progress import Progress


def steps(directory: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (directory / "progress.jsonl").read_text().splitlines()]


def status(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "status.json").read_text()))


def test_a_resumed_job_tells_one_story_even_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    with Progress(6, "job", directory=tmp_path, show=False) as progress:
        for step in range(1, 5):
            progress.update(step, loss=1 / step)
    with (tmp_path / "progress.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    with Progress(6, "job", directory=tmp_path, show=False, start=2, seconds=100) as progress:
        assert steps(tmp_path) == [1, 2]  # 3 and 4 will be done again: the checkpoint was at 2
        for step in range(3, 7):
            progress.update(step, loss=0.0)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert status(tmp_path)["seconds"] >= 100
    assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("done", 6)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [(KeyboardInterrupt("asked to"), "interrupted", "asked to"), (ValueError(), "failed", "ValueError")],
)
def test_how_a_job_ended_is_in_its_status(
    tmp_path: Path, error: BaseException, state: str, message: str
) -> None:
    def work() -> None:
        with Progress(3, "job", directory=tmp_path, show=False) as progress:
            progress.update(1, loss=2.0)
            assert status(tmp_path)["state"] == "running"
            raise error

    with pytest.raises(type(error)):
        work()
    assert (status(tmp_path)["state"], status(tmp_path)["message"]) == (state, message)
    assert status(tmp_path)["loss"] == 2.0


def test_a_full_disk_does_not_stop_a_job_for_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Progress(3, "job", directory=tmp_path, show=False) as progress:
        progress.update(1)
        with monkeypatch.context() as patch:
            patch.setattr("steering.progress.write_json", full)
            patch.setattr("steering.progress.STATUS_INTERVAL", -1.0)
            progress.update(2)
        progress.update(3)
    assert steps(tmp_path) == [1, 2, 3]
