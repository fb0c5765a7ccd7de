"""Frames of openpi's websocket protocol: msgpack, with numpy arrays as maps.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [224, 224, 3]}
    scalar   {b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}

The wire format is that of openpi-client (msgpack_numpy.py); reading it here trusts nobody: only bool, integer,
float and text dtypes, shapes that fit their data, maps and lists of bounded size, and msgpack's own limits. There is
no pickle in it anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from interp.errors import UsageError

KINDS = "biufSU"
"""numpy's kinds of dtype that a frame may hold: no objects, no structures, no complex numbers, no dates."""

LONGEST = 4096
"""Entries of a map or a list: an observation has a dozen, and arrays travel as bytes. msgpack reserves memory by what a
header claims, before it sees any entry."""
ENTRIES = 2**16
"""Entries of all maps and lists of a frame together: a byte on the wire can become a hundred in memory."""


class FrameError(UsageError):
    """A frame that is not part of the protocol."""


def pack(message: Mapping[str, Any]) -> bytes:
    packed = msgpack.packb(message, default=_pack_array)
    assert isinstance(packed, bytes)
    return packed


def unpack(frame: bytes) -> dict[str, Any]:
    """The map in a frame. Arrays are read-only views of the frame's bytes."""
    left = ENTRIES

    def counted(found: Any) -> Any:
        nonlocal left
        left -= 1 + len(found)
        if left < 0:
            raise FrameError(
                f"frame with more than {ENTRIES} entries in maps and lists: send numbers as numpy arrays"
            )
        return found

    try:
        message = msgpack.unpackb(
            frame,
            object_hook=lambda found: _unpack_array(counted(found)),
            list_hook=counted,
            max_map_len=LONGEST,
            max_array_len=LONGEST,
        )
    except FrameError:
        raise
    except (
        Exception
    ) as error:  # msgpack has half a dozen classes for what can be wrong, and ValueError for more
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FrameError(f"frame of {len(frame)} bytes is not msgpack: {reason}") from error
    if not isinstance(message, dict):
        raise FrameError(f"frame holds a {type(message).__name__}: an observation is a map of keys to values")
    return message


def _pack_array(value: object) -> object:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(
            f"{type(value).__name__} cannot be sent: use numbers, text, lists, maps and numpy arrays"
        )
    _checked(value.dtype)
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _unpack_array(found: dict[Any, Any]) -> object:
    if b"__ndarray__" in found:
        dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not whole or not isinstance(data, bytes):
            raise FrameError(f"an array needs bytes and a shape of whole numbers from 0, not {_short(shape)}")
        assert isinstance(shape, list)
        needed = dtype.itemsize
        for n in shape:
            needed *= n  # Python's integers: nothing overflows
        if needed != len(data) or len(shape) > 16:
            raise FrameError(
                f"array {_short(shape)} of {dtype} needs {needed} bytes, the frame has {len(data)}"
            )
        return np.ndarray(shape, dtype, data)
    if b"__npgeneric__" in found:
        dtype = _dtype(found)
        try:
            return dtype.type(found.get(b"data"))
        except (TypeError, ValueError, OverflowError) as error:
            raise FrameError(f"{_short(found.get(b'data'))} is no {dtype}") from error
    return found


def _dtype(found: Mapping[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or len(name) > 16:
        raise FrameError(f"an array needs a dtype such as '<f4', not {_short(name)}")
    try:
        return _checked(np.dtype(name))
    except (TypeError, ValueError, SyntaxError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(f"an array needs a dtype such as '<f4', not {_short(name)}") from error


def _checked(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in KINDS or dtype.hasobject or not dtype.itemsize:
        raise FrameError(f"dtype {dtype.str} is refused: send bool, integer, float or text arrays")
    return dtype


def _short(value: object) -> str:
    text = repr(value[:40] if isinstance(value, bytes | str | list) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
