"""The LeRobotDataset v3 layout: what the metadata say, and the numbers of every frame.

    meta/info.json                                features, fps, path templates
    meta/tasks.parquet                            task_index <-> instruction
    meta/episodes/chunk-000/file-000.parquet      length of every episode, and which files hold it
    data/chunk-000/file-000.parquet               one row a frame: state, action, images as encoded bytes
    videos/<feature>/chunk-000/file-000.mp4       several episodes one after the other, [from, to) in seconds

A row is a frame's place in the data files, read one after the other. Columns that LeRobot writes and nothing needs
(`index`, `timestamp`, `task_index` where the episode names its task) may be missing. Besides LeRobot's own feature
names, openpi's are known: `state`, `actions`, `joint_position` + `gripper_position`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from interp.errors import UsageError

_STATES = (
    ("observation.state",),
    ("state",),
    ("joint_position", "gripper_position"),
    ("observation.joint_position", "observation.gripper_position"),
)
_ACTIONS = (("action",), ("actions",))
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_WHOLE = 2**30
"""Bytes of a data set up to which its fingerprint reads all of them; of a larger one it reads samples."""
_SAMPLES, _SAMPLE = 16, 2**16


@dataclass(frozen=True)
class Clip:
    """Where a camera's film of one episode is: seconds [start, stop) of a file."""

    file: Path
    start: float
    stop: float


@dataclass(frozen=True)
class EpisodeEntry:
    """What meta/episodes says about one episode."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    clips: Mapping[str, Clip]
    """By video feature."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """Every frame's numbers, in the order of (episode, frame within the episode). Robot units; not checked."""

    row: Int[np.ndarray, " frame"]
    episode: Int[np.ndarray, " frame"]
    frame: Int[np.ndarray, " frame"]
    timestamp: Float[np.ndarray, " frame"]
    task: Int[np.ndarray, " frame"] | None
    state: Float[np.ndarray, "frame state"]
    action: Float[np.ndarray, "frame action"]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, eq=False)
class Layout:
    """A data set's metadata. Cheap: no data file is opened."""

    path: Path
    info: Mapping[str, Any]
    episodes: tuple[EpisodeEntry, ...]
    instructions: Mapping[int, str]
    """By task_index."""

    @classmethod
    def open(cls, path: str | Path) -> "Layout":
        path = Path(path)
        info = _read_info(path)
        return cls(path, info, tuple(_read_episodes(path, info)), _read_tasks(path))

    # ---- features

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        features: Mapping[str, Mapping[str, Any]] = self.info["features"]
        return features

    @property
    def fps(self) -> float:
        return float(self.info["fps"])

    @property
    def cameras(self) -> dict[str, str]:
        """Feature of every colour camera, by the camera's name."""
        return {
            _camera(name): name
            for name, feature in self.features.items()
            if feature.get("dtype") in ("image", "video") and not _is_depth(feature)
        }

    @property
    def states(self) -> tuple[str, ...]:
        """Features that together are the state."""
        return self._first_of(_STATES)

    @property
    def actions(self) -> tuple[str, ...]:
        return self._first_of(_ACTIONS)

    def _first_of(self, known: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        for names in known:
            if all(name in self.features for name in names):
                return names
        (wanted,), *_ = known
        has = ", ".join(name for name in self.features if name not in _COUNTERS)
        raise UsageError(f"demonstrations {self.path}: no feature {wanted!r} in meta/info.json; it has {has}")

    @property
    def extras(self) -> tuple[str, ...]:
        """Other vectors of numbers that frames have."""
        taken = {*_COUNTERS, *self.states, *self.actions}
        return tuple(
            name
            for name, feature in self.features.items()
            if name not in taken
            and feature.get("dtype") in ("float32", "float64", "int64", "bool")
            and len(feature.get("shape", ())) == 1
        )

    def names(self, features: Sequence[str]) -> list[str]:
        """What the dimensions of these features together are called."""
        found: list[str] = []
        for name in features:
            width = int(self.features[name].get("shape", [1])[0])
            given = self.features[name].get("names")
            while isinstance(given, dict):  # {"motors": [...]}
                given = next(iter(given.values()), None)
            short = name.removeprefix("observation.")
            if isinstance(given, list) and len(given) == width:
                found += [str(each) for each in given]
            else:
                found += [f"{short}_{i}" for i in range(width)]
        return found

    def image_size(self, camera: str) -> tuple[int, int]:
        """(height, width) that the metadata give."""
        feature = self.features[self.cameras[camera]]
        shape = [int(n) for n in feature["shape"]]
        names = feature.get("names") or []
        channels_first = "channel" in str(names[0]) if names else len(shape) == 3 and shape[0] in (1, 3)
        return (shape[1], shape[2]) if channels_first else (shape[0], shape[1])

    # ---- files

    @property
    def tables(self) -> list[Path]:
        """The data files that episodes name, in order."""
        return sorted({episode.data for episode in self.episodes})

    @property
    def films(self) -> list[Path]:
        return sorted({clip.file for episode in self.episodes for clip in episode.clips.values()})

    def missing(self) -> Iterator[str]:
        """One line for every file that episodes name and that is not there."""
        for file in [*self.tables, *self.films]:
            if not file.is_file():
                of = [e.index for e in self.episodes if file == e.data or file in _files(e)]
                which = f"episode {of[0]}" if len(of) == 1 else f"episodes {of[0]}-{of[-1]}"
                yield f"{file.relative_to(self.path)} is missing ({which})"

    def read_numbers(self, file: Path | None = None) -> Numbers:
        """Of all data files, or of one."""
        tables = [self._read(each) for each in ([file] if file else self.tables)]
        length = sum(len(table) for table in tables)
        if not length:
            raise UsageError(f"demonstrations {self.path} have no frames")
        episode = rows_of(tables, "episode_index", self.path)[:, 0].astype(np.int64)
        if "frame_index" in tables[0].column_names:
            frame = rows_of(tables, "frame_index", self.path)[:, 0].astype(np.int64)
        else:
            frame = _count_within(episode)
        order = np.lexsort((frame, episode))
        in_order = np.array_equal(order, np.arange(length))

        def sort(values: np.ndarray) -> np.ndarray:
            return values if in_order else values[order]

        task = time = None
        if "task_index" in tables[0].column_names:
            task = sort(rows_of(tables, "task_index", self.path)[:, 0].astype(np.int64))
        if "timestamp" in tables[0].column_names:
            time = sort(rows_of(tables, "timestamp", self.path)[:, 0])
        frame = sort(frame)
        return Numbers(
            row=order,
            episode=sort(episode),
            frame=frame,
            timestamp=frame / self.fps if time is None else time,
            task=task,
            state=sort(self._vectors(tables, self.states)),
            action=sort(self._vectors(tables, self.actions)),
        )

    def _vectors(self, tables: Sequence[pa.Table], names: Sequence[str]) -> Float[np.ndarray, "frame dim"]:
        parts = [rows_of(tables, name, self.path) for name in names]
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")

    def _read(self, file: Path) -> pa.Table:
        wanted = [*self.states, *self.actions]
        return read_columns(file, wanted, optional=_COUNTERS)

    def fingerprint(self) -> str:
        """Over the content of data, films, tasks and features: the same wherever the directory stands.

        Of a data set of more than 1 GiB, over the size of every file and samples of its content.
        """
        files = [
            self.path / "meta" / "info.json",
            self.path / "meta" / "tasks.parquet",
            *self.tables,
            *self.films,
        ]
        whole = sum(file.stat().st_size for file in files) <= _WHOLE
        digest = hashlib.sha256()
        for file in files:
            digest.update(str(file.relative_to(self.path)).encode())
            with file.open("rb") as stream:
                if whole:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
                    continue
                size = file.stat().st_size
                digest.update(str(size).encode())
                for start in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES, dtype=int):
                    stream.seek(int(start))
                    digest.update(stream.read(_SAMPLE))
        return f"demos-{digest.hexdigest()[:16]}"


def read_columns(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """Columns of a parquet file; a broken file or a column that is missing is one line."""
    try:
        with pq.ParquetFile(file) as opened:
            present = opened.schema_arrow.names
            lacking = [name for name in columns if name not in present]
            if lacking:
                raise UsageError(f"{file} has no column {lacking[0]!r}")
            return opened.read(columns=[*columns, *(name for name in optional if name in present)])
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file} is broken: {str(error).splitlines()[0]}") from error


def _camera(feature: str) -> str:
    return feature.removeprefix("observation.").removeprefix("images.")


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _files(episode: EpisodeEntry) -> set[Path]:
    return {clip.file for clip in episode.clips.values()}


def _count_within(episode: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """The place of every row among the rows of its episode."""
    order = np.argsort(episode, kind="stable")
    starts = np.flatnonzero(np.diff(episode[order], prepend=episode[order[0]] - 1))
    lengths = np.diff(np.append(starts, len(episode)))
    places = np.empty_like(episode)
    places[order] = np.arange(len(episode)) - np.repeat(starts, lengths)
    return places


def rows_of(tables: Sequence[pa.Table], name: str, path: Path) -> np.ndarray:
    """[row, dim] of numbers, whatever arrow type holds them."""
    chunks = [_rows(chunk, name, path) for table in tables for chunk in table[name].chunks if len(chunk)]
    widths = {chunk.shape[1] for chunk in chunks}
    if len(widths) > 1:
        raise UsageError(
            f"demonstrations {path}: {name} has {' and '.join(map(str, sorted(widths)))} dimensions"
        )
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _rows(chunk: pa.Array, name: str, path: Path) -> np.ndarray:
    rows = len(chunk)
    if chunk.null_count:
        raise UsageError(f"demonstrations {path}: {name} has empty cells")
    while pa.types.is_nested(chunk.type):
        if pa.types.is_struct(chunk.type):
            raise UsageError(f"demonstrations {path}: {name} holds {chunk.type}, not numbers")
        if not pa.types.is_fixed_size_list(chunk.type):
            lengths = np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False))
            if len(lengths) > 1:
                raise UsageError(
                    f"demonstrations {path}: {name} has {lengths[0]} to {lengths[-1]} dimensions: "
                    "it must be vectors of one length"
                )
        chunk = chunk.flatten()
    if not (
        pa.types.is_integer(chunk.type) or pa.types.is_floating(chunk.type) or pa.types.is_boolean(chunk.type)
    ):
        raise UsageError(f"demonstrations {path}: {name} holds {chunk.type}, not numbers")
    return chunk.to_numpy(zero_copy_only=False).reshape(rows, -1)


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
        if not info["features"] or not info["data_path"] or not float(info["fps"]) > 0:
            raise KeyError("features, fps or data_path")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file} is broken: {type(error).__name__}: {error}") from error
    return dict(info)


def _read_episodes(path: Path, info: Mapping[str, Any]) -> Iterator[EpisodeEntry]:
    metas = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not metas:
        raise UsageError(f"demonstrations {path}: no meta/episodes/*/*.parquet")
    films = [name for name, f in info["features"].items() if f.get("dtype") == "video" and not _is_depth(f)]
    if films and not info.get("video_path"):
        raise UsageError(f"demonstrations {path}: meta/info.json has videos and no video_path")
    places = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wanted += [f"videos/{name}/{place}" for name in films for place in places]
    found: list[EpisodeEntry] = []
    for meta in metas:
        for row in read_columns(meta, wanted, optional=["tasks"]).to_pylist():
            data = info["data_path"].format(
                chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
            )
            clips = {}
            for name in films:
                chunk, file, start, stop = (row[f"videos/{name}/{place}"] for place in places)
                film = info["video_path"].format(video_key=name, chunk_index=chunk, file_index=file)
                clips[name] = Clip(path / film, start, stop)
            tasks = tuple(row.get("tasks") or ())
            found.append(EpisodeEntry(row["episode_index"], row["length"], tasks, path / data, clips))
    yield from sorted(found, key=lambda episode: episode.index)


def _read_tasks(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.parquet"
    if not file.is_file():
        raise UsageError(f"demonstrations {path}: meta/tasks.parquet is missing")
    # LeRobot writes a pandas frame whose index is the instruction; the column's name has varied.
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file} is broken: {str(error).splitlines()[0]}") from error
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(names) != 1:
        raise UsageError(f"{file} must have task_index and the instruction, not {table.column_names}")
    return dict(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))
