"""Camera images of single frames, read when they are asked for: encoded in the data files, or in films.

Parquet is read by row groups, of which the latest stay in memory, encoded: a data set of any size takes the same room.
"""

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from interp.data.films import Films
from interp.data.layout import Layout, Numbers
from interp.errors import UsageError

_CACHE_BYTES = 256 * 2**20
"""Encoded images kept in memory: enough for a few hundred episodes, so that training may jump between them."""

Pixels = UInt8[np.ndarray, "height width 3"]


class FrameStore:
    """Images by row and camera."""

    def __init__(self, layout: Layout, numbers: Numbers) -> None:
        self.path = layout.path
        self.fps = layout.fps
        self.features = layout.cameras
        filmed = {name for name, feature in layout.features.items() if feature.get("dtype") == "video"}
        self.embedded = [feature for feature in self.features.values() if feature not in filmed]
        self.films = Films()
        self.groups = _Groups(layout.tables if self.embedded else [], self.embedded)
        if filmed:
            places = {episode.index: at for at, episode in enumerate(layout.episodes)}
            self.episodes = layout.episodes
            self.place = np.empty(len(numbers), np.int32)
            self.place[numbers.row] = [places[index] for index in numbers.episode.tolist()]
            self.timestamp = np.empty(len(numbers))
            self.timestamp[numbers.row] = numbers.timestamp

    def read(self, row: int, cameras: Sequence[str]) -> dict[str, Pixels]:
        return {camera: self._read(row, self.features[camera]) for camera in cameras}

    def encoded(self, row: int, camera: str) -> bytes | None:
        """The image as the file that it was stored as; None if it is in a film."""
        feature = self.features[camera]
        return self._file(self.groups.cell(row, feature)) if feature in self.embedded else None

    def _read(self, row: int, feature: str) -> Pixels:
        if feature in self.embedded:
            return self._decode(self._file(self.groups.cell(row, feature)), feature, row)
        clip = self.episodes[self.place[row]].clips[feature]
        if not clip.file.is_file():
            raise UsageError(f"demonstrations {self.path}: {clip.file.relative_to(self.path)} is missing")
        return self.films.frame(clip.file, clip.start + float(self.timestamp[row]), self.fps)

    def _file(self, cell: Mapping[str, Any]) -> bytes:
        encoded: bytes | None = cell["bytes"]
        if encoded is not None:
            return encoded
        file = self.path / cell["path"]
        if not file.is_file():
            raise UsageError(f"demonstrations {self.path}: image {cell['path']} is missing")
        return file.read_bytes()

    def _decode(self, encoded: bytes, feature: str, row: int) -> Pixels:
        try:
            return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # SyntaxError: a broken PNG
            raise UsageError(
                f"demonstrations {self.path}: {feature} of row {row} is no image: {error}"
            ) from error


class _Groups:
    """Cells of parquet files, a row group at a time."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.columns = list(columns)
        groups = []
        for file in files:
            metadata = pq.read_metadata(file)
            groups += [
                (file, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)
            ]
        self.groups = [(file, group) for file, group, _ in groups]
        self.stops = np.cumsum([rows for _, _, rows in groups])
        self.cache: OrderedDict[int, pa.Table] = OrderedDict()

    def cell(self, row: int, column: str) -> Mapping[str, Any]:
        at = int(np.searchsorted(self.stops, row, side="right"))
        offset = row - (int(self.stops[at - 1]) if at else 0)
        cell: Mapping[str, Any] = self._group(at)[column][offset].as_py()
        return cell

    def _group(self, at: int) -> pa.Table:
        if at not in self.cache:
            file, group = self.groups[at]
            try:
                self.cache[at] = pq.ParquetFile(file).read_row_group(group, columns=self.columns)
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"{file} is broken: {str(error).splitlines()[0]}") from error
        self.cache.move_to_end(at)
        while len(self.cache) > 1 and sum(table.nbytes for table in self.cache.values()) > _CACHE_BYTES:
            self.cache.popitem(last=False)
        return self.cache[at]
