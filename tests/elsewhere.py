"""A second device on a machine that has only a CPU: `with second_device() as name: load_policy(path, name)`.

What is there lies in main memory all the same, but PyTorch does not know it. An operation that meets tensors from here
and from there fails as on a GPU, and so does `.numpy()`; `float64=False` makes it like Apple's GPUs. What it computes
are the CPU's own numbers, but for the kernels that PyTorch and we choose by device.

The device is called "lazy": a name that PyTorch knows, and that neither it nor we use for anything else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import interp.devices

NAME = "lazy"
_CROSSING = ("aten::_to_copy", "aten::copy_")
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_FLOAT64 = [True]


class There(Tensor):
    """A tensor of the second device; `here` are its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.here = here
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What PyTorch does for devices that it knows, and not for those that are written in Python."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.tolist, Tensor.untyped_storage, Tensor.data_ptr):
                return func(args[0].here)
            if func is Tensor.new_tensor:
                return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **(kwargs or {})}).to(
                    args[0].device
                )
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                at = args[1] if isinstance(args[1], tuple) else (args[1],)
                at = tuple(torch.tensor(each) if isinstance(each, list) else each for each in at)
                args = (args[0], at, *args[2:])
            return func(*args, **(kwargs or {}))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, tensors = (
        func.name().split(".")[0],
        [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)],
    )
    ours = [t for t in tensors if not isinstance(t, There)]
    if name in _INDEXING:
        ours = [t for t in ours if t.is_floating_point()]
    if name not in _CROSSING and any(t.ndim for t in ours):
        raise RuntimeError(f"{func}: tensors on two devices, here one of shape {tuple(ours[0].shape)}")
    leaves = name == "aten::_to_copy" and kwargs.get("device") is not None and kwargs["device"].type == "cpu"
    plain = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
    options = {**plain[1], **({"device": torch.device("cpu")} if plain[1].get("device") is not None else {})}
    out = func(*plain[0], **options)
    if leaves:
        return out.clone()
    if name == "aten::copy_" and not isinstance(args[0], There):
        return args[0]
    out = tree_map(lambda x: _moved(x, func) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if len(ours) < len(tensors) else out


def _moved(tensor: Tensor, func: Any) -> Tensor:
    if tensor.dtype == torch.float64 and not _FLOAT64[0]:
        raise TypeError(f"{func}: this device has no float64")
    return tensor if isinstance(tensor, There) else There(tensor)


# Without tensors among the arguments (zeros, arange) it is the device's name that leads here.
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "Lazy")


class _MadeHere(TorchFunctionMode):
    """What is made by way of the CPU: `torch.tensor([...], device=...)`, and the identity, whose kernel resizes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.eye) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == NAME else device_type, *args, **kwargs)


@contextmanager
def second_device(float64: bool = True) -> Iterator[str]:
    wrong, autocasts = interp.devices._wrong, torch.is_autocast_enabled

    def is_autocast_enabled(*device_type: str) -> bool:
        return autocasts(*("cpu" if each == NAME else each for each in device_type))

    before, _FLOAT64[0] = _FLOAT64[0], float64
    try:
        with (
            mock.patch.object(interp.devices, "_wrong", lambda d: None if d.type == NAME else wrong(d)),
            mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled),
            mock.patch.object(torch, "autocast", _Autocast),
            _safetensors_know_it(),
            _MadeHere(),
        ):
            yield NAME
    finally:
        _FLOAT64[0] = before


@contextmanager
def _safetensors_know_it() -> Iterator[None]:
    """Files of weights are opened for a device by its name."""
    try:
        from interp.policies import pi0_weights
    except ImportError:  # in LeRobot's environment there is no such reader
        yield
        return
    opened = pi0_weights.safe_open

    class Opened:
        def __init__(self, file: Any) -> None:
            self.file = opened(file, "pt")

        def get_tensor(self, name: str) -> Tensor:
            return self.file.get_tensor(name).to(NAME)

    def safe_open(file: Any, framework: str, device: str = "cpu") -> Any:
        there = torch.device(device).type == NAME
        return Opened(file) if there else opened(file, framework, device=device)

    with mock.patch.object(pi0_weights, "safe_open", safe_open):
        yield
