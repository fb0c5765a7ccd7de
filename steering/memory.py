"""Peak memory of a piece of work, not of the process since it started.

On Linux the kernel keeps a high-water mark of the resident size (VmHWM in /proc/self/status), and writing 5 to
/proc/self/clear_refs sets it back to the present size. Where that is not possible (macOS, some containers) the mark is
ru_maxrss, which only ever grows: then the number is the process's peak, an upper bound.

Resident size includes what the process had before (interpreter, libraries, weights), so compare arms that each run in
a process of their own, as benchmarks/training.py does.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMemory:
    """`with PeakMemory() as peak: ...`, then `peak.megabytes`; inside, `peak.so_far()`. Not to be nested: there is one
    mark a process."""

    megabytes: float

    def __enter__(self) -> Self:
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self.exact = True
        except OSError:
            self.exact = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.megabytes = self.so_far()

    def so_far(self) -> float:
        return _high_water_mark() if self.exact else _largest_ever()


def _high_water_mark() -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return int(match[1]) / 2**10 if match else _largest_ever()


def _largest_ever() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, kilobytes on Linux
