"""Directories in LeRobot's layout: config.json, model.safetensors, and the two processors with their statistics.

Weights are read here rather than by LeRobot's `from_pretrained`, which for PI0 answers with random weights when a file
does not fit: every tensor of the file must be one of the network's and the other way round.
"""

import contextlib
import copy
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import UsageError
from interp.policies.preprocessing import FILE
from interp.policies.protocol import Observation
from interp.runs import read_json, whole_directory, write_json

if TYPE_CHECKING:
    from interp.policies.lerobot.policy import LeRobotPolicy

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


def read_config(directory: Path) -> Any:
    """LeRobot's configuration. To LeRobot all is on the CPU here: who needs the policy elsewhere moves it."""
    for name in (WEIGHTS, PREPROCESSOR, POSTPROCESSOR):
        if not (directory / name).is_file():
            raise UsageError(f"{directory} is no LeRobot policy: it has no {name}")
    with _loading(directory):
        config = PreTrainedConfig.from_pretrained(str(directory))
        config.device = "cpu"
        return config


def read_processors(
    directory: Path,
    config: Any,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """The pre-processor and the post-processor; `before` and `after` replace settings of their steps, by step."""
    with _loading(directory):
        pre, post = make_pre_post_processors(
            config,
            pretrained_path=str(directory),
            preprocessor_overrides={"device_processor": {"device": "cpu"}, **(before or {})},
            postprocessor_overrides=dict(after or {}),
        )
        return pre, post


def read_network(directory: Path, config: Any, device: str | torch.device) -> Any:
    """LeRobot's policy with the weights of the directory, on the device."""
    with _loading(directory):
        module = _built(get_policy_class(config.type), config)
        _fill(module, load_file(directory / WEIGHTS), directory)
        return module.to(device)


def read_cameras(directory: Path) -> tuple[str, ...] | None:
    """Those that the robot has, where robosteer.json says so; None: all of the configuration's."""
    file = directory / FILE
    found = read_json(file).get("cameras") if file.is_file() else None
    if found is None:
        return None
    if not isinstance(found, list) or not found or not all(isinstance(camera, str) for camera in found):
        raise UsageError(f"{file}: cameras must be a list of names, at least one, not {json.dumps(found)}")
    return tuple(found)


def read_rate(directory: Path) -> float | None:
    """Actions a second [Hz], where robosteer.json says so: LeRobot's layout has no place for it."""
    file = directory / FILE
    found = read_json(file).get("fps") if file.is_file() else None
    if found is not None and (not isinstance(found, int | float) or not found > 0):
        raise UsageError(f"{file}: fps must be a positive number, not {json.dumps(found)}")
    return found


@contextlib.contextmanager
def _loading(directory: Path) -> Iterator[None]:
    """In silence, and what goes wrong in one line."""
    try:
        with quiet():
            yield
    except UsageError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        lines = str(error).strip().splitlines()
        first = lines[0] if lines else ""
        raise UsageError(f"cannot load the policy in {directory}: {type(error).__name__}: {first}") from error


def _built(kind: Any, config: Any) -> Any:
    """The network, without fetching the vlm's own weights, which those of the policy would replace at once."""
    if not getattr(config, "load_vlm_weights", False):
        return kind(config)
    config.load_vlm_weights = False
    try:
        return kind(config)
    finally:
        config.load_vlm_weights = True


def _fill(module: Any, tensors: dict[str, Tensor], directory: Path) -> None:
    own, found = module.state_dict(), _renamed(module, tensors)
    # One tensor under two names is stored once.
    places: dict[int, list[str]] = {}
    for name, tensor in own.items():
        places.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), []).append(name)
    for names in places.values():
        stored = next((name for name in names if name in found), None)
        found.update({name: found[stored] for name in names if stored and name not in found})
    missing, unexpected = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    wrong = [name for name, tensor in found.items() if name in own and own[name].shape != tensor.shape]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", wrong)):
        if names:
            raise UsageError(
                f"cannot load the policy in {directory}: {len(names)} {problem} keys in the weights, first {names[0]}; "
                f"{CONFIG} and {WEIGHTS} are not of one model"
            )
    # A network that LeRobot builds on its vlm's own weights has their precision: that of the file.
    if getattr(module.config, "load_vlm_weights", False):
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(found[name].dtype)
    module.load_state_dict(found, strict=True)


def _renamed(module: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """LeRobot's own corrections of older files' names."""
    own = vars(sys.modules[type(module).__module__])
    vendored = own.get("_is_vendored_florence_state_dict")  # X-VLA: before 0.6, Florence-2 was LeRobot's own
    if vendored is not None and vendored(tensors):
        return dict(own["_remap_vendored_florence_state_dict"](tensors))
    correct = getattr(module, "_fix_pytorch_state_dict_keys", None)
    if correct is None:
        return dict(tensors)
    corrected = correct(tensors, module.config)
    return {name if name.startswith("model.") else f"model.{name}": t for name, t in corrected.items()}


def save(policy: "LeRobotPolicy", target: Path) -> None:
    """A directory that LeRobot's `from_pretrained`, `make_policy` and policy server load; there completely or not."""
    if target.exists() and not (target / CONFIG).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not a policy: give an empty or new directory")
    with whole_directory(target) as fresh:
        with quiet():
            policy.module.save_pretrained(fresh)
        save_settings(policy, fresh)


def save_settings(policy: "LeRobotPolicy", directory: Path, **changes: Any) -> None:
    """config.json, the processors, and robosteer.json if the robot lacks a camera of the configuration's or the rate is
    known.

    `changes` are other values of settings of config.json.

    The configuration names no device: LeRobot then takes the best of the robot's, and of a named one it would not.
    A processor has to name one, and LeRobot's programs replace it by the policy's.
    """
    config = copy.copy(policy.module.config)
    for name, value in {"device": None, **changes}.items():
        setattr(config, name, value)
    with quiet():
        config.save_pretrained(directory)
        policy.preprocessor.save_pretrained(directory)
        policy.postprocessor.save_pretrained(directory)
    about: dict[str, Any] = {"cameras": list(policy.spec.cameras)} if policy.absent else {}
    if policy.spec.fps is not None:
        about["fps"] = policy.spec.fps
    if about:
        write_json(directory / FILE, about)


def fit_cameras(policy: "LeRobotPolicy", directory: Path, seen: Observation) -> tuple[str, ...]:
    """Names in config.json the sizes of the cameras of `seen`; answers with notes for whoever gets the directory.

    LeRobot's policy server stretches images to those sizes before the network letterboxes them, which it is trained
    on alone. A training that starts from a base keeps the base's sizes (256 x 256 of smolvla_base), and squares are
    then what the server makes of a 4:3 camera.
    """
    if policy.spec.anchor == "stretch":  # the sizes are all that such a network has its square from
        return ()
    config = read_json(directory / CONFIG)
    changed = []
    for camera, key in policy.keys.items():
        feature, size = config["input_features"][key], list(seen.images[camera].shape[:2])
        if feature["shape"][-2:] != size:
            feature["shape"] = [3, *size]
            changed.append(f"{camera} {size[0]} x {size[1]}")
    if not changed:
        return ()
    write_json(directory / CONFIG, config)
    return (
        f"config.json has the cameras' sizes as demonstrated ({', '.join(changed)}): LeRobot's policy server stretches "
        "images to these before the network letterboxes them; for cameras of another shape, change them there",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what LeRobot prints and warns about while it loads."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
