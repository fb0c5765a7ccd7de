"""Promises of testbed/processes.py that its users do not test."""

import errno
import fcntl
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from testbed.processes import claimed, scheduling_kept
from testbed.videos import VideoWriter

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getscheduler"), reason="only Linux says how it schedules"
)


def test_whatever_changes_a_threads_scheduling_it_is_given_back() -> None:
    before = os.sched_getscheduler(0)
    with scheduling_kept():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    assert os.sched_getscheduler(0) == before


def test_writing_av1_makes_nobody_a_real_time_thread(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    writer = VideoWriter(
        tmp_path, "{video_key}-{chunk_index}-{file_index}.mp4", "front", "av1", 10, (64, 64), 1000, 1
    )
    writer.add([picture.getvalue()] * 3)
    writer.close()
    assert (tmp_path / "front-0-0.mp4").stat().st_size > 0
    assert os.sched_getscheduler(0) == before


def test_a_claim_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom testbed.processes import claimed\n"
        "with claimed(Path(sys.argv[1]), ValueError()):\n    print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / "new" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", script, lock], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="is taken"), claimed(lock, ValueError("lock is taken")):
        pass
    holder.kill()
    holder.wait()
    with claimed(lock, ValueError("lock is taken")):
        pass


def test_where_there_are_no_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    error = errno.ENOSYS  # Lustre without its option
    with claimed(tmp_path / "lock", ValueError()):
        pass
    error = errno.EIO
    with pytest.raises(OSError, match="Input/output"), claimed(tmp_path / "lock", ValueError()):
        pass
