"""Policies: the Protocol that the toolkit speaks to, one file a family, and `load_policy`.

What a policy is can be said without torch, which takes seconds to import: the dashboard reads runs and loads none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from interp.devices import device_of
from interp.errors import UsageError
from interp.policies.protocol import Batch, Block, Observation, Policy, Prefix
from interp.policies.spec import Letterbox, PolicySpec, TokenSpan, TowerSpec

if TYPE_CHECKING:
    import torch

__all__ = [
    "Batch",
    "Block",
    "Letterbox",
    "NotHere",
    "Observation",
    "Policy",
    "PolicySpec",
    "Prefix",
    "TokenSpan",
    "TowerSpec",
    "load_policy",
    "policy_directory",
]


class NotHere(UsageError):
    """A policy of the hub of which this machine has no copy yet."""


def load_policy(name: str | Path, device: str | torch.device = "cpu") -> Policy:
    """`tiny-pi0` (the embedded default), a directory, or a hub id. Weights that do not fit their config are
    an error.
    """
    device = device_of(device)
    directory = policy_directory(str(name))
    config = directory / "config.json"
    if not config.is_file():
        if (directory / "assets").is_dir() and any(directory.glob("model.safetensors*")):  # openpi's trainer
            return _load_pi0(directory, device, str(name))
        raise UsageError(f"{directory} is not a policy: it has no config.json")
    try:
        about = json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{config} is broken: {error}") from error
    family = about.get("model_type")
    if family is None and "type" in about:  # LeRobot's layout
        if about["type"] == "pi0" and not _lerobot_runs_pi0():
            return _load_pi0(directory, device, str(name))
        return _load_lerobot(directory, about["type"], device, str(name))
    if family is None and "paligemma_variant" in about:  # openpi's converter
        return _load_pi0(directory, device, str(name))
    families: dict[str, Callable[[], Policy]] = {"pi0": lambda: _load_pi0(directory, device, str(name))}
    if family not in families:
        raise UsageError(
            f"{directory} holds a {family!r} model: families known here are {', '.join(families)}"
        )
    return families[family]()


def _load_pi0(directory: Path, device: str | torch.device, source: str) -> Policy:
    try:
        from interp.policies.pi0 import (
            PI0Policy,
        )  # transformers takes seconds to import; only loading needs it
    except ImportError as error:
        raise UsageError(
            f"{directory} holds transformers' PI0, which needs transformers 5.23 or newer ({error}): "
            "use the core environment (make setup)"
        ) from error

    return PI0Policy.load(directory, device, source)


def _lerobot_runs_pi0() -> bool:
    """LeRobot 0.4's PI0 runs on a branch of transformers alone, 0.5 brings what it needs; elsewhere transformers' own
    PI0 serves.
    """
    from interp.policies.lerobot import installed

    if not installed():
        return False
    for module in ("lerobot.policies.pi_gemma", "transformers.models.siglip.check"):
        try:
            import_module(module)
            return True
        except ImportError:
            continue
    return find_spec("transformers.models.pi0") is None  # nothing serves: LeRobot says best what it lacks


def _load_lerobot(directory: Path, kind: str, device: str | torch.device, source: str) -> Policy:
    from interp.policies.lerobot import load

    return load(directory, kind, device, source)


def policy_directory(name: str, *, local_files_only: bool = False) -> Path:
    """Where a policy of that name lies; asks the hub for what is neither embedded nor a directory, or with
    `local_files_only` its cache here: gigabytes may come otherwise. NotHere if that has no copy."""
    if name == "tiny-pi0":
        from testbed import TINY_PI0

        return Path(TINY_PI0)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, local_files_only=local_files_only))
        except Exception as error:  # offline, not found, not allowed: the hub has a dozen classes for it
            if local_files_only and isinstance(error, LocalEntryNotFoundError):
                raise NotHere(f"policy {name!r} is no directory, and not loaded from the hub yet") from error
            first = str(error).strip().splitlines()[0]
            raise UsageError(
                f"policy {name!r} is no directory, and the hub has no answer: {first}"
            ) from error
    raise UsageError(f"unknown policy {name!r}: give tiny-pi0, a directory, or a hub id like owner/name")
