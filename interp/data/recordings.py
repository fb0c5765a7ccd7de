"""Episodes on their way into a LeRobotDataset v3, wherever they come from: files of other formats, or other data sets.

A directory appears by rename when all of it is written; one that is there is left alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from tqdm import tqdm

from interp.errors import UsageError
from interp.runs import whole_directory
from testbed.dataset import ACTION, STATE, DatasetWriter, Form, Take, Vector

Keyframes = Callable[["Recording"], Bool[np.ndarray, " frame"]]
ANY_FORM = "every episode needs the same cameras, image sizes and dimensions"


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode. State and action are in the robot's units."""

    source: str
    """Where it is from, for messages."""
    instruction: str
    images: Mapping[str, UInt8[np.ndarray, "frame height width 3"]]
    state: Float[np.ndarray, "frame state"]
    action: Float[np.ndarray, "frame action"]
    encoded: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    """Images that are PNG or JPEG files already."""
    extras: Mapping[str, Shaped[np.ndarray, "frame dim"]] = field(default_factory=dict)
    """Other features."""

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise UsageError(f"{self.source} has no instruction: give one with --instruction")
        arrays = {"state": self.state, "action": self.action, **self.images, **self.extras}
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) > 1 or not len(self.action):
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UsageError(f"{self.source}: frames of its parts do not agree: {listed}")
        for name in ("state", "action"):
            wrong = ~np.isfinite(arrays[name]).all(axis=1)
            if wrong.any():
                raise UsageError(f"{self.source}: {name} of frame {wrong.argmax()} is not finite")

    def __len__(self) -> int:
        return len(self.action)

    def take(self, frames: Bool[np.ndarray, " frame"]) -> "Recording":
        """Some of its frames."""
        at = np.flatnonzero(frames).tolist()
        return replace(
            self,
            images={camera: images[at] for camera, images in self.images.items()},
            state=self.state[at],
            action=self.action[at],
            encoded={camera: [files[i] for i in at] for camera, files in self.encoded.items()},
            extras={name: values[at] for name, values in self.extras.items()},
        )


@dataclass(frozen=True)
class Source:
    """Recordings, and what they have in common."""

    recordings: Iterable[Recording]
    length: int
    fps: float
    robot: str
    state_names: Sequence[str]
    action_names: Sequence[str]
    extras: Mapping[str, Vector] = field(default_factory=dict)

    def form(self, first: Recording, codec: str | None) -> Form:
        sizes = {camera: images.shape[1:3] for camera, images in first.images.items()}
        for camera, (height, width) in sizes.items():
            if codec and (height % 2 or width % 2):
                raise UsageError(
                    f"camera {camera} is {height} x {width}: video needs even sizes; write images (without --video)"
                )
        vectors = {
            STATE: Vector(len(self.state_names), self.state_names),
            ACTION: Vector(len(self.action_names), self.action_names),
            **self.extras,
        }
        return Form(self.fps, self.robot, sizes, vectors, codec)


def write_dataset(
    source: Source,
    directory: str | Path,
    *,
    codec: str | None = None,
    keyframes: Keyframes | None = None,
    progress: bool = True,
) -> tuple[int, int]:
    """Writes all recordings (or their keyframes only); returns how many frames were written, and of how many."""
    written = seen = 0
    with appearing(directory) as temporary, ExitStack() as closing:
        writer: DatasetWriter | None = None
        bar = tqdm(
            source.recordings, total=source.length, desc="writing", unit="episode", disable=not progress
        )
        for recording in bar:
            seen += len(recording)
            if keyframes is not None:
                recording = recording.take(keyframes(recording))
            if writer is None:
                writer = closing.enter_context(DatasetWriter(temporary, source.form(recording, codec)))
            _check(recording, writer.form)
            vectors = {STATE: recording.state, ACTION: recording.action, **recording.extras}
            writer.add(Take.from_arrays(recording.instruction, recording.images, vectors, recording.encoded))
            written += len(recording)
        if writer is None:
            raise UsageError(f"no episodes to write into {directory}")
    return written, seen


def _check(recording: Recording, form: Form) -> None:
    sizes = {camera: images.shape[1:3] for camera, images in recording.images.items()}
    if sizes != form.cameras:
        raise UsageError(
            f"{recording.source}: cameras are {_listed(sizes)}, those before are {_listed(form.cameras)}: {ANY_FORM}"
        )
    for name, values in ((STATE, recording.state), (ACTION, recording.action)):
        if values.shape[1] != form.vectors[name].width:
            raise UsageError(
                f"{recording.source}: {name} has {values.shape[1]} dimensions, "
                f"{form.vectors[name].width} before: {ANY_FORM}"
            )


def _listed(sizes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{camera} {height} x {width}" for camera, (height, width) in sizes.items()) or "none"


@contextmanager
def appearing(path: str | Path) -> Iterator[Path]:
    """Where to write what is renamed to `path` when the block ends well, and removed when it does not.

    No other process writes there, and its name is that of `path`. What is at `path`, from the first or by the end, is
    left alone: an error.
    """
    path = Path(path)
    _check_free(path)
    with whole_directory(path) as temporary:
        yield temporary
        _check_free(path)


def _check_free(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} already exists: remove it or choose another name")
