"""Single frames out of video files, at given seconds, as LeRobot finds them: the nearest in time.

Whoever reads frames in order gets them without seeking: a file stays open where it was left. A frame that was decoded
lately is not decoded again. Both are bounded: open files by number, frames by bytes.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import av
import numpy as np
from jaxtyping import UInt8

from interp.errors import UsageError

Image = UInt8[np.ndarray, "height width 3"]

_OPEN = 8
_CACHE_BYTES = 64 * 2**20
_AHEAD = 1.0
"""Seconds that are decoded rather than sought: about where a seek, which starts at a key frame, gets cheaper."""
_SAME = 1e-4
"""Seconds by which a frame may miss a time and be taken without a look at the next one: LeRobot's tolerance."""


class Films:
    """Frames of many files; may be read from several threads, one at a time."""

    def __init__(self) -> None:
        self._streams: OrderedDict[Path, _Stream] = OrderedDict()
        self._frames: OrderedDict[tuple[Path, float], Image] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def frame(self, file: Path, time: float, fps: float) -> Image:
        """The frame nearest to `time` [s]; half a frame away or more is an error."""
        with self._lock:
            key = (file, time)
            if key in self._frames:
                self._frames.move_to_end(key)
                return self._frames[key]
            try:
                found = self._stream(file).at(time, 0.5 / fps)
            except (av.FFmpegError, OSError) as error:
                self._streams.pop(file, None)
                raise UsageError(f"{file} is broken: {error.strerror or error}") from error
            found.flags.writeable = False  # shared by all who ask
            self._frames[key] = found
            self._bytes += found.nbytes
            while self._bytes > _CACHE_BYTES and len(self._frames) > 1:
                self._bytes -= self._frames.popitem(last=False)[1].nbytes
            return found

    def _stream(self, file: Path) -> "_Stream":
        if file not in self._streams:
            self._streams[file] = _Stream(file)
            while len(self._streams) > _OPEN:
                self._streams.popitem(last=False)[1].container.close()
        self._streams.move_to_end(file)
        return self._streams[file]


class _Stream:
    """One open file, the frame at which it stands, and the one before if it was decoded."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.container = av.open(str(file))
        if not self.container.streams.video:
            raise UsageError(f"{file} has no video in it")
        self.video = self.container.streams.video[0]
        self.before: av.VideoFrame | None = None
        self.here: av.VideoFrame | None = None
        self.frames: Iterator[av.VideoFrame] = iter(())

    def at(self, time: float, tolerance: float) -> Image:
        first = self.before or self.here
        if first is None or self.here is None or not first.time - _SAME <= time <= self.here.time + _AHEAD:
            self._seek(time, tolerance)
        ended = False
        while self.here is not None and self.here.time < time - _SAME:
            following = next(self.frames, None)
            if ended := following is None:
                break
            self.before, self.here = self.here, following
        found = self._nearest(time)
        if found is None:
            raise UsageError(f"{self.file} has no frame at {time:.3f} s: it has no frames")
        if abs(found.time - time) > tolerance:
            where = "it ends at" if ended else "the nearest is at"
            raise UsageError(f"{self.file} has no frame at {time:.3f} s: {where} {found.time:.3f} s")
        return found.to_ndarray(format="rgb24")

    def _nearest(self, time: float) -> av.VideoFrame | None:
        """Of two equally near the earlier, by distances in float32: as LeRobot's `decode_video_frames` chooses."""
        near = [frame for frame in (self.before, self.here) if frame is not None]
        return min(near, key=lambda frame: abs(np.float32(frame.time) - np.float32(time)), default=None)

    def _seek(self, time: float, tolerance: float) -> None:
        """Stand at the key frame before `time`, or at an earlier one where pictures are stored out of order."""
        self.before = None
        for back in (0.0, 1.0, 10.0, time):
            offset = max(0, round((time - back - tolerance) / float(self.video.time_base or 1)))
            self.container.seek(offset, stream=self.video, backward=True)
            self.frames = self.container.decode(self.video)
            self.here = next(self.frames, None)
            if self.here is None or self.here.time <= time + _SAME or offset == 0:
                return
