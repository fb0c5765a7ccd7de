"""Footage: where every head looks in every frame of the demonstrations, and what it writes into the action.

The policy runs once over the frames, with capture's noise, and leaves one folder an episode:

    attention/<episode>/footage.json            frames, cameras, parts, words, what it is of
    attention/<episode>/prediction.npy          float32 [frame, action]                     robot units
    attention/<episode>/<tower>/<camera>.npy    uint8   [layer, head, frame, row, column]   255 is the frame's peak
                              /<camera>-peak.npy  float32 [layer, head, frame]              what 255 stands for
                              /mass.npy         float32 [layer, head, frame, part]          interp/mass.py
                              /words.npy        float32 [layer, head, frame, word]          of the instruction
                              /contribution.npy float32 [layer, head, frame, action]        expert only

attention     from the action tokens (expert) or the instruction's tokens (vlm) to a patch: mean over these queries and,
              in the expert, over flow steps. Patches in which the letterbox shows nothing are 0 here; their mass
              is in the parts `image/<camera>/padding`.
contribution  what the head itself adds to the first action of the chunk, in normalised units: interp.attribution.direct

The head axes come first, so that one head's frames lie side by side: a reader maps the file and touches nothing else.
An episode is written beside its place and renamed into it: it is there completely or not at all, and a run that was
killed goes on with the first missing episode. Memory holds one block of frames.

`EDITS` make corrupt twins of recorded frames, in which one thing differs. They edit pixels and words, nothing is
rendered anew. A twin's folder is `attention/<episode>.<edit>`; if its pixels differ, they are in its `frames/`.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from interp.capture import frame_noise, thumbnail
from interp.demos import Demonstrations, Episode
from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.policies.protocol import Observation, Policy
from interp.runs import Run, read_json, write_json
from interp.watching import QUERIES, Camera, Seen, watch

SCHEMA = 1
FRAMES = 16
"""Frames that go through the network together."""
_ABOUT = "footage.json"


@dataclass(frozen=True)
class Edit:
    """A change of one thing in a recorded observation; `factor` says of which kind."""

    label: str
    factor: str
    change: Callable[[Observation], Observation]
    pixels: bool


def _dark(observation: Observation) -> Observation:
    images = {name: (image * 0.35).astype(np.uint8) for name, image in observation.images.items()}
    return replace(observation, images=images)


EDITS: Mapping[str, Edit] = {
    "no-words": Edit("empty instruction", "linguistic", lambda o: replace(o, instruction=""), pixels=False),
    "dark": Edit("pixels at 35 % brightness", "visual", _dark, pixels=True),
}


# ---- reading


@dataclass(frozen=True)
class Footage:
    """One episode's footage on disk. Every method reads one head's part of one file."""

    path: Path
    episode: int
    edit: str | None
    frames: int
    cameras: Mapping[str, Camera]
    parts: tuple[str, ...]
    words: tuple[str, ...]
    towers: Mapping[str, tuple[int, int]]
    """Layers and heads by tower."""
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, run: Run, episode: int, edit: str | None = None) -> "Footage":
        path = place(run, episode, edit)
        if not (path / _ABOUT).is_file():
            what = f"episode {episode}" + (f" with edit {edit}" if edit else "")
            raise UsageError(
                f"run {run.path} has no footage of {what}: `robosteer capture --footage` writes it"
            )
        about = read_json(path / _ABOUT)
        try:
            if about["schema"] != SCHEMA:
                raise UsageError(f"{path / _ABOUT}: schema {about['schema']}, this version reads {SCHEMA}")
            return cls(
                path=path,
                episode=about["episode"],
                edit=about["edit"],
                frames=about["frames"],
                cameras={
                    name: Camera((camera["grid"][0], camera["grid"][1]), camera["letterbox"])
                    for name, camera in about["cameras"].items()
                },
                parts=tuple(about["parts"]),
                words=tuple(about["words"]),
                towers={name: (layers, heads) for name, (layers, heads) in about["towers"].items()},
                settings=about["settings"],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"{path / _ABOUT} is broken: {type(error).__name__}: {error}") from error

    def attention(self, head: Head, camera: str) -> UInt8[np.ndarray, "frame row column"]:
        """In units of `peak` / 255."""
        if camera not in self.cameras:
            raise unknown("camera", camera, self.cameras)
        return self._read(head, f"{camera}.npy")

    def peak(self, head: Head, camera: str) -> Float[np.ndarray, " frame"]:
        """The most attention that any patch of the picture gets, per frame."""
        if camera not in self.cameras:
            raise unknown("camera", camera, self.cameras)
        return self._read(head, f"{camera}-peak.npy")

    def mass(self, head: Head) -> Float[np.ndarray, "frame part"]:
        return self._read(head, "mass.npy")

    def to_words(self, head: Head) -> Float[np.ndarray, "frame word"]:
        return self._read(head, "words.npy")

    def contribution(self, head: Head) -> Float[np.ndarray, "frame action"] | None:
        """None for heads of the vlm, which write no action themselves."""
        return self._read(head, "contribution.npy") if self._file(head, "contribution.npy").exists() else None

    def prediction(self) -> Float[np.ndarray, "frame action"]:
        return _load(self.path / "prediction.npy")

    def picture(self, camera: str, frame: int) -> Path | None:
        """The edited picture; None if the edit leaves pixels alone, then the run's own frame shows it."""
        path = self.path / "frames" / camera / f"{frame:05d}.jpg"
        return path if path.is_file() else None

    def _file(self, head: Head, name: str) -> Path:
        return self.path / head.tower / name

    def _read(self, head: Head, name: str) -> np.ndarray:
        if head.tower not in self.towers:
            raise UsageError(f"head {head}: footage covers towers {', '.join(self.towers)}, not {head.tower}")
        layers, heads = self.towers[head.tower]
        if head.layer >= layers or head.index >= heads:
            raise UsageError(f"head {head}: tower {head.tower} has {layers} layers of {heads} heads, from 0")
        return np.array(_load(self._file(head, name))[head.layer, head.index])


def place(run: Run, episode: int, edit: str | None = None) -> Path:
    """The folder of an episode's footage, there or not."""
    if edit is not None and edit not in EDITS:
        raise unknown("edit", edit, EDITS)
    return run.path / "attention" / (str(episode) if edit is None else f"{episode}.{edit}")


def footage_of(run: Run) -> dict[int, tuple[str, ...]]:
    """Episodes whose frames have footage, with the edits of which they have a twin."""
    found = {path.parent.name for path in (run.path / "attention").glob(f"*/{_ABOUT}")}
    clean = sorted(int(name) for name in found if name.isdigit())
    return {episode: tuple(edit for edit in EDITS if f"{episode}.{edit}" in found) for episode in clean}


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is broken: {str(error).splitlines()[0]}") from error


# ---- writing


def footage(
    policy: Policy,
    demos: Demonstrations,
    run: Run,
    *,
    episodes: Sequence[int] | None = None,
    edit: str | None = None,
    progress: bool = True,
) -> Run:
    """Write the footage of the named episodes (all by default) that is not there yet; `edit` makes it of twins."""
    run.expect(policy=policy.fingerprint, data=demos.fingerprint)
    chosen = {episode.index: episode for episode in demos.episodes}
    for index in episodes or ():
        if index not in chosen:
            raise unknown(f"episode of {demos.path}", index, chosen)
    wanted = [chosen[index] for index in (chosen if episodes is None else episodes)]
    todo = [episode for episode in wanted if not place(run, episode.index, edit).exists()]
    for left in (run.path / "attention").glob(".*"):
        shutil.rmtree(left)  # of an episode that was interrupted
    label = "footage" if edit is None else f"footage, {EDITS[edit].label}"
    with tqdm(total=sum(map(len, todo)), unit="frame", desc=label, disable=not progress) as bar:
        for episode in todo:
            _write_episode(policy, demos, run, episode, edit, bar.update)
    return run


def _write_episode(
    policy: Policy,
    demos: Demonstrations,
    run: Run,
    episode: Episode,
    edit: str | None,
    done: Callable[[int], Any],
) -> None:
    target = place(run, episode.index, edit)
    target.parent.mkdir(exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    seed = int(run.info["seeds"].get("capture", 0))
    try:
        fresh.chmod(0o755)
        writer: Writer | None = None
        for start in range(0, len(episode), FRAMES):
            frames = range(episode.start + start, min(episode.start + start + FRAMES, episode.stop))
            observations = list(demos.observations(frames))
            if edit is not None:
                observations = [EDITS[edit].change(observation) for observation in observations]
            seen = watch(policy, observations, frame_noise(policy, demos, frames, seed))
            if writer is None:
                writer = Writer(fresh, len(episode), seen)
            writer.put(start, seen)
            if edit is not None and EDITS[edit].pixels:
                _save_pictures(fresh, start, observations)
            done(len(frames))
        assert writer is not None
        writer.finish(episode=episode.index, edit=edit, settings={"seed": seed, "queries": QUERIES})
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _save_pictures(path: Path, start: int, observations: Sequence[Observation]) -> None:
    for at, observation in enumerate(observations, start=start):
        for camera, image in observation.images.items():
            file = path / "frames" / camera / f"{at:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            thumbnail(image).save(file, "JPEG", quality=90)


class Writer:
    """An episode's arrays, filled block by block, whoever makes the blocks."""

    def __init__(self, path: Path, frames: int, first: Seen) -> None:
        self.path, self.frames, self.about = path, frames, first
        self.arrays: dict[str, np.memmap] = {}
        self.towers = {tower: mass.shape[:2] for tower, mass in first.mass.items()}
        for name, values in self._named(first):
            axis = _frame_axis(name)
            shape = (*values.shape[:axis], frames, *values.shape[axis + 1 :])
            file = path / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            self.arrays[name] = np.lib.format.open_memmap(file, "w+", values.dtype, shape)

    def put(self, start: int, seen: Seen) -> None:
        for name, values in self._named(seen):
            axis = _frame_axis(name)
            at = slice(start, start + values.shape[axis])
            self.arrays[name][(*[slice(None)] * axis, at)] = values

    def finish(self, *, episode: int, edit: str | None, settings: Mapping[str, Any]) -> None:
        for array in self.arrays.values():
            array.flush()
        self.arrays.clear()
        about = {
            "schema": SCHEMA,
            "episode": episode,
            "edit": edit,
            "frames": self.frames,
            "cameras": {name: asdict(camera) for name, camera in self.about.cameras.items()},
            "parts": list(self.about.parts),
            "words": list(self.about.vocabulary),
            "towers": {tower: list(shape) for tower, shape in self.towers.items()},
            "settings": dict(settings),
        }
        write_json(self.path / _ABOUT, json.loads(json.dumps(about)))

    @staticmethod
    def _named(seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """Every array by the name of its file."""
        yield "prediction", seen.prediction
        for (tower, camera), attention in seen.images.items():
            peak = attention.max(axis=(-2, -1))
            scale = 255 / np.maximum(peak, 1e-30)[..., None, None]
            yield f"{tower}/{camera}", np.rint(attention * scale).astype(np.uint8)
            yield f"{tower}/{camera}-peak", peak
        for what in ("mass", "words", "contribution"):
            for tower, values in getattr(seen, what).items():
                yield f"{tower}/{what}", values


def _frame_axis(name: str) -> int:
    return 0 if name == "prediction" else 2
