"""Adapters of transformers' pi0 under LeRobot's names, for LeRobot's `make_policy`, and back.

The numbers are those of steering/adapter.py; modules are called as LeRobot's PI0 calls them. `make_policy` reads the
base by the name in adapter_config.json, config.json (`use_peft`) from beside the adapter, and the processors too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

from interp.errors import UsageError
from interp.policies.pi0_layouts import from_transformers, to_transformers
from interp.runs import read_json
from steering import adapter
from steering.adapter import Adapter

_PREFIX = "base_model.model."
_LEROBOT = "model.paligemma_with_expert."


def for_lerobot(found: Adapter) -> Adapter:
    """The same changes under LeRobot's names of the modules."""
    words = [name for name in (*found.changes, *found.whole) if name.endswith("embed_tokens")]
    if words:
        raise UsageError(
            f"the training changed {words[0]}, which LeRobot's pi0 has under two names, so no adapter can hold it: "
            "use --format lerobot"
        )
    return Adapter(
        {_module(name): change for name, change in found.changes.items()},
        {_module(name): tensors for name, tensors in found.whole.items()},
    )


def _module(name: str) -> str:
    return from_transformers(f"{name}.weight", "lerobot").removesuffix(".weight")


@contextmanager
def in_transformers_names(directory: str | Path) -> Iterator[Path]:
    """An adapter as PEFT puts it on transformers' pi0: itself, or a copy with its names changed back."""
    directory = Path(directory)
    config = read_json(directory / adapter.CONFIG)
    if not any(name.startswith(_LEROBOT) for name in config["target_modules"]):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="robosteer-adapter-") as scratch:
        fresh = Path(scratch)
        tensors = load_file(directory / adapter.WEIGHTS)
        back = {_PREFIX + _parameter(name.removeprefix(_PREFIX)): tensor for name, tensor in tensors.items()}
        save_file(back, fresh / adapter.WEIGHTS, {"format": "pt"})
        for setting in ("target_modules", "modules_to_save"):
            config[setting] = config[setting] and [_back(name) for name in config[setting]]
        for setting in ("rank_pattern", "alpha_pattern"):
            config[setting] = {_back(name): rank for name, rank in config[setting].items()}
        (fresh / adapter.CONFIG).write_text(json.dumps(config))
        yield fresh


def _parameter(name: str) -> str:
    for part in (".lora_A.weight", ".lora_B.weight", ".weight", ".bias"):
        if name.endswith(part):
            return _back(name.removesuffix(part)) + part
    raise UsageError(f"the adapter holds {name!r}, which is neither LoRA nor a whole module")


def _back(module: str) -> str:
    found = to_transformers(f"{module}.weight")
    if found is None:
        raise UsageError(f"the adapter is for {module!r}, which is no module of LeRobot's pi0")
    return found.removesuffix(".weight")


def is_lerobots(directory: Path) -> bool:
    """Whether a policy's directory is in LeRobot's layout."""
    config = directory / "config.json"
    return config.is_file() and read_json(config).get("type") == "pi0"
