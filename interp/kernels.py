"""Faster kernels for stacked passes: linear layers through oneDNN where PyTorch would take MKL.

On AMD processors MKL keeps to AVX2 and oneDNN uses AVX-512: 97 against 200 GFLOP/s on the machine that this was written
on, for 585 x 128 @ 128 x 384. Small products are faster in MKL, so only stacked passes go this way. Both are float32;
they differ by the order of their sums. Elsewhere than on CPUs nothing changes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ROWS = 160
"""Below, oneDNN's call costs more than it saves."""
_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class StackedLinears(TorchFunctionMode):
    """A context in which large float32 linear layers run on oneDNN, when no gradients are recorded."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.linear and not kwargs and _suits(*args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        _AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= _ROWS * x.shape[-1]
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
    )
