"""Demonstrations: LeRobotDataset v3 directories, read without LeRobot.

    meta/info.json                                features, fps, path templates
    meta/tasks.parquet                            task_index <-> instruction
    meta/episodes/chunk-000/file-000.parquet      length of every episode
    data/chunk-000/file-000.parquet               one row a frame: state, action, images as encoded bytes

A frame is one row, in the order of (episode, frame within the episode). States, actions and indices are read when the
directory is opened; images when they are asked for. `chunk` gives the actions that follow a frame as a policy
predicts them, with a mask over the steps past the end of the episode.
"""

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from interp.errors import UsageError
from interp.policies.protocol import Observation
from interp.policies.spec import PolicySpec

_IMAGES = "observation.images."
_CACHE_BYTES = 256 * 2**20
"""Encoded images kept in memory: enough for a few hundred episodes, so that training may jump between them."""


@dataclass(frozen=True)
class Episode:
    """Frames [start, stop) of the demonstrations. `index` is the episode's number in its data set."""

    index: int
    start: int
    stop: int
    instruction: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """All or some episodes of a data set. State and action are in the robot's units."""

    path: Path
    fps: float
    cameras: tuple[str, ...]
    episodes: tuple[Episode, ...]
    state: Float[np.ndarray, "frame state"]
    action: Float[np.ndarray, "frame action"]
    rows: Int[np.ndarray, " frame"]
    """Where each frame stands in the data set's files."""
    fingerprint: str
    _images: "_ImageStore"

    # ---- opening

    @classmethod
    def open(cls, path: str | Path) -> "Demonstrations":
        path = Path(path)
        info = _read_info(path)
        features = info["features"]
        for name in ("observation.state", "action"):
            if name not in features:
                raise UsageError(f"demonstrations {path}: no feature {name!r} in meta/info.json")
        videos = [name for name, feature in features.items() if feature.get("dtype") == "video"]
        if videos:
            raise UsageError(
                f"demonstrations {path}: {videos[0]} is stored as video, which is not read yet: "
                "record or convert the data set with images (use_videos=False)"
            )
        keys = {_camera(name): name for name, feature in features.items() if feature.get("dtype") == "image"}
        tables = _tables(path, info)
        columns = ["observation.state", "action", "episode_index", "frame_index", "task_index"]
        numbers = pa.concat_tables([_read_columns(file, columns) for file in tables])
        episode, frame = (numbers[name].to_numpy() for name in ("episode_index", "frame_index"))
        order = np.lexsort((frame, episode))
        _check_lengths(path, dict(zip(*np.unique(episode, return_counts=True), strict=True)))
        tasks = numbers["task_index"].to_numpy()[order]
        instructions = _instructions(path)
        episodes = _episodes(path, episode[order], frame[order], tasks, instructions)
        return cls(
            path=path,
            fps=float(info["fps"]),
            cameras=tuple(keys),
            episodes=episodes,
            state=_matrix(numbers["observation.state"])[order],
            action=_matrix(numbers["action"])[order],
            rows=order,
            fingerprint=_fingerprint(path, tables),
            _images=_ImageStore(path, tables, keys),
        )

    def take(self, episodes: Sequence[int]) -> "Demonstrations":
        """Some of the episodes, by their place in `self.episodes`; a data set of its own, with its own fingerprint."""
        for at in episodes:
            if not 0 <= at < len(self.episodes):
                last = len(self.episodes) - 1
                raise UsageError(f"episode {at}: demonstrations {self.path} have episodes 0-{last}")
        if not episodes or len(set(episodes)) != len(episodes):
            raise UsageError(f"choose at least one episode, each once, not {list(episodes)}")
        chosen = [self.episodes[at] for at in episodes]
        frames = np.concatenate([np.arange(episode.start, episode.stop) for episode in chosen])
        stops = np.cumsum([len(episode) for episode in chosen]).tolist()
        moved = tuple(
            replace(episode, start=stop - len(episode), stop=stop)
            for episode, stop in zip(chosen, stops, strict=True)
        )
        named = json.dumps([self.fingerprint, [episode.index for episode in chosen]])
        return replace(
            self,
            episodes=moved,
            state=self.state[frames],
            action=self.action[frames],
            rows=self.rows[frames],
            fingerprint=f"demos-{hashlib.sha256(named.encode()).hexdigest()[:16]}",
        )

    def for_policy(self, spec: PolicySpec) -> "Demonstrations":
        """Itself, if a policy of this spec can use it: its cameras are there, its dimensions fit."""
        for camera in spec.cameras:
            if camera not in self.cameras:
                raise UsageError(
                    f"demonstrations {self.path} lack camera {camera!r}: the policy needs "
                    f"{', '.join(spec.cameras)}, the data has {', '.join(self.cameras) or 'none'}"
                )
        for kind, needed, found in (
            ("state", spec.state_dim, self.state.shape[1]),
            ("action", spec.action_dim, self.action.shape[1]),
        ):
            if needed != found:
                raise UsageError(
                    f"demonstrations {self.path}: {kind} has {found} dimensions, the policy's has {needed}"
                )
        return self

    # ---- reading

    def __len__(self) -> int:
        """Frames."""
        return len(self.state)

    @cached_property
    def episode_of(self) -> Int[np.ndarray, " frame"]:
        """The place in `episodes` of every frame's episode."""
        return np.repeat(np.arange(len(self.episodes)), [len(episode) for episode in self.episodes])

    @cached_property
    def frame_of(self) -> Int[np.ndarray, " frame"]:
        """Every frame's number within its episode."""
        return np.concatenate([np.arange(len(episode)) for episode in self.episodes])

    def instruction(self, frame: int) -> str:
        return self.episodes[int(self.episode_of[frame])].instruction

    def observation(self, frame: int) -> Observation:
        return next(self.observations([frame]))

    def observations(self, frames: Sequence[int] | None = None) -> Iterator[Observation]:
        """One after the other, so that memory stays bounded; all frames if none are named."""
        for frame in range(len(self)) if frames is None else frames:
            if not 0 <= frame < len(self):
                raise UsageError(f"frame {frame}: demonstrations {self.path} have frames 0-{len(self) - 1}")
            images = self._images.read(int(self.rows[frame]))
            yield Observation(images, self.state[frame], self.instruction(frame))

    def chunk(
        self, frame: int, horizon: int
    ) -> tuple[Float[np.ndarray, "horizon action"], Bool[np.ndarray, " horizon"]]:
        """The next `horizon` actions from this frame, and which of them are padding (True) because the episode had
        ended; padding repeats the last action."""
        episode = self.episodes[int(self.episode_of[frame])]
        steps = np.arange(frame, frame + horizon)
        return self.action[np.minimum(steps, episode.stop - 1)], steps >= episode.stop

    def chunks(
        self, horizon: int
    ) -> tuple[Float[np.ndarray, "frame horizon action"], Bool[np.ndarray, "frame horizon"]]:
        """`chunk` of every frame."""
        stops = np.array([episode.stop for episode in self.episodes])[self.episode_of][:, None]
        steps = np.arange(len(self))[:, None] + np.arange(horizon)
        return self.action[np.minimum(steps, stops - 1)], steps >= stops

    def describe(self) -> dict[str, Any]:
        """What a run remembers about its data."""
        return {
            "fingerprint": self.fingerprint,
            "path": str(self.path),
            "fps": self.fps,
            "cameras": list(self.cameras),
            "frames": len(self),
            "tasks": sorted({episode.instruction for episode in self.episodes}),
            "episodes": [
                {"index": episode.index, "frames": len(episode), "instruction": episode.instruction}
                for episode in self.episodes
            ],
        }


class _ImageStore:
    """Images of single rows. Parquet is read by row groups; the latest stay in memory, encoded."""

    def __init__(self, path: Path, files: Sequence[Path], keys: Mapping[str, str]) -> None:
        self.path = path
        self.keys = keys
        groups = []
        for file in files:
            metadata = pq.read_metadata(file)
            groups += [
                (file, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)
            ]
        self.groups = [(file, group) for file, group, _ in groups]
        self.stops = np.cumsum([rows for _, _, rows in groups])
        self.cache: OrderedDict[int, pa.Table] = OrderedDict()

    def read(self, row: int) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        if not self.keys:
            return {}
        at = int(np.searchsorted(self.stops, row, side="right"))
        offset = row - (int(self.stops[at - 1]) if at else 0)
        table = self._group(at)
        return {camera: self._decode(table[key][offset].as_py()) for camera, key in self.keys.items()}

    def _group(self, at: int) -> pa.Table:
        if at not in self.cache:
            file, group = self.groups[at]
            try:
                self.cache[at] = pq.ParquetFile(file).read_row_group(group, columns=list(self.keys.values()))
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"{file} is broken: {str(error).splitlines()[0]}") from error
        self.cache.move_to_end(at)
        while len(self.cache) > 1 and sum(table.nbytes for table in self.cache.values()) > _CACHE_BYTES:
            self.cache.popitem(last=False)
        return self.cache[at]

    def _decode(self, cell: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
        encoded = cell["bytes"]
        if encoded is None:
            file = self.path / cell["path"]
            if not file.is_file():
                raise UsageError(f"demonstrations {self.path}: image {cell['path']} is missing")
            encoded = file.read_bytes()
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _camera(feature: str) -> str:
    return (
        feature.removeprefix(_IMAGES) if feature.startswith(_IMAGES) else feature.removeprefix("observation.")
    )


def _read_info(path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    if not file.is_file():
        raise UsageError(f"{path} is not a LeRobotDataset: it has no meta/info.json")
    try:
        info = json.loads(file.read_text())
        version = str(info["codebase_version"])
        if not version.startswith("v3"):
            raise UsageError(
                f"demonstrations {path} are of LeRobotDataset {version}: convert them to v3 with lerobot"
            )
        if not info["features"] or not info["fps"] or not info["data_path"]:
            raise KeyError("features, fps or data_path")
    except (json.JSONDecodeError, KeyError) as error:
        raise UsageError(f"{file} is broken: {type(error).__name__}: {error}") from error
    return dict(info)


def _tables(path: Path, info: dict[str, Any]) -> list[Path]:
    """The data files that the episodes' metadata name, in order."""
    wanted = {}
    for meta in _metas(path):
        table = _read_columns(meta, ["data/chunk_index", "data/file_index"])
        for chunk, file in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            wanted[chunk, file] = path / info["data_path"].format(chunk_index=chunk, file_index=file)
    for file in wanted.values():
        if not file.is_file():
            raise UsageError(f"demonstrations {path}: {file.relative_to(path)} is missing")
    return [wanted[key] for key in sorted(wanted)]


def _metas(path: Path) -> list[Path]:
    metas = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not metas:
        raise UsageError(f"demonstrations {path}: no meta/episodes/*/*.parquet")
    return metas


def _check_lengths(path: Path, found: Mapping[int, int]) -> None:
    for meta in _metas(path):
        table = _read_columns(meta, ["episode_index", "length"])
        for index, length in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            if found.get(index, 0) != length:
                raise UsageError(
                    f"demonstrations {path}: episode {index} has {length} frames in meta/episodes "
                    f"and {found.get(index, 0)} in data"
                )


def _read_columns(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file} is broken: {str(error).splitlines()[0]}") from error


def _matrix(column: pa.ChunkedArray) -> Float[np.ndarray, "frame dim"]:
    values = np.array(column.to_pylist(), dtype=np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UsageError("state and action must be finite vectors of one length")
    return values


def _instructions(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.parquet"
    if not file.is_file():
        raise UsageError(f"demonstrations {path}: meta/tasks.parquet is missing")
    # LeRobot writes a pandas frame whose index is the instruction; the column's name has varied.
    table = pq.read_table(file)
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(names) != 1:
        raise UsageError(f"{file} must have task_index and the instruction, not {table.column_names}")
    return dict(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))


def _episodes(
    path: Path,
    episode: Int[np.ndarray, " frame"],
    frame: Int[np.ndarray, " frame"],
    task: Int[np.ndarray, " frame"],
    instructions: dict[int, str],
) -> tuple[Episode, ...]:
    if not len(episode):
        raise UsageError(f"demonstrations {path} have no frames")
    starts = np.flatnonzero(np.diff(episode, prepend=episode[0] - 1))
    found = []
    for start, stop in zip(starts, [*starts[1:], len(episode)], strict=True):
        index = int(episode[start])
        if not np.array_equal(frame[start:stop], np.arange(stop - start)):
            raise UsageError(f"demonstrations {path}: episode {index} lacks frames")
        if int(task[start]) not in instructions:
            raise UsageError(
                f"demonstrations {path}: task {task[start]} of episode {index} has no instruction"
            )
        found.append(Episode(index, int(start), int(stop), instructions[int(task[start])]))
    return tuple(found)


def _fingerprint(path: Path, tables: list[Path]) -> str:
    """Over the content of data, tasks and features: the same wherever the directory stands."""
    digest = hashlib.sha256()
    for file in [path / "meta" / "info.json", path / "meta" / "tasks.parquet", *tables]:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"demos-{digest.hexdigest()[:16]}"
