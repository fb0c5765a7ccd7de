"""The published activations file (Robotic Steering, arXiv 2511.22697), read into a run and written from one.

    task/episode_000/frame_0000/    one group a frame; frame numbers may skip, as key frames do
        first_action_token_attn     z of the expert at the first action token [layer, head, d_head]; pi0: (18, 8, 256)
        state_token_attn            z of the expert at the state token (pi0 only: pi0.5 has none)
        last_token_attn             z of the vlm at the last token of the instruction
        action_label                the demonstrated action, in the robot's units
        predicted_action_label      what the policy predicted

The first group is the task; any name will do, and several are read one after the other. Such a file says nothing about
its policy. Heads that are ranked on it can be trained only on a policy that it was made with, so give that policy when
it is at hand: shapes are compared, and the run then belongs to it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
from jaxtyping import Float
from tqdm import tqdm

from interp.data.hdf5 import array, hdf5
from interp.data.recordings import appearing
from interp.errors import UsageError
from interp.policies import Policy
from interp.policies.spec import PolicySpec, TowerSpec
from interp.runs import Run, Signals

FIRST, STATE, LAST = "first_action_token_attn", "state_token_attn", "last_token_attn"
TOKENS: Mapping[str, tuple[str, str]] = {
    FIRST: ("expert", "first_action"),
    STATE: ("expert", "state"),
    LAST: ("vlm", "last_prefix"),
}
"""(tower, token) of a run, by the file's name."""
_BLOCK = 32


@dataclass(frozen=True)
class _Place:
    """A frame's group, and which frame it is."""

    group: str
    episode: int
    frame: int
    instruction: str


def read(
    file: str | Path,
    path: str | Path,
    *,
    policy: Policy | None = None,
    command: Sequence[str] = (),
    progress: bool = True,
) -> Run:
    """A new run at `path` with what is in the file. It appears when all of it is there."""
    file, path = Path(file), Path(path)
    with hdf5(file) as opened, appearing(path) as temporary:
        places = list(_places(opened, file))
        shapes = _shapes(opened, places, file)
        labels = [_labels(opened[place.group], file) for place in places]
        if len({(len(action), predicted.shape) for action, predicted in labels}) > 1:
            raise UsageError(f"{file}: action labels are not all of one shape")
        action, prediction = (np.stack(each) for each in zip(*labels, strict=True))
        digest = _digest(file)
        spec = _spec(shapes, action.shape[1], prediction.shape[1], policy, file)
        run = Run.create(
            temporary,
            policy=policy.fingerprint if policy else f"activations-{digest}",
            source=policy.source if policy else str(file),
            spec=spec,
            data=_describe(file, digest, places),
            command=command,
        )
        for name, shape in shapes.items():
            _copy(opened, run, places, name, shape, file, progress)
        signals = Signals(
            episode=np.array([place.episode for place in places]),
            frame=np.array([place.frame for place in places]),
            instruction=[place.instruction for place in places],
            state=np.empty((len(places), 0), np.float32),
            action=action,
            prediction=prediction,
        )
        pq.write_table(signals.to_table(), temporary / "signals.parquet")
        keys = [TOKENS[name] for name in shapes]
        run.update({tower: [token for of, token in keys if of == tower] for tower, _ in keys})
    return Run.open(path)


def write(run: Run, file: str | Path, *, task: str = "task", progress: bool = True) -> None:
    """The run's activations as a published file; needs z of the expert at the first action token."""
    names = [name for name, (tower, token) in TOKENS.items() if token in run.tokens(tower)]
    if FIRST not in names:
        raise UsageError(
            f"run {run.path} has no expert activations at the first action token: capture tower expert first"
        )
    arrays = {name: run.activations(*TOKENS[name]) for name in names}
    signals = run.signals()
    with appearing(file) as temporary, hdf5(temporary, "w") as opened:
        bar = tqdm(total=len(signals), unit="frame", desc="writing", disable=not progress)
        for start in range(0, len(signals), _BLOCK):
            block = {name: np.asarray(values[start : start + _BLOCK]) for name, values in arrays.items()}
            for at in range(start, min(start + _BLOCK, len(signals))):
                episode = opened.require_group(f"{task}/episode_{signals.episode[at]:03d}")
                episode.attrs["instruction"] = signals.instruction[at]
                frame = episode.create_group(f"frame_{signals.frame[at]:04d}")
                for name, values in block.items():
                    frame[name] = values[at - start]
                frame["action_label"] = signals.action[at]
                frame["predicted_action_label"] = signals.prediction[at, 0]
                bar.update()
        bar.close()


def _places(opened: Any, file: Path) -> Iterator[_Place]:
    """Frames in the order of task, episode and frame. Episodes of later tasks get numbers that are free."""
    after = 0
    for task in opened:
        episodes = _numbered(opened[task], "episode_")
        for number, name in episodes:
            group = opened[task][name]
            told = str(group.attrs.get("instruction", task))
            for frame, leaf in _numbered(group, "frame_"):
                yield _Place(f"{task}/{name}/{leaf}", after + number, frame, told)
        after += episodes[-1][0] + 1 if episodes else 0
    if not after:
        raise UsageError(f"{file} is no activations file: it has no task/episode_000/frame_0000")


def _numbered(group: Any, prefix: str) -> list[tuple[int, str]]:
    names = group if hasattr(group, "keys") else ()
    numbers = ((name.removeprefix(prefix), name) for name in names if name.startswith(prefix))
    return sorted((int(number), name) for number, name in numbers if number.isdecimal())


def _shapes(opened: Any, places: Sequence[_Place], file: Path) -> dict[str, tuple[int, int, int]]:
    """[layer, head, d_head] of every token that the file has: the same in all frames."""
    if not places:
        raise UsageError(f"{file} has no frames")
    first = opened[places[0].group]
    if FIRST not in first:
        raise UsageError(
            f"{file}: {places[0].group} has no {FIRST}; there is {', '.join(first) or 'nothing'}"
        )
    shapes = {name: first[name].shape for name in TOKENS if name in first}
    for place in places:
        for name, shape in shapes.items():
            found = opened[place.group].get(name)
            if found is None or found.shape != shape or len(shape) != 3:
                told = "missing" if found is None else f"of shape {found.shape}"
                raise UsageError(
                    f"{file}: {place.group}/{name} is {told}; it must be (layer, head, d_head), "
                    f"as in {places[0].group}: {shape}"
                )
    return shapes


def _labels(
    group: Any, file: Path
) -> tuple[Float[np.ndarray, " action"], Float[np.ndarray, "horizon action"]]:
    """The current action, and the prediction; both may be stored as one step or as a chunk."""
    action = np.atleast_2d(array(group, "action_label", file))[0]
    predicted = np.atleast_2d(array(group, "predicted_action_label", file))
    if not np.isfinite(action).all():
        raise UsageError(f"{file}: {group.name.lstrip('/')}/action_label is not finite")
    return action.astype(np.float32), predicted.astype(np.float32)


def _spec(
    shapes: Mapping[str, tuple[int, int, int]], action: int, horizon: int, policy: Policy | None, file: Path
) -> PolicySpec:
    """The policy's, if it fits; otherwise what the file's shapes tell, and nothing about tokens and cameras."""
    towers: dict[str, TowerSpec] = {}
    for name, (layers, heads, d_head) in shapes.items():
        tower = TOKENS[name][0]
        # Only keys and values of the last vlm layer reach the expert: its heads are dead in pi0 and pi0.5.
        dead = tuple((layers - 1, head) for head in range(heads)) if tower == "vlm" else ()
        towers[tower] = TowerSpec((heads,) * layers, 1, d_head, dead)
    if policy is None:
        return PolicySpec(
            family="activations", towers=towers, spans={}, cameras=(), image_size=0, state_dim=0,
            action_dim=action, max_action_dim=action, horizon=horizon, flow_steps=0, fps=None, execute=0,
            state_names=(), action_names=tuple(f"action_{i}" for i in range(action)),
        )  # fmt: skip
    for tower, found in towers.items():
        own = policy.spec.tower(tower)
        if (own.heads_per_layer, own.d_head) != (found.heads_per_layer, found.d_head):
            raise UsageError(
                f"{file} is of another policy: its {tower} has {found.layers} layers x {found.heads} heads x "
                f"{found.d_head}, this policy's {own.layers} x {own.heads} x {own.d_head}"
            )
    if policy.spec.action_dim != action:
        raise UsageError(f"{file}: actions have {action} dimensions, the policy's {policy.spec.action_dim}")
    return replace(policy.spec, horizon=horizon)


def _describe(file: Path, digest: str, places: Sequence[_Place]) -> dict[str, Any]:
    frames: dict[int, list[_Place]] = {}
    for place in places:
        frames.setdefault(place.episode, []).append(place)
    return {
        "fingerprint": f"activations-{digest}",
        "path": str(file),
        "fps": None,
        "cameras": [],
        "frames": len(places),
        "tasks": sorted({place.instruction for place in places}),
        "episodes": [
            {"index": index, "frames": len(members), "instruction": members[0].instruction}
            for index, members in frames.items()
        ],
    }


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _copy(
    opened: Any,
    run: Run,
    places: Sequence[_Place],
    name: str,
    shape: tuple[int, int, int],
    file: Path,
    progress: bool,
) -> None:
    tower, token = TOKENS[name]
    _, heads, d_head = shape
    store = zarr.open_group(run.store(tower), mode="a").create_array(
        token,
        shape=(len(places), *shape),
        chunks=(_BLOCK, 1, heads, d_head),
        dtype="float32",
        compressors=None,
    )
    for start in tqdm(range(0, len(places), _BLOCK), desc=name, disable=not progress):
        block = [array(opened[place.group], name, file) for place in places[start : start + _BLOCK]]
        values = np.stack(block).astype(np.float32)
        if not np.isfinite(values).all():
            at = int((~np.isfinite(values).reshape(len(values), -1).all(axis=1)).argmax())
            raise UsageError(f"{file}: {places[start + at].group}/{name} is not finite")
        store[start : start + len(values)] = values
