"""Transformers' pi0 as a directory that LeRobot loads, written without LeRobot: config, weights, processors.

Source: LeRobot 0.4.4, policies/pi0, processor/{pipeline,normalize_processor,tokenizer_processor}.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from interp.errors import UsageError
from interp.policies import Observation
from interp.policies.preprocessing import FILE, STD_FLOOR, Preprocessing, relative_mask
from steering.pi0_files import (
    CONFIG,
    WEIGHTS,
    Network,
    check_weights,
    not_built,
    precision,
    rescaled,
    resized,
    write_about,
    write_settings,
    write_tokenizer,
    write_weights,
)

if TYPE_CHECKING:
    from interp.policies.pi0 import PI0Policy  # needs transformers 5

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
PALIGEMMA = "google/paligemma-3b-pt-224"
"""The tokenizer that LeRobot's pi0 asks the hub for."""


def lerobot_directory(
    policy: PI0Policy, directory: Path, observations: Sequence[Observation], tokenizer: str
) -> tuple[str, ...]:
    """A directory for LeRobot's `from_pretrained`, `make_policy` and policy server: config, weights, processors.

    `tokenizer` is what the robot's tokenizer step loads (`tokenizer_name`); the files are written here too. Answers
    with what whoever receives the directory has to know.
    """
    directory.mkdir(parents=True)
    notes = lerobot_settings(policy, directory, observations, tokenizer)
    write_weights(policy.module, directory / WEIGHTS, "lerobot")
    write_about(policy, directory, ["clean_prompt"])
    check_weights(policy, directory, "lerobot")
    return notes


def lerobot_settings(
    policy: PI0Policy, directory: Path, observations: Sequence[Observation], tokenizer: str, **config: Any
) -> tuple[str, ...]:
    """`lerobot_directory` without weights. `config` are further settings of config.json."""
    network, features = Network.of(policy), _features(policy, observations)
    write_settings(directory / CONFIG, {**_config(policy, network, features), **config}, indent=4)
    _write_processors(policy, directory, features, tokenizer)
    write_tokenizer(policy.tokenizer, directory)
    return (*not_built(network, "LeRobot"), *_notes(policy, observations, tokenizer))


def _features(policy: PI0Policy, observations: Sequence[Observation]) -> dict[str, dict[str, Any]]:
    """Cameras in the network's order, in the size that the robot's have: the policy server resizes to these."""
    about, seen = policy.preprocessing, observations[0].images
    images = {
        f"observation.images.{camera}": {"type": "VISUAL", "shape": [3, *seen[camera].shape[:2]]}
        for camera in about.cameras
    }
    state = {"type": "STATE", "shape": [about.state_dim]}
    return {
        **images,
        "observation.state": state,
        "action": {"type": "ACTION", "shape": [about.action_dim]},
    }


_NORMALIZATION = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
_SAME = (
    "chunk_size", "max_state_dim", "max_action_dim", "num_inference_steps", "time_sampling_beta_alpha",
    "time_sampling_beta_beta", "time_sampling_scale", "time_sampling_offset", "min_period", "max_period",
)  # fmt: skip


def _config(policy: PI0Policy, network: Network, features: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from LeRobot's defaults or may: fields that a version does not know are an error to it."""
    about, config = policy.preprocessing, policy.module.config
    return {
        "type": "pi0",
        "n_obs_steps": 1,
        "input_features": {name: feature for name, feature in features.items() if name != "action"},
        "output_features": {"action": features["action"]},
        "device": None,  # LeRobot takes the best that it finds
        "paligemma_variant": network.vlm,
        "action_expert_variant": network.expert,
        "dtype": precision(policy.module),
        **{name: getattr(config, name) for name in _SAME},
        "n_action_steps": min(about.execute, config.chunk_size),
        "image_resolution": [about.image_size, about.image_size],
        "empty_cameras": 0,
        "normalization_mapping": _NORMALIZATION,
        "tokenizer_max_length": about.max_tokens,
        **_relative_settings(about),
    }


def _relative_settings(about: Preprocessing) -> dict[str, Any]:
    """Settings of LeRobot from 0.5.1 on, where a policy acts in deltas: older ones refuse what has them."""
    step = _relative_step(about)
    if not step:
        return {}
    return {
        "use_relative_actions": True,
        "relative_exclude_joints": step["exclude_joints"],
        "action_feature_names": step["action_names"],
    }


def _relative_step(about: Preprocessing) -> dict[str, Any]:
    """Of the step that takes the state from actions, by names: those of which an excluded one is a part are kept."""
    if not about.acts_in_deltas:
        return {}
    numbered = tuple(f"action_{at:03}" for at in range(about.action_dim))
    for names in (about.named("action"), numbered):
        excluded = [name for name, delta in zip(names, about.delta_actions, strict=True) if not delta]
        step = {"enabled": True, "exclude_joints": excluded, "action_names": list(names)}
        if relative_mask({"config": step}, about.action_dim) == about.delta_actions:
            break
    return step


def _write_processors(
    policy: PI0Policy, directory: Path, features: Mapping[str, Any], tokenizer: str
) -> None:
    about: Preprocessing = policy.preprocessing
    if about.prompt_suffix not in ("", "\n"):
        raise UsageError(
            f"prompt_suffix {about.prompt_suffix!r}: LeRobot's pi0 ends an instruction with a new line or nothing"
        )
    words = {
        "max_length": about.max_tokens,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": tokenizer,
    }
    norm = {"eps": STD_FLOOR, "features": dict(features), "norm_map": _NORMALIZATION}
    unnorm = {**norm, "features": {"action": features["action"]}}
    device = {"device": "cpu", "float_dtype": None}
    before = [
        ("rename_observations_processor", {"rename_map": {}}),
        ("to_batch_processor", {}),
        *([("pi0_new_line_processor", {})] if about.prompt_suffix else []),
        ("tokenizer_processor", words),
        ("device_processor", device),
        *([("relative_actions_processor", relative)] if (relative := _relative_step(about)) else []),
        ("normalizer_processor", norm),
    ]
    after = [
        ("unnormalizer_processor", unnorm),
        *([("absolute_actions_processor", {"enabled": True})] if relative else []),
        ("device_processor", device),
    ]
    statistics = {
        f"{feature}.{kind}": torch.tensor(values, dtype=torch.float32)
        for feature, stats in (("observation.state", about.state), ("action", about.action))
        for kind, values in rescaled(stats, STD_FLOOR).items()
    }
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        written = []
        for at, (step, config) in enumerate(steps):
            entry: dict[str, Any] = {"registry_name": step, "config": config}
            if step.endswith("normalizer_processor"):
                entry["state_file"] = f"{name}_step_{at}_{step}.safetensors"
                save_file(statistics, directory / entry["state_file"])
            written.append(entry)
        write_settings(directory / f"{name}.json", {"name": name, "steps": written})


def tokenizer_name(policy: PI0Policy, directory: Path, given: str | None) -> str:
    """What the robot's tokenizer step loads: as given, PaliGemma's from the hub if it is that, else the export's own.

    The step knows hub ids and paths only, and a path is taken from where the robot's program runs.
    """
    if given:
        return given
    words = policy.tokenizer.get_vocab()
    if words.get("<loc0000>") == 256000 and words.get("<seg127>") == 257151:
        return PALIGEMMA
    return str(directory.resolve())


def _notes(policy: PI0Policy, observations: Sequence[Observation], tokenizer: str) -> Iterator[str]:
    if policy.preprocessing.acts_in_deltas:
        yield (
            "the policy acts in deltas, which LeRobot knows from 0.5.1 on (older ones refuse its settings); "
            "lerobot-rollout needs --inference.type=rtc for them (with its default, sync, 0.6.1 stops), "
            "or serve it with LeRobot's policy server"
        )
    elif policy.preprocessing.images == "openpi":  # as in pi0_openpi.py
        yield (
            "if its configuration in openpi has DeltaActions (extra_delta_transform, Aloha), the robot would move "
            f"wrongly: say so in {FILE} (delta_actions) before finetuning"
        )
    if tokenizer == PALIGEMMA:
        yield f"the robot reads the tokenizer {PALIGEMMA} from the hub, whose licence has to be accepted there"
    elif Path(tokenizer).is_absolute():
        yield "the robot reads the tokenizer by a path: if it moves, change tokenizer_name in policy_preprocessor.json"
    yield from resized(policy, observations, "lerobot", "LeRobot 0.4")
    yield from resized(policy, observations, "lerobot-0.5", "LeRobot from 0.5 on")
    if policy.preprocessing.clean_prompt:
        yield "LeRobot takes instructions as they are: write them without underscores and line breaks"
    if precision(policy.module) == "bfloat16":
        tower = policy.module.model.vlm.vision_tower.encoder
        also = "" if next(tower.parameters()).dtype == torch.float32 else ", and 0.6 all of vision"
        yield f"LeRobot keeps norms and projections in float32{also}: actions differ by bfloat16's rounding"
