"""Promises of testbed/processes.py that its users do not test."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from testbed.processes import scheduling_kept
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
