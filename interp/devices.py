"""Where a policy computes.

A device is PyTorch's, by PyTorch's name, and is checked before anything is loaded onto it. It changes how long numbers
take and how they are rounded, nothing else: noise is drawn on the CPU, and what is stored comes back there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEVICES = "cpu, cuda, cuda:1, mps"
"""What help and errors say can be named."""


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name, which this machine must have."""
    import torch  # takes seconds; who computes nothing does without

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UsageError(f"device {name}: known are {DEVICES}") from None
    if wrong := _wrong(device):
        raise UsageError(f"device {name}: {wrong}")
    return device


def _wrong(device: torch.device) -> str | None:
    """Why nothing can be computed there."""
    import torch

    if device.type == "cpu":
        return None
    if device.type == "mps":
        return None if torch.backends.mps.is_available() else "this machine has no MPS; use cpu"
    if device.type != "cuda":
        return f"known are {DEVICES}"
    if not torch.backends.cuda.is_built():
        return "this PyTorch is built without CUDA; use cpu, or install one with it"
    count = torch.cuda.device_count()
    if not count:
        return "this machine has no CUDA; use cpu"
    if (device.index or 0) >= count:
        return f"this machine has {'cuda:0 alone' if count == 1 else f'cuda:0 to cuda:{count - 1}'}"
    return None


def exactly(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: there are devices that have no float64."""
    return tensor.cpu().double()
