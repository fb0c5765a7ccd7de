"""Training checkpoints: one safetensors file that holds everything the next step depends on.

    parameter/<name>      trained parameters (only those: the rest is the base policy), in float32 at least
    exp_avg/<name>, ...   the optimiser's state, one tensor a key of AdamW
    average/<name>        their average over the steps, if the recipe keeps one
    metadata "robosteer"  JSON: the fields of `Checkpoint`

One file, so that weights, moments and step can never be of different steps; written under another name and
renamed, so that a kill or a full disk leaves the previous checkpoint whole. No pickle. There is no random
state to keep: every step's draws are a function of (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from interp.errors import UsageError
from interp.runs import write_atomic

PARAMETER, AVERAGE = "parameter", "average"
Average = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """How far a training has come. `loss` is the last step's; seconds (the wall's and the processor's) and
    `peak_memory_mb` are of all that was trained so far, however often it was resumed."""

    step: int
    seconds: float
    loss: float
    peak_memory_mb: float = 0.0
    processor_seconds: float = 0.0


def save_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    average: Average | None = None,
) -> None:
    tensors = {f"{PARAMETER}/{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"{AVERAGE}/{name}": value for name, value in (average or {}).items()}
    for name, p in parameters.items():
        for key, value in optimiser.state[p].items():
            tensors[f"{key}/{name}"] = value
    packed = {name: t.cpu().contiguous() for name, t in tensors.items()}
    write_atomic(path, save(packed, {"robosteer": json.dumps(vars(checkpoint))}))


def load_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    average: Average | None = None,
) -> Checkpoint:
    """Restore parameters, optimiser and average in place."""
    try:
        with safe_open(path, "pt") as file:
            checkpoint = Checkpoint(**json.loads(file.metadata()["robosteer"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"checkpoint {path} is broken ({error}): delete it to start again") from error
    state: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    with torch.no_grad():
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if name not in parameters or tensor.shape not in (parameters[name].shape, torch.Size([])):
                raise UsageError(f"checkpoint {path} holds {name}, which does not train here: delete it")
            if kind == PARAMETER:
                parameters[name].copy_(tensor)
            elif kind == AVERAGE:
                if average is not None:
                    average[name].copy_(tensor)
            else:
                state[name][kind] = tensor.to(parameters[name]) if tensor.ndim else tensor
    for name, parameter in parameters.items():
        if state[name]:  # a parameter that never had a gradient has none
            optimiser.state[parameter] = state[name]
    return checkpoint


def steps_in(path: Path) -> int:
    """How many steps a checkpoint has behind it."""
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["robosteer"])["step"])
