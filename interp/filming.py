"""Filming: the policy runs once over the demonstrations, with capture's noise, and leaves footage (see footage.py).

An episode is written beside its place and renamed into it: it is there completely or not at all, and a run that was
killed goes on with the first missing episode. Memory holds one block of frames. Axis names: those of footage.py.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from interp.capture import frame_noise, thumbnail
from interp.demos import Demonstrations, Episode
from interp.errors import UsageError, unknown
from interp.footage import ABOUT, EDITS, SCHEMA, place
from interp.policies.protocol import Observation, Policy
from interp.runs import Run, alone, whole_directory, write_json
from interp.watching import QUERIES, Seen, watch

FRAMES = 16
"""Frames that go through the network together."""


def footage(
    policy: Policy,
    demos: Demonstrations,
    run: Run,
    *,
    episodes: Sequence[int] | None = None,
    edit: str | None = None,
    progress: bool = True,
) -> Run:
    """Write the footage of the named episodes that is not there yet; `edit` makes it of twins.

    By default of all episodes, but for those whose task changes on the way: an episode's footage has the words of one.
    """
    run.expect(policy=policy.fingerprint, data=demos.fingerprint)
    chosen = {episode.index: episode for episode in demos.episodes}
    for index in episodes or ():
        if index not in chosen:
            raise unknown(f"episode of {demos.path}", index, chosen)
    wanted = [chosen[index] for index in (chosen if episodes is None else episodes)]
    changing = [episode for episode in wanted if len(np.unique(demos.task[episode.start : episode.stop])) > 1]
    if changing:
        said = f"the task of episode {changing[0].index} changes on the way, and footage has the words of one task"
        if episodes is not None:
            raise UsageError(f"{said}: leave it out")
        warnings.warn(f"{said}: {len(changing)} such episodes are left out", stacklevel=2)
        wanted = [episode for episode in wanted if episode not in changing]
    busy = f"run {run.path} is being filmed by another process: wait until it has ended, or stop it"
    with alone(run.path / ".footage.lock", busy):
        todo = [episode for episode in wanted if not place(run, episode.index, edit).exists()]
        for left in (run.path / "attention").glob(".*"):
            shutil.rmtree(
                left
            )  # of an episode that was interrupted; its process is dead, or it would have the lock
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
    seed = int(run.info["seeds"].get("capture", 0))
    with whole_directory(target) as fresh:
        fresh.mkdir()
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
        gone = [name for name in self.arrays if not (self.path / f"{name}.npy").is_file()]
        self.arrays.clear()
        if gone:
            raise UsageError(f"{self.path / gone[0]}.npy was removed while it was written: start again")
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
        write_json(self.path / ABOUT, json.loads(json.dumps(about)))

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
