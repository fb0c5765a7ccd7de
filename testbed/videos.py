"""Camera frames as LeRobot keeps them in video: several episodes in one mp4 file, one after the other.

Two pictures a group (every second one stands alone), so that any frame is decoded from at most two: data sets are read
in random order. The encodings are those that LeRobot writes, h264 and AV1 with 4:2:0 colour; both lose detail.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

from testbed.processes import scheduling_kept

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder tells its whole configuration otherwise

CODECS = {"h264": ("libx264", {"crf": "18"}), "av1": ("libsvtav1", {"crf": "30", "preset": "8"})}
"""Encoder and its quality, by the name of the codec."""


@dataclass
class VideoWriter:
    """One camera's files."""

    directory: Path
    template: str
    feature: str
    codec: str | None
    fps: float
    size: tuple[int, int]
    files_a_chunk: int
    file_mb: int
    _file: int = -1
    _frames: int = 0
    _bytes: int = 0
    _container: Any = field(default=None, repr=False)

    def add(self, images: Sequence[bytes]) -> dict[str, Any]:
        """Append an episode; returns the columns that say where it is."""
        if self._container is None or self._bytes >= self.file_mb * 2**20:
            self._next()
        start = self._frames
        for image in images:
            frame = av.VideoFrame.from_image(Image.open(io.BytesIO(image)).convert("RGB"))
            frame.pts, frame.time_base = self._frames, self._stream.codec_context.time_base
            self._mux(frame)
            self._frames += 1
        chunk, file = divmod(self._file, self.files_a_chunk)
        return {
            f"videos/{self.feature}/chunk_index": chunk,
            f"videos/{self.feature}/file_index": file,
            f"videos/{self.feature}/from_timestamp": start / self.fps,
            f"videos/{self.feature}/to_timestamp": self._frames / self.fps,
        }

    def close(self) -> None:
        if self._container is not None:
            self._mux(None)
            self._container.close()
            self._container = None

    def info(self) -> dict[str, Any]:
        """What meta/info.json says about the encoding."""
        height, width = self.size
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": self.codec,
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "video.channels": 3,
            "has_audio": False,
        }

    @property
    def _path(self) -> Path:
        chunk, file = divmod(self._file, self.files_a_chunk)
        name = self.template.format(video_key=self.feature, chunk_index=chunk, file_index=file)
        return self.directory / name

    def _mux(self, frame: av.VideoFrame | None) -> None:
        """Encode a frame, or what is left; the encoder answers when it likes."""
        with scheduling_kept():
            packets = self._stream.encode(frame)
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    def _next(self) -> None:
        self.close()
        self._file, self._frames, self._bytes = self._file + 1, 0, 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        assert self.codec is not None
        encoder, quality = CODECS[self.codec]
        rate = Fraction(self.fps).limit_denominator(1001)
        self._container = av.open(str(self._path), "w", format="mp4")
        self._stream = self._container.add_stream(encoder, rate=rate, options={"g": "2", **quality})
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = 1 / rate
