"""robomimic's HDF5, which LIBERO writes too: one file a task, one group a demonstration.

    data                        attributes: problem_info, env_args (JSON)
    data/demo_0                 attribute num_samples
    data/demo_0/actions         [frame, action]
    data/demo_0/obs/<key>       [frame, ...]: images are uint8 [frame, height, width, 3]

LIBERO keeps images as OpenGL makes them, upside down. Policies for LIBERO (openpi's, OpenVLA's, LeRobot's) are trained
on them turned by 180 degrees, so that is what `libero` imports; `flip` gives the scene as it is, left and right kept.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from interp.data.hdf5 import array, hdf5, matrix
from interp.data.recordings import Recording, Source, appearing
from interp.demos import Demonstrations
from interp.errors import UsageError

FPS = 20.0
LIBERO_STATE = ("ee_states", "gripper_states")
STATES = (
    ("state",),
    LIBERO_STATE,
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
)
"""Observations that together are the state, the first that are all there."""
_TURNS = {
    "keep": (slice(None), slice(None)),
    "flip": (slice(None, None, -1), slice(None)),
    "rotate": (slice(None, None, -1), slice(None, None, -1)),
}


def read(
    path: str | Path,
    *,
    robot: str = "panda",
    state: Sequence[str] | None = None,
    cameras: Mapping[str, str] | None = None,
    orientation: str = "keep",
    instruction: str | None = None,
    fps: float | None = None,
) -> Source:
    """All demonstrations of a file, or of the files under a directory.

    `cameras` names those to take, and what to call them (all by default; `_rgb` and `_image` are left out of names).
    """
    files = _files(Path(path))
    with hdf5(files[0]) as file:
        demo = _demos(file, files[0])[0]
        state = state or _state(demo, files[0])
        known = _cameras(demo)
        names = [f"{key}_{i}" for key in state for i in range(matrix(demo["obs"], [key], files[0]).shape[1])]
        width = matrix(demo, ["actions"], files[0]).shape[1]
        frequency = fps or _frequency(file) or FPS
    chosen = dict(zip(known.values(), known, strict=True)) if cameras is None else {}
    for name, called in (cameras or {}).items():
        if name not in known:
            raise UsageError(f"camera {name!r}: {files[0]} has {', '.join(known) or 'no images'}")
        chosen[known[name]] = called
    length = 0
    for each in files:
        with hdf5(each) as file:
            length += len(_demos(file, each))
    recordings = _recordings(files, state, chosen, _TURNS[orientation], instruction)
    return Source(recordings, length, frequency, robot, names, [f"action_{i}" for i in range(width)])


def _recordings(
    files: Sequence[Path],
    state: Sequence[str],
    cameras: Mapping[str, str],
    turn: tuple[slice, slice],
    instruction: str | None,
) -> Iterator[Recording]:
    for path in files:
        with hdf5(path) as file:
            for demo in _demos(file, path):
                yield Recording(
                    source=f"{path}: {demo.name.lstrip('/')}",
                    instruction=instruction or _instruction(file, demo),
                    images={
                        called: np.ascontiguousarray(array(demo["obs"], key, path)[:, turn[0], turn[1]])
                        for key, called in cameras.items()
                    },
                    state=matrix(demo["obs"], state, path),
                    action=matrix(demo, ["actions"], path),
                )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(each for each in path.rglob("*") if each.suffix in (".hdf5", ".h5"))
    if not files:
        raise UsageError(f"{path} holds no .hdf5 file")
    return files


def _demos(file: Any, path: Path) -> list[Any]:
    """The groups of demonstrations, in order of their numbers."""
    data = file.get("data")
    names = [name for name in data if name.startswith("demo_")] if data is not None else []
    if not names:
        raise UsageError(
            f"{path}: no data/demo_*, so it is no robomimic file; there is {', '.join(file) or 'nothing'}"
        )
    demos = [data[name] for name in sorted(names, key=lambda name: int(name.removeprefix("demo_")))]
    for demo in demos:
        if "obs" not in demo:
            raise UsageError(
                f"{path}: {demo.name.lstrip('/')} has no obs: extract observations with robomimic first"
            )
    return demos


def _cameras(demo: Any) -> dict[str, str]:
    """Key of every colour camera, by the camera's name."""
    return {
        key.removesuffix("_rgb").removesuffix("_image"): key
        for key, values in demo["obs"].items()
        if values.ndim == 4 and values.shape[-1] == 3 and values.dtype == np.uint8
    }


def _state(demo: Any, path: Path) -> Sequence[str]:
    for keys in STATES:
        if all(key in demo["obs"] for key in keys):
            return keys
    has = ", ".join(key for key, values in demo["obs"].items() if values.ndim < 3)
    raise UsageError(
        f"{path}: which observations are the state? Name them with --state, out of {has or 'none'}"
    )


def _attribute(group: Any, name: str) -> dict[str, Any]:
    try:
        found = json.loads(group.attrs.get(name, "{}"))
    except (json.JSONDecodeError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _instruction(file: Any, demo: Any) -> str:
    told = demo.attrs.get("language_instruction") or _attribute(file["data"], "problem_info").get(
        "language_instruction", ""
    )
    return "".join(told).strip()  # LIBERO has stored it as a list of letters


def _frequency(file: Any) -> float | None:
    found = (_attribute(file["data"], "env_args").get("env_kwargs") or {}).get("control_freq")
    return float(found) if found else None


def write(
    demos: Demonstrations,
    path: str | Path,
    *,
    cameras: Mapping[str, str] | None = None,
    progress: bool = True,
) -> None:
    """All demonstrations as one file. Images are `obs/<camera>_image`, the state is `obs/state`.

    `cameras` names those to write, and what to call them (all by default).
    Whether a demonstration succeeded is not known: rewards are zero, and the last frame is done.
    """
    with appearing(path) as temporary, hdf5(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = len(demos)
        arguments = {"env_name": "robosteer", "type": 2, "env_kwargs": {"control_freq": demos.fps}}
        data.attrs["env_args"] = json.dumps(arguments)
        told = {episode.instruction for episode in demos.episodes}
        if len(told) == 1:
            data.attrs["problem_info"] = json.dumps({"language_instruction": told.pop()})
        for at, episode in enumerate(
            tqdm(demos.episodes, unit="episode", desc="writing", disable=not progress)
        ):
            demo = data.create_group(f"demo_{at}")
            demo.attrs["num_samples"] = len(episode)
            demo.attrs["language_instruction"] = episode.instruction
            frames = range(episode.start, episode.stop)
            here = slice(episode.start, episode.stop)
            demo["actions"] = demos.action[here]
            demo["rewards"] = np.zeros(len(episode), np.float32)
            demo["dones"] = (np.arange(len(episode)) == len(episode) - 1).astype(np.int64)
            demo["obs/state"] = demos.state[here]
            _write_images(demo, demos, frames, cameras or {name: name for name in demos.cameras})


def _write_images(demo: Any, demos: Demonstrations, frames: range, cameras: Mapping[str, str]) -> None:
    stores: dict[str, Any] = {}
    for at, observation in enumerate(demos.observations(frames)):
        for camera, called in cameras.items():
            image = observation.images[camera]
            if camera not in stores:
                stores[camera] = demo.create_dataset(
                    f"obs/{called}_image", (len(frames), *image.shape), np.uint8,
                    chunks=(1, *image.shape), compression="gzip", compression_opts=1,
                )  # fmt: skip
            stores[camera][at] = image
