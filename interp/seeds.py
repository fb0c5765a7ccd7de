"""Seeds: what may be one, said alike by the library and by the command line."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

from interp.errors import UsageError


def check_seed(seed: int) -> int:
    """The seed itself; NumPy's seeds start at 0 and PyTorch's have 64 bits."""
    if seed < 0:
        raise UsageError(f"seed {seed}: seeds start at 0")
    if seed >= 2**63:
        raise UsageError(f"seed {seed}: seeds have at most 63 bits")
    return seed


def seed(text: str) -> int:
    """What argparse makes of the word behind --seed."""
    value = int(text)
    try:
        return check_seed(value)
    except UsageError as error:
        raise ArgumentTypeError(str(error)) from None


def takes_seed(p: ArgumentParser, help: str, default: int = 0) -> None:
    p.add_argument("--seed", type=seed, default=default, help=help)
