"""The other half of an export: load the exported directory in a fresh process and say what it does.

An adapter is put on its base there, by PEFT alone; one for LeRobot's pi0 after its names are changed back. If the base
is of less precision than float32, it is asked once as it is and once in float32 (interp/policies/precision.py).

`python -m steering.verify REQUEST REPLY` is started by steering/export.py. Nothing of the exporting process
is left here: no module objects, no caches, no wrapped layers, only the files that a robot would get.
Observations travel as an npz without pickle, action chunks come back the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import Failure
from interp.policies import Observation, Policy, load_policy
from interp.policies.precision import is_rounded
from steering.adapter import put_on
from steering.pi0_adapter import in_transformers_names


@dataclass(frozen=True)
class Answer:
    """What the policy in a directory is and does, as seen by a fresh process. Robot units."""

    fingerprint: str
    chunks: Float[np.ndarray, "frame horizon action"]
    in_float32: Float[np.ndarray, "frame horizon action"] | None = None
    """The same, computed in float32: of adapters whose base has less precision."""


def chunks_of(
    policy: Policy, observations: Sequence[Observation], seed: int
) -> Float[np.ndarray, "frame horizon action"]:
    """One action chunk a frame, each from its own seeded noise, one frame at a time as on a robot."""
    with torch.no_grad():
        chunks = [
            policy.sample(policy.batch([observation]), policy.noise(1, seed + i))[0]
            for i, observation in enumerate(observations)
        ]
    return torch.stack(chunks).cpu().float().numpy()


def ask_fresh_process(
    directory: Path,
    observations: Sequence[Observation],
    seed: int,
    base: str | None = None,
    device: str = "cpu",
) -> Answer:
    """`chunks_of` the policy in `directory`, computed by a new Python process on that device.

    With `base` (as for `load_policy`) the directory holds an adapter for it, and the fingerprint is the base's.
    """
    with tempfile.TemporaryDirectory(prefix="robosteer-verify-") as scratch:
        request, reply = Path(scratch, "request.npz"), Path(scratch, "reply.npz")
        about: dict[str, Any] = {"seed": seed, "threads": torch.get_num_threads(), "device": device}
        about |= {"directory": str(directory.resolve()), "base": _absolute(base)}
        arrays: dict[str, Any] = {
            f"{i}/image/{camera}": image
            for i, o in enumerate(observations)
            for camera, image in o.images.items()
        }
        arrays |= {f"{i}/state": np.asarray(o.state) for i, o in enumerate(observations)}
        about["instructions"] = [o.instruction for o in observations]
        np.savez(request, about=np.array(json.dumps(about)), **arrays)
        child = subprocess.run(
            [sys.executable, "-m", "steering.verify", str(request), str(reply)],
            cwd=Path(__file__).resolve().parents[1],  # where `steering` and `interp` are importable
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode != 0:
            said = child.stderr.strip()[-2000:]
            raise Failure(
                f"a fresh process (exit status {child.returncode}) could not use {directory}: {said}"
            )
        with np.load(reply, allow_pickle=False) as arrays_back:
            single = arrays_back.get("in_float32")
            return Answer(str(arrays_back["fingerprint"]), arrays_back["chunks"], single)


def _absolute(name: str | None) -> str | None:
    """The child works in another directory."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steering.verify", description=__doc__)
    parser.add_argument("request", type=Path)
    parser.add_argument("reply", type=Path)
    arguments = parser.parse_args()
    with np.load(arguments.request, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        observations = []
        for i, instruction in enumerate(about["instructions"]):
            start = f"{i}/image/"
            images = {
                name.removeprefix(start): arrays[name] for name in arrays.files if name.startswith(start)
            }
            observations.append(Observation(images, arrays[f"{i}/state"], instruction))
    torch.set_num_threads(about["threads"])  # sums are split by thread: same number, same rounding
    answer = answer_of(about["directory"], observations, about["seed"], about["base"], about["device"])
    chunks: dict[str, Any] = {"chunks": answer.chunks}
    if answer.in_float32 is not None:
        chunks["in_float32"] = answer.in_float32
    np.savez(arguments.reply, fingerprint=np.array(answer.fingerprint), **chunks)


def answer_of(
    directory: str | Path, observations: Sequence[Observation], seed: int, base: str | None, device: str
) -> Answer:
    """What `ask_fresh_process` answers, computed by this process."""
    policy = load_policy(base or directory, device)
    if base is None:
        return Answer(policy.fingerprint, chunks_of(policy, observations, seed))
    fingerprint = policy.fingerprint
    with in_transformers_names(directory) as readable:
        put_on(policy, readable)
    chunks = chunks_of(policy, observations, seed)
    if not is_rounded(policy):
        return Answer(fingerprint, chunks)
    policy.module.float()
    return Answer(fingerprint, chunks, chunks_of(policy, observations, seed))


if __name__ == "__main__":
    main()
