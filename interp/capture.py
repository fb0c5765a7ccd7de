"""Capture: run the frozen policy over demonstrations and keep z of every head at the tokens that carry the action.

z [frame, layer, head, d_head], one array a tower and token:

expert  first_action  the first action token, in one extra pass at flow time 0 with the fully denoised actions:
                      the published feature (arXiv 2511.22697)
        state         the proprioceptive token in the same pass, where the expert has one
vlm     last_prefix   the last token of the instruction (the last that is not padding)
        state         the proprioceptive token, where it is part of the prefix (SmolVLA)
vision  mean          mean over the patches of all cameras: the tower has no summary token

Noise is seeded by (seed, episode, frame), so a frame's numbers do not depend on which others are captured. Frames go
through in blocks; a block is committed when its part of the signals is renamed into place, after its activations and
thumbnails. Killed at any moment, the same call resumes with the first uncommitted block and ends with the same numbers.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from einops import reduce
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from interp.demos import Demonstrations
from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.noise import frame_noise as frame_noise
from interp.policies.preprocessing import states_of
from interp.policies.protocol import Batch, Observation, Policy
from interp.policies.spec import PolicySpec
from interp.rates import warn_if_other_rate
from interp.runs import Run, Signals, alone, digest, read_json, write_atomic, write_json
from interp.seeds import check_seed
from interp.sites import Tap, site_name, tapped
from interp.units import warn_if_unlike_training

Z = Float[Tensor, "frame layer head d_head"]
Key = tuple[str, str]
"""(tower, token)"""


@dataclass(frozen=True)
class _Places:
    """Where tokens stand in their tower's positions."""

    state: int | None
    """In the tower that has it."""
    action: int
    last_prefix: Int[Tensor, " frame"]


_READERS: Mapping[str, Mapping[str, Callable[[Tensor, _Places], Tensor]]] = {
    "expert": {
        "first_action": lambda z, at: z[:, at.action],
        "state": lambda z, at: z[:, at.state],
    },
    "vlm": {
        "last_prefix": lambda z, at: z[torch.arange(len(z), device=z.device), at.last_prefix],
        "state": lambda z, at: z[:, at.state],
    },
    "vision": {"mean": lambda z, at: reduce(z, "frame camera pos head d_head -> frame head d_head", "mean")},
}
"""From z of one layer to [frame, head, d_head]. A new token is a new line here: runs that exist then add it."""
TOKENS: Mapping[str, tuple[str, ...]] = {tower: tuple(readers) for tower, readers in _READERS.items()}


def tokens_of(spec: PolicySpec, tower: str) -> tuple[str, ...]:
    """The tokens at which this policy's tower is captured: not every tower has a state token."""
    return tuple(token for token in TOKENS[tower] if token != "state" or spec.has_positions(tower, "state"))


BLOCK = 32
"""Frames that go through the network together, and the chunk length of the arrays on disk."""
THUMBNAIL = 256
"""Longest side of a thumbnail in pixels; smaller images are kept as they are."""


def capture(
    policy: Policy,
    demos: Demonstrations,
    path: str | Path,
    *,
    towers: Sequence[str] | None = None,
    seed: int = 0,
    thumbnails: bool = True,
    progress: bool = True,
    command: Sequence[str] = (),
) -> Run:
    """The run at `path` with activations of `towers` (all by default), signals and thumbnails of every frame.

    Resumes an interrupted capture, adds towers to a finished one, and returns at once if nothing is missing. Memory
    holds one block of frames. A run of another policy, other data or another seed is refused.
    """
    check_seed(seed)
    demos = demos.for_policy(policy.spec)
    warn_if_unlike_training(policy, demos)
    warn_if_other_rate(policy.spec, demos)
    wanted = tuple(policy.spec.towers if towers is None else towers)
    for tower in wanted:
        if tower not in policy.spec.towers:
            raise unknown("tower", tower, policy.spec.towers)
    run = Run.create(
        path,
        policy=policy.fingerprint,
        source=policy.source,
        spec=policy.spec,
        data=demos.describe(),
        command=command,
        seeds={"capture": seed},
    )
    if run.info["seeds"].get("capture") != seed:
        raise UsageError(
            f"run {run.path} was captured with seed {run.info['seeds'].get('capture')}, not {seed}: "
            "choose another name for the run"
        )
    keys = [(tower, token) for tower in wanted for token in tokens_of(policy.spec, tower)]
    if _missing(run, keys):
        busy = f"run {run.path} is being captured by another process: wait until it has ended, or stop it"
        with alone(run.path / ".capture.lock", busy):
            run = Run.open(run.path)  # with what the other process has captured by now
            if missing := _missing(run, keys):
                _Pass.begin(run, len(demos), missing).finish(policy, demos, seed, thumbnails, progress)
    return run


def _missing(run: Run, keys: Sequence[Key]) -> list[Key]:
    return [(tower, token) for tower, token in keys if token not in run.tokens(tower)]


@dataclass(frozen=True)
class _Pass:
    """One pass over all frames for some towers and tokens, with its committed blocks in `work`, a folder that belongs
    to the pass's plan. There is one pass at a time (`alone`)."""

    run: Run
    keys: tuple[Key, ...]
    work: Path

    @classmethod
    def begin(cls, run: Run, frames: int, keys: Sequence[Key]) -> "_Pass":
        """A new pass, or the one that was interrupted if it covers the keys."""
        passes = run.path / ".capture"
        for file in passes.glob("*/pass.json"):
            interrupted = read_json(file)
            planned = tuple((tower, token) for tower, token in interrupted["keys"])
            if interrupted["block"] == BLOCK and set(keys) <= set(planned):
                return cls(run, planned, file.parent)
        shutil.rmtree(passes, ignore_errors=True)
        for tower, token in keys:
            spec = run.spec.towers[tower]
            shutil.rmtree(run.store(tower) / token, ignore_errors=True)
            zarr.open_group(run.store(tower), mode="a").create_array(
                token,
                shape=(frames, spec.layers, spec.heads, spec.d_head),
                chunks=(BLOCK, 1, spec.heads, spec.d_head),
                dtype="float32",
                fill_value=np.nan,
                compressors=None,  # activations are noise to a compressor
            )
        plan = {"keys": [list(key) for key in keys], "block": BLOCK}
        work = passes / digest(plan)
        write_json(work / "pass.json", plan)  # last: a pass that has a plan has its arrays
        return cls(run, tuple(keys), work)

    def finish(
        self, policy: Policy, demos: Demonstrations, seed: int, thumbnails: bool, progress: bool
    ) -> None:
        starts = range(0, len(demos), BLOCK)
        todo = [start for start in starts if not self._part(start).exists()]
        done = len(demos) - sum(min(BLOCK, len(demos) - start) for start in todo)
        arrays = {
            (tower, token): zarr.open_array(self.run.store(tower) / token) for tower, token in self.keys
        }
        with tqdm(total=len(demos), initial=done, unit="frame", desc="capture", disable=not progress) as bar:
            for start in todo:
                frames = range(start, min(start + BLOCK, len(demos)))
                observations = list(demos.observations(frames))
                noise = frame_noise(policy, demos, frames, seed)
                z, prediction = capture_block(policy, observations, noise, self.keys)
                for key, values in z.items():
                    _check_finite(values, key, frames)
                    arrays[key][start : frames.stop] = values.float().cpu().numpy()
                if thumbnails:
                    self._thumbnails(demos, frames, observations)
                self._commit(start, _signals(demos, frames, observations, prediction))
                bar.update(len(frames))
        table = pa.concat_tables([pq.read_table(self._part(start)) for start in starts])
        write_atomic(self.run.path / "signals.parquet", _parquet(table))
        self.run.update({tower: [token for of, token in self.keys if of == tower] for tower, _ in self.keys})
        shutil.rmtree(self.work.parent)

    def _part(self, start: int) -> Path:
        return self.work / f"{start:08d}.parquet"

    def _commit(self, start: int, signals: Signals) -> None:
        write_atomic(self._part(start), _parquet(signals.to_table()))

    def _thumbnails(self, demos: Demonstrations, frames: range, observations: Sequence[Observation]) -> None:
        for frame, observation in zip(frames, observations, strict=True):
            episode = demos.episodes[int(demos.episode_of[frame])].index
            for camera, image in observation.images.items():
                path = self.run.frame_path(episode, camera, int(demos.frame_of[frame]))
                path.parent.mkdir(parents=True, exist_ok=True)
                thumbnail(image).save(path, "JPEG", quality=90)


def capture_block(
    policy: Policy,
    observations: Sequence[Observation],
    noise: Float[Tensor, "frame horizon max_action_dim"],
    keys: Sequence[Key],
) -> tuple[dict[Key, Z], Float[Tensor, "frame horizon action"]]:
    """z by (tower, token) and the predicted action chunk, in the robot's units, of a few observations."""
    layers: dict[Key, list[Tensor]] = {key: [] for key in keys}
    with torch.no_grad():
        batch = policy.batch(observations)
        places = _places(policy, batch)
        with tapped(
            policy, _taps(policy, {k: kept for k, kept in layers.items() if k[0] != "expert"}, places)
        ):
            prefix = policy.prefix(batch)
        actions = policy.denoise(batch, noise, prefix)
        with tapped(
            policy, _taps(policy, {k: kept for k, kept in layers.items() if k[0] == "expert"}, places)
        ):
            policy.velocity(batch, actions, actions.new_zeros(len(actions)), prefix)
        prediction = policy.unnormalise_actions(
            actions[..., : policy.spec.action_dim], states_of(observations, actions.device)
        )
    return {key: torch.stack(kept, dim=1) for key, kept in layers.items()}, prediction


def _places(policy: Policy, batch: Batch) -> _Places:
    spec, mask = policy.spec, batch["attention_mask"].clone()
    mask[:, spec.span("language").stop :] = 0  # in some families the state stands behind the instruction
    owner = next((tower for tower in ("expert", "vlm") if spec.has_positions(tower, "state")), None)
    return _Places(
        state=spec.positions(owner, "state").start if owner else None,
        action=spec.positions("expert", "action").start,
        last_prefix=(mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1),
    )


def _taps(policy: Policy, layers: Mapping[Key, list[Tensor]], places: _Places) -> dict[str, Tap]:
    """Taps that append [frame, head, d_head] of every layer, in the order in which layers run."""

    def tap(tower: str) -> Tap:
        heads = policy.spec.towers[tower].heads

        def see(z: Tensor, step: int | None) -> None:
            for token in (token for name, token in layers if name == tower):
                read = _READERS[tower][token](z, places)
                # Heads that a layer lacks are zero; a copy, so that no view keeps the whole activation alive.
                layers[tower, token].append(
                    torch.nn.functional.pad(read, (0, 0, 0, heads - read.shape[1])).clone()
                )

        return see

    return {
        site_name(tower, layer, "attn.hook_z"): tap(tower)
        for tower in {tower for tower, _ in layers}
        for layer in range(policy.spec.towers[tower].layers)
    }


def _signals(
    demos: Demonstrations, frames: range, observations: Sequence[Observation], prediction: Tensor
) -> Signals:
    here = slice(frames.start, frames.stop)
    return Signals(
        episode=np.array([demos.episodes[at].index for at in demos.episode_of[here]]),
        frame=demos.frame_of[here],
        instruction=[observation.instruction for observation in observations],
        state=demos.state[here],
        action=demos.action[here],
        prediction=prediction.float().cpu().numpy(),
    )


def _check_finite(z: Z, key: Key, frames: range) -> None:
    broken = ~torch.isfinite(z)
    if broken.any():
        frame, layer, head, _ = broken.nonzero()[0].tolist()
        where = Head(key[0], layer, head)
        raise UsageError(f"z of {where} at {key[1]} is not finite in frame {frames[frame]}")


def thumbnail(image: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def _parquet(table: pa.Table) -> bytes:
    stream = BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()
