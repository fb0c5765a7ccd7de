"""A run: everything that was found out about one policy on one set of demonstrations, as plain files.

    run.json                           what, from what, with what; which episodes; the policy's spec
    activations/<tower>.zarr/<token>   z [frame, layer, head, d_head], one array a token
    frames/<episode>/<camera>/00000.jpg
    attention/<episode>/<tower>/<camera>.npy   what every head looks at and writes: footage.py
    signals.parquet                    one row a frame, in the order of the frame axis above
    scores/<name>.json                 HeadScores
    factors/<method>.json              profiles: how visual, linguistic, physical every head is
    explanations/<episode>-<frame>.*   one action explained, as JSON and as a figure
    selections/<name>.json             heads files
    jobs/, results/<name>.json, videos/
    .sweeps/                           what an interrupted sweep resumes from
    .*.lock                            held while something is written that two processes must not write at once

Nothing is pickled. Files appear complete or not at all: they are written under a temporary name and renamed.
One array a token, rather than a token axis, so that a later capture adds tokens without rewriting what is
there.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from jaxtyping import Float, Int

from interp.errors import UsageError, unknown
from interp.policies.spec import PolicySpec
from interp.scores import HeadScores, now

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def check_name(name: str, kind: str = "name") -> str:
    """Names become file names: no separators, nothing hidden, nothing that climbs out of its folder."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{kind} {name!r}: use up to 100 letters, digits and . _ + -, starting with a letter or digit"
        )
    return name


def write_atomic(path: Path, content: bytes) -> None:
    """The whole content or the previous file, whatever is killed when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A path beside `target` for the block to make a directory at, or a file, which is then renamed to it; what was
    there goes.

    If the block fails, nothing of it stays and what was there is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        fresh = Path(scratch) / target.name
        yield fresh
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        fresh.rename(target)


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """NaN and infinity are refused: JSON has no word for them, and readers disagree about what they mean."""
    write_atomic(Path(path), (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return data


@contextmanager
def alone(lock: Path, busy: str | None = None) -> Iterator[None]:
    """One process at a time: others wait, or are refused if `busy` says with which words. The lock goes with the
    process that holds it, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise UsageError(busy) from error
        yield


def digest(plan: Mapping[str, Any]) -> str:
    """A folder's name for what is computed by a plan: another plan, another folder."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Signals:
    """What happened in every captured frame. Rows are the `frame` axis of the activations; robot units.

    The state has no dimensions where it is not known, as in a run that was read from an activations file.
    """

    episode: Int[np.ndarray, " frame"]
    frame: Int[np.ndarray, " frame"]
    instruction: list[str]
    state: Float[np.ndarray, "frame state"]
    action: Float[np.ndarray, "frame action"]
    prediction: Float[np.ndarray, "frame horizon action"]

    def __len__(self) -> int:
        return len(self.episode)

    def to_table(self) -> pa.Table:
        def rows(values: np.ndarray) -> pa.Array:
            flat = values.reshape(len(values), -1).astype(np.float32)
            return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])

        columns = {
            "episode": pa.array(self.episode, pa.int64()),
            "frame": pa.array(self.frame, pa.int64()),
            "instruction": pa.array(self.instruction, pa.string()),
            "state": rows(self.state) if self.state.shape[1] else None,
            "action": rows(self.action),
            "prediction": rows(self.prediction),
        }
        return pa.table({name: column for name, column in columns.items() if column is not None})

    @classmethod
    def from_table(cls, table: pa.Table, horizon: int) -> "Signals":
        def rows(name: str) -> np.ndarray:
            column = table[name].combine_chunks()
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)

        prediction = rows("prediction")
        return cls(
            episode=table["episode"].to_numpy(),
            frame=table["frame"].to_numpy(),
            instruction=table["instruction"].to_pylist(),
            state=rows("state") if "state" in table.column_names else np.empty((len(table), 0), np.float32),
            action=rows("action"),
            prediction=prediction.reshape(len(table), horizon, -1),
        )


class Run:
    """A run directory. Cheap to open: only run.json is read until something else is asked for."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, policy={self.policy}, data={self.data})"

    # ---- opening

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        policy: str,
        source: str,
        spec: PolicySpec,
        data: Mapping[str, Any],
        command: Sequence[str] = (),
        seeds: Mapping[str, int] | None = None,
    ) -> "Run":
        """A new run, or the one that is already there if it is of the same policy and data.

        `policy` is the policy's fingerprint and `source` what it was loaded from; `data` describes the
        demonstrations and has at least `fingerprint` (see `Demonstrations.describe`).
        """
        path = Path(path)
        check_name(path.name, "run name")
        if (path / "run.json").exists():
            return cls.open(path).expect(policy=policy, data=data["fingerprint"])
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is not a run: choose another name for the run")
        info = {
            "schema": SCHEMA,
            "policy": {"fingerprint": policy, "source": source, "spec": spec.to_json()},
            "data": dict(data),
            "captured": {},
            "factors": [],
            "seeds": dict(seeds or {}),
            "command": list(command),
            "versions": _versions(),
            "created": now(),
        }
        write_json(path / "run.json", info)
        return cls(path, info)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        path = Path(path)
        if not (path / "run.json").is_file():
            raise UsageError(
                f"{path} is not a run: it has no run.json; make one with `robosteer capture --run {path}`"
            )
        info = read_json(path / "run.json")
        if info.get("schema") != SCHEMA:
            raise UsageError(
                f"{path} is a run of schema {info.get('schema')!r}: this version reads schema {SCHEMA}"
            )
        for key, part in (("policy", "fingerprint"), ("policy", "spec"), ("data", "fingerprint")):
            if not isinstance(info.get(key), dict) or part not in info[key]:
                raise UsageError(f"{path}/run.json is broken: it lacks {key}.{part}")
        if not isinstance(info.get("captured"), dict):
            raise UsageError(f"{path}/run.json is broken: it lacks captured")
        return cls(path, info)

    def expect(self, *, policy: str | None = None, data: str | None = None) -> "Run":
        """Itself, unless it is of another policy or of other data."""
        for kind, wanted, found in (("policy", policy, self.policy), ("data", data, self.data)):
            if wanted is not None and wanted != found:
                raise UsageError(
                    f"run {self.path} is of {kind} {found}, not {wanted}: choose another name for the run"
                )
        return self

    def update(
        self, captured: Mapping[str, Iterable[str]] | None = None, factors: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Adds tokens by tower, and measured factors (one entry a factor and method), to what run.json says now:
        another process may have written since this one opened the run."""
        with alone(self.path / ".run.lock"):
            info = read_json(self.path / "run.json")
            tokens = dict(info["captured"])
            for tower, more in (captured or {}).items():
                tokens[tower] = sorted({*tokens.get(tower, ()), *more})
            measured = {(entry["factor"], entry["method"]): entry for entry in (*info["factors"], *factors)}
            self.info = {**info, "captured": tokens, "factors": list(measured.values())}
            write_json(self.path / "run.json", self.info)

    # ---- what it is of

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def policy(self) -> str:
        """The policy's fingerprint."""
        return str(self.info["policy"]["fingerprint"])

    @property
    def data(self) -> str:
        """The demonstrations' fingerprint."""
        return str(self.info["data"]["fingerprint"])

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec.from_json(self.info["policy"]["spec"])

    # ---- what was captured

    def store(self, tower: str) -> Path:
        return self.path / "activations" / f"{check_name(tower, 'tower')}.zarr"

    def tokens(self, tower: str) -> tuple[str, ...]:
        """Tokens whose z was captured completely for the tower."""
        return tuple(self.info["captured"].get(tower, ()))

    def activations(self, tower: str, token: str | None = None) -> zarr.Array:
        """z [frame, layer, head, d_head] on disk; `token` may be left out if the tower has only one."""
        tokens = self.tokens(tower)
        if token is None and len(tokens) == 1:
            token = tokens[0]
        if not tokens:
            raise UsageError(f"run {self.path} has no activations of tower {tower!r}: capture it first")
        if token not in tokens:
            raise unknown(f"captured token of tower {tower}", token, tokens)
        array = zarr.open_group(self.store(tower), mode="r")[token]
        assert isinstance(array, zarr.Array)
        return array

    def signals(self) -> Signals:
        if not self.captured:
            raise UsageError(
                f"run {self.path} has no finished capture: start it, or start it again to resume"
            )
        return Signals.from_table(pq.read_table(self.path / "signals.parquet"), self.spec.horizon)

    @property
    def captured(self) -> bool:
        """Whether a capture has finished: activations and signals are there."""
        return bool(self.info["captured"])

    def frame_path(self, episode: int, camera: str, frame: int) -> Path:
        return self.path / "frames" / str(episode) / check_name(camera, "camera") / f"{frame:05d}.jpg"

    # ---- what was found

    def files(self, kind: str) -> dict[str, Path]:
        """JSON files of a kind (`scores`, `selections`, `results`) by name."""
        paths = [path for path in (self.path / kind).glob("*.json") if not path.name.startswith(".")]
        return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}

    def scores(self) -> dict[str, HeadScores]:
        return {name: self.read_scores(name) for name in self.files("scores")}

    def read_scores(self, name: str) -> HeadScores:
        files = self.files("scores")
        if name not in files:
            raise unknown(f"scores in run {self.path}", name, files)
        data = read_json(files[name])
        try:
            return HeadScores.from_json(data)
        except UsageError as error:
            raise UsageError(f"{files[name]}: {error}") from error
        except (KeyError, TypeError, AssertionError) as error:
            raise UsageError(f"{files[name]} is broken: {type(error).__name__}: {error}") from error

    def save_scores(self, scores: HeadScores, name: str | None = None) -> Path:
        for kind, wanted, found in (("policy", self.policy, scores.policy), ("data", self.data, scores.data)):
            if wanted != found:
                raise UsageError(f"scores are of {kind} {found}, run {self.path} is of {wanted}")
        return self._save("scores", name or scores.method, scores.to_json())

    @property
    def selections(self) -> dict[str, Path]:
        """Heads files by name; steering/headset.py reads them."""
        return self.files("selections")

    def save_selection(self, name: str, heads: Mapping[str, Any]) -> Path:
        return self._save("selections", name, heads)

    @property
    def results(self) -> dict[str, Path]:
        """Rollout results by name."""
        return self.files("results")

    def save_result(self, name: str, result: Mapping[str, Any]) -> Path:
        return self._save("results", name, result)

    def _save(self, kind: str, name: str, data: Mapping[str, Any]) -> Path:
        path = self.path / kind / f"{check_name(name, f'name of the {kind}')}.json"
        write_json(path, data)
        return path


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("robosteer", "torch", "transformers", "transformer-lens", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
