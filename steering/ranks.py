"""Several processes, on one machine or many, as one training: data parallelism over Accelerate.

Every process takes its share of a step's frames, gradients are added up, and all then take the same optimiser step.
What trains is small, so one all-reduce of one flat vector a step is all the traffic; the loss and requests to stop
travel in it. Processes are started by `accelerate launch` (or torchrun); without it there is one, and nothing here
touches the network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from interp.devices import device_of
from interp.errors import UsageError


def local_device(name: str) -> torch.device:
    """`cpu`, `cuda`, ...; among several processes on a machine, `cuda` is each one's own."""
    device = device_of(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def is_first() -> bool:
    """Whether this process is the one that writes and talks; there is one without `accelerate launch`."""
    return int(os.environ.get("RANK", "0")) == 0


class Ranks:
    """This process among those that train together."""

    def __init__(self, device: torch.device) -> None:
        self._state = PartialState(cpu=device.type == "cpu")
        self.device = device

    @property
    def count(self) -> int:
        return int(self._state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._state.is_main_process)

    def share(self, batch: int) -> slice:
        """Which frames of a step are this process's."""
        if batch < self.count:
            raise UsageError(
                f"batch {batch} cannot be shared by {self.count} processes: it needs a frame for each"
            )
        return slice(self._state.process_index, None, self.count)

    def add_up(self, tensors: Sequence[Tensor], *numbers: float) -> tuple[float, ...]:
        """Replace every tensor by its sum over all processes, in place; the numbers' sums are returned."""
        if self.count == 1:
            return numbers
        flat = [*(t.flatten().float() for t in tensors), torch.tensor(numbers, device=self.device)]
        total = reduce(torch.cat(flat), "sum")
        *parts, sums = total.split([len(part) for part in flat])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
        return tuple(sums.tolist())

    def wait(self) -> None:
        """Until all processes are here."""
        self._state.wait_for_everyone()
