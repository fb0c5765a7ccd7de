"""pi0's weights from disk into the network, tensor by tensor, in any of the layouts of pi0_layouts.py.

The network is built without memory for its weights; then every tensor is checked and put in its place, mapped from the
file: loading needs the network's own size, which processes on one machine share. Nothing is left to chance: every
tensor of the files has a place, every place gets a tensor, shapes agree, and what is wrong is named as the file names
it.

Precision is that of the file. openpi and LeRobot compute in bfloat16 but keep three parts in float32 whatever the file
holds: the first layers of vision, the norms of the Gemmas, and the projections of state, action and time. So do we.
LeRobot 0.6 keeps all of vision in float32, up to the projector, and its files hold that: it stays so, and the Gemmas
stay bfloat16.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PI0Config, PI0ForConditionalGeneration

from interp.errors import UsageError
from interp.policies.pi0_layouts import Layout, from_transformers, layout_of, to_transformers

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UNREAD = "model.dit.embed_tokens.weight"
"""The expert's word embeddings: nothing reads them, and some files leave them out."""
UNTIED: tuple[Layout, ...] = ("lerobot",)
"""Where word embeddings under two names may differ: from 0.5 on LeRobot ties them no longer, and reads embed_tokens."""
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies on disk."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Stored:
    """The tensors of a directory by the names of transformers' state_dict. `twins` are there a second time."""

    directory: Path
    layout: Layout
    places: Mapping[str, Place]
    twins: Mapping[str, Place]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self.places.items()}

    def wrong(self, problem: str, names: list[str], why: str = "") -> UsageError:
        why = why or "config.json and the weights are not of one model"
        return UsageError(
            f"cannot load the policy in {self.directory}: {len(names)} {problem} keys in the weights, "
            f"first {min(names)} ({self.layout} layout); {why}"
        )


def open_weights(directory: Path) -> Stored:
    """Names, shapes and precisions; the numbers stay on disk."""
    found: dict[str, Place] = {}
    for file in _files(directory):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    if part.get_dtype() not in _FLOATS:
                        raise UsageError(
                            f"cannot load the policy in {directory}: {name} is {part.get_dtype()}, "
                            f"known are {', '.join(_FLOATS)}; give weights that are not quantised"
                        )
                    if name in found:
                        raise UsageError(
                            f"cannot load the policy in {directory}: {name} is in {found[name].file.name} and in "
                            f"{file.name}"
                        )
                    found[name] = Place(file, name, tuple(part.get_shape()), _FLOATS[part.get_dtype()])
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"cannot load the policy in {directory}: {file.name} is cut off or broken: {error}"
            ) from error
    try:
        layout = layout_of(found)
    except UsageError as error:
        raise UsageError(f"cannot load the policy in {directory}: {error}") from error
    places: dict[str, Place] = {}
    twins: dict[str, Place] = {}
    unexpected = []
    untied = layout in UNTIED  # there the later name, embed_tokens, is what is read
    for name in sorted(found, reverse=untied):
        ours = to_transformers(name)
        if ours is None:
            unexpected.append(name)
        else:
            (twins if ours in places else places)[ours] = found[name]
    stored = Stored(directory, layout, places, twins)
    if unexpected:
        raise stored.wrong("unexpected", unexpected, "they are no pi0's")
    return stored


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.is_file():
        if not (directory / WEIGHTS).is_file():
            raise UsageError(f"cannot load the policy in {directory}: it has no {WEIGHTS} and no {INDEX}")
        return [directory / WEIGHTS]
    try:
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise UsageError(f"cannot load the policy in {directory}: {INDEX} is broken: {error}") from error
    for part in parts:
        if Path(part).name != part or not (directory / part).is_file():
            raise UsageError(
                f"cannot load the policy in {directory}: {INDEX} names {part}, which is not there; "
                "download the whole directory"
            )
    return [directory / part for part in parts]


def load_network(
    config: PI0Config, stored: Stored, device: str | torch.device
) -> PI0ForConditionalGeneration:
    """The network of that configuration with the stored weights, each of which it must have and get."""
    module: Any
    with init_empty_weights(include_buffers=False):
        module = PI0ForConditionalGeneration(config)
    _check(module, stored)
    dtypes = precisions(stored)
    files = {place.file for place in (*stored.places.values(), *stored.twins.values())}
    opened = {file: safe_open(file, "pt", device=str(device)) for file in files}

    def tensor(place: Place) -> Tensor:
        read: Tensor = opened[place.file].get_tensor(place.name)
        return read

    for name, place in stored.places.items():
        _put(module, name, tensor(place).to(dtypes[name]))
    for name, twin in stored.twins.items():
        if stored.layout not in UNTIED and not torch.equal(tensor(stored.places[name]), tensor(twin)):
            first = stored.places[name].name
            raise stored.wrong(
                "contradicting", [twin.name], f"it is the same tensor as {first} and differs from it"
            )
    if UNREAD not in stored.places:
        shape = module.get_parameter(UNREAD).shape
        _put(module, UNREAD, torch.zeros(shape, dtype=_body(stored), device=device))
    module = module.to(device)
    empty = [name for name, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    if empty:
        raise stored.wrong("unfilled", empty)
    cast_between_parts(module)
    module.config.dtype = _body(stored)
    loaded: PI0ForConditionalGeneration = module.eval()
    return loaded


def _check(module: nn.Module, stored: Stored) -> None:
    own, found = {name: tuple(t.shape) for name, t in module.state_dict().items()}, stored.shapes
    missing = [from_transformers(name, stored.layout) for name in own.keys() - found.keys() - {UNREAD}]
    unexpected = [stored.places[name].name for name in found.keys() - own.keys()]
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise stored.wrong(problem, names)
    places = [*stored.places.items(), *stored.twins.items()]
    for name, place in sorted(places, key=lambda each: each[0]):
        if place.shape != own[name]:
            raise stored.wrong(
                "mismatched",
                [place.name],
                f"its shape is {place.shape}, the network of config.json has {own[name]}",
            )


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    holder = module.get_submodule(owner)
    if last in holder._parameters:
        holder._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        holder._buffers[last] = tensor


# ---- precision


def _part(name: str) -> str:
    if name.startswith(("embed_action_time.", "action_out_proj.")):
        return "projections"
    if name.startswith("model.vlm.vision_tower.embeddings."):
        return "patches"
    if name.startswith(("model.vlm.vision_tower.", "model.vlm.multi_modal_projector.")):
        return "vision"
    gemma = name.startswith(("model.vlm.language_model.", "model.dit."))
    return "norms" if gemma and "norm." in name else "body"


def precisions(stored: Stored) -> dict[str, torch.dtype]:
    """What each tensor is computed in: never less than its file holds."""
    raised = stored.layout in ("openpi", "lerobot")
    by_part: dict[str, set[torch.dtype]] = {}
    for name, place in stored.places.items():
        by_part.setdefault(_part(name), set()).add(place.dtype)
    body, vision = (by_part.get(part, set()) for part in ("body", "vision"))
    if len(body) > 1 or (vision != body and vision != {torch.float32}):
        return dict.fromkeys(stored.places, torch.float32)

    def of(name: str, place: Place) -> torch.dtype:
        part = _part(name)
        if part in ("body", "vision") or (part == "norms" and not raised):
            return place.dtype
        return torch.float32 if raised or len(by_part[part]) > 1 else place.dtype

    return {name: of(name, place) for name, place in stored.places.items()}


def _body(stored: Stored) -> torch.dtype:
    found = precisions(stored)
    return next(dtype for name, dtype in found.items() if _part(name) == "body")


def cast_between_parts(module: Any) -> None:
    """Lets parts of different precision follow each other, as openpi does. Where all is alike it changes nothing."""
    model = module.model
    tower, body = model.vlm.vision_tower, model.dit.layers[0].self_attn.q_proj
    patches, vision = tower.embeddings, tower.encoder.layers[0].self_attn.q_proj
    if patches.patch_embedding.weight.dtype != vision.weight.dtype:
        patches.register_forward_hook(partial(_leave_as, vision))
    # From vision to the words transformers casts by itself.
    if module.action_out_proj.weight.dtype != body.weight.dtype:
        module.embed_action_time.register_forward_hook(partial(_leave_as, body))
        module.action_out_proj.register_forward_pre_hook(_enter_as_weight)


def _leave_as(follower: nn.Linear, module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out.to(follower.weight.dtype)


def _enter_as_weight(module: nn.Linear, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].to(module.weight.dtype), *args[1:])
