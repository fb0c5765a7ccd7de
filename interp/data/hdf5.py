"""Opening HDF5 files, and what they lack in one line."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UsageError


@contextmanager
def hdf5(path: Path, mode: str = "r") -> Iterator[Any]:
    """An h5py.File."""
    try:
        import h5py
    except ImportError as error:
        raise UsageError("HDF5 files need h5py: pip install 'robosteer[hdf5]'") from error
    if mode == "r" and not path.is_file():
        raise UsageError(f"{path} does not exist")
    try:
        file = h5py.File(path, mode)
    except OSError as error:
        if error.errno is not None:  # of the system's: HDF5's own have none
            raise UsageError(f"{path} cannot be opened: {os.strerror(error.errno)}") from error
        raise UsageError(f"{path} is broken: {str(error).splitlines()[0]}") from error
    with file:
        try:
            yield file
        except OSError as error:  # a cut file fails where its content is read
            if error.errno is not None:  # such as a disk that is full, where somebody writes
                raise
            raise UsageError(f"{path} is broken: {str(error).splitlines()[0]}") from error


def array(group: Any, key: str, path: Path) -> np.ndarray:
    """A dataset's content; one that is missing is named with what is there instead."""
    import h5py

    found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        parent = group.get(key.rpartition("/")[0]) if "/" in key else group
        has = ", ".join(parent) if isinstance(parent, h5py.Group) else ", ".join(group)
        raise UsageError(f"{path}: no {f'{group.name}/{key}'.lstrip('/')}; there is {has or 'nothing'}")
    return np.asarray(found[()])


def matrix(group: Any, keys: Sequence[str], path: Path) -> np.ndarray:
    """[frame, dim] float32 of several datasets side by side; a plain list of numbers is one dimension."""
    parts = [array(group, key, path) for key in keys]
    lengths = {len(part) for part in parts}
    if len(lengths) > 1:
        raise UsageError(f"{path}: {group.name} has {' and '.join(map(str, sorted(lengths)))} frames")
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.float32)
