"""Directories that hold a pi0, whoever made them: configuration, preprocessing and tokenizer of each kind.

transformers   config.json (model_type pi0), robosteer.json, tokenizer files
lerobot        config.json (type pi0), policy_preprocessor.json with the statistics beside it
openpi         assets/<id>/norm_stats.json; config.json if converted by openpi's script, none if trained by its trainer

The weights lie in model.safetensors, or in parts that model.safetensors.index.json lists. What the last two do not say
stands in robosteer.json, any of whose fields replaces what is derived here; besides those of preprocessing.py it may
hold `tokenizer` (a directory or hub id) and `network` (fields of transformers' PI0Config).

Sources: openpi examples/convert_jax_model_to_pytorch.py, shared/normalize.py, models/tokenizer.py;
lerobot/policies/pi0, lerobot/processor/normalize_processor.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PI0Config, PreTrainedTokenizerBase

from interp.errors import UsageError
from interp.policies.pi0_weights import Stored, open_weights
from interp.policies.preprocessing import FILE, SCHEMA, Preprocessing, Statistics, relative_mask

PALIGEMMA = "google/paligemma-3b-pt-224"
"""Whose tokenizer pi0 was trained with."""
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""openpi's names of the images, in the network's order (models/model.py)."""
_MAX_TOKENS, _FLOOR, _SO400M = 48, 1e-6, (1152, 16)
_RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_STATE, _ACTION = "observation.state", "action"
_SAME = ("chunk_size", "max_state_dim", "max_action_dim", "num_inference_steps", "min_period", "max_period")
"""Fields that LeRobot's and transformers' configurations share."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Found:
    """All of a directory but the numbers of its weights."""

    config: PI0Config
    preprocessing: Preprocessing
    tokenizer: PreTrainedTokenizerBase
    stored: Stored


def read(directory: Path) -> Found:
    about = _json(directory / "config.json") if (directory / "config.json").is_file() else {}
    given = _json(directory / FILE) if (directory / FILE).is_file() else {}
    network, tokenizer = given.pop("network", {}), given.pop("tokenizer", None)
    if about.get("model_type") == "pi0":
        config, named = _configured(directory, _over(about, network)), tokenizer
        preprocessing = Preprocessing.read(directory, config.chunk_size)
        stored = open_weights(directory)
    else:
        stored = open_weights(directory)
        derive = _of_lerobot if about.get("type") == "pi0" else _of_openpi
        try:
            derived, fields, named = derive(directory, about)
        except UsageError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise UsageError(
                f"cannot load the policy in {directory}: what lies beside its weights is broken: "
                f"{type(error).__name__}: {error}"
            ) from error
        config = _derived(stored, {**fields, **network})
        preprocessing = _merged(directory, derived, given, config)
        named = tokenizer or named
    return Found(config, preprocessing, _tokenizer(directory, named), stored)


# ---- LeRobot


def _of_lerobot(
    directory: Path, about: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """What its config and its pre-processor say: preprocessing, fields of the network, tokenizer."""
    inputs, outputs = about.get("input_features") or {}, about.get("output_features") or {}
    cameras = [
        name.removeprefix("observation.images.").removeprefix("observation.")
        for name, feature in inputs.items()
        if feature.get("type") == "VISUAL"
        and "empty_camera_" not in name  # those are masked out: nothing reads them
    ]
    steps = {
        step.get("registry_name"): step for step in _json(directory / "policy_preprocessor.json")["steps"]
    }
    normalizer, tokens = steps.get("normalizer_processor"), steps.get("tokenizer_processor", {})
    if normalizer is None:
        raise UsageError(f"{directory}: policy_preprocessor.json has no normalizer_processor step")
    dims = {}
    for kind, features, key in (("state", inputs, _STATE), ("action", outputs, _ACTION)):
        if key not in features:
            raise UsageError(f"{directory}: config.json names no feature {key}")
        dims[kind] = features[key]["shape"][0]
    derived = {
        "cameras": cameras,
        "image_size": about.get("image_resolution", [224])[0],
        "state_dim": dims["state"],
        "action_dim": dims["action"],
        "max_tokens": about.get("tokenizer_max_length", _MAX_TOKENS),
        "norm": _normalizers(directory, normalizer, dims),
        **({"execute": about["n_action_steps"]} if "n_action_steps" in about else {}),
        "prompt_suffix": "\n" if "pi0_new_line_processor" in steps else "",
        # What 0.5 brought, but for its first release: the border and this setting.
        "images": "lerobot-0.5" if "use_relative_actions" in about else "lerobot",
        "delta_actions": relative_mask(steps.get("relative_actions_processor", {}), dims["action"]),
    }
    fields = {name: about[name] for name in _SAME if name in about}
    return derived, fields, tokens.get("config", {}).get("tokenizer_name")


def _normalizers(directory: Path, step: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Any]:
    file = directory / str(step.get("state_file"))
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"cannot load the policy in {directory}: its statistics: {error}") from error
    modes, floor = step["config"].get("norm_map", {}), step["config"].get("eps", 1e-8)

    def of(kind: str, key: str) -> Statistics | None:
        mode = modes.get(kind.upper(), "IDENTITY")
        if mode == "IDENTITY":
            return Statistics((0.0,) * dims[kind], (1.0,) * dims[kind], 0.0)
        if not any(name.startswith(f"{key}.") for name in stored):
            return None  # a base policy, which LeRobot feeds with raw numbers
        wanted = ("mean", "std") if mode == "MEAN_STD" else _RANGES.get(mode)
        if wanted is None:
            raise UsageError(f"{directory}: normalisation {mode} of {kind} is not known here")
        missing = [f"{key}.{name}" for name in wanted if f"{key}.{name}" not in stored]
        if missing:
            raise UsageError(f"{directory}: {file.name} has no {missing[0]}, which {mode} needs")
        first, second = (tuple(stored[f"{key}.{name}"].flatten().double().tolist()) for name in wanted)
        return Statistics(first, second, floor) if mode == "MEAN_STD" else Statistics.of_range(first, second)

    found = {"state": of("state", _STATE), "action": of("action", _ACTION)}
    return {kind: statistics.to_json() for kind, statistics in found.items() if statistics is not None}


# ---- openpi


def _of_openpi(
    directory: Path, about: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    norm = _openpi_norm(directory)
    fields = {"chunk_size": about["action_horizon"]} if "action_horizon" in about else {}
    derived = {
        "cameras": list(CAMERAS),
        "image_size": 224,
        "max_tokens": _MAX_TOKENS,
        "prompt_suffix": "\n",
        "clean_prompt": True,
        "images": "openpi",
        "norm": {kind: statistics.to_json() for kind, statistics in norm.items()},
        **{f"{kind}_dim": len(statistics.mean) for kind, statistics in norm.items()},
    }
    return derived, fields, PALIGEMMA


def _openpi_norm(directory: Path) -> dict[str, Statistics]:
    """Without trailing dimensions that never change from 0, which pad robots' vectors to the network's."""
    files = sorted((directory / "assets").glob("**/norm_stats.json"))
    if len(files) > 1:
        names = ", ".join(str(file.parent.relative_to(directory / "assets")) for file in files)
        raise UsageError(
            f"{directory}: assets of several robots ({names}): leave one, or write norm into {FILE}"
        )
    if not files:
        return {}
    data = _json(files[0]).get("norm_stats", {})
    found = {}
    for ours, theirs in (("state", "state"), ("action", "actions")):
        if theirs not in data:
            raise UsageError(f"{files[0]} has no statistics of {theirs}")
        mean, std = (tuple(map(float, data[theirs][name])) for name in ("mean", "std"))
        dim = max((at + 1 for at, pair in enumerate(zip(mean, std, strict=True)) if any(pair)), default=0)
        found[ours] = Statistics(mean, std, _FLOOR).first(dim)
    return found


# ---- both


def _merged(
    directory: Path, derived: dict[str, Any], given: Mapping[str, Any], config: PI0Config
) -> Preprocessing:
    """The derived fields, replaced by those that robosteer.json gives."""
    data = {"schema": SCHEMA, **derived, **given}
    try:
        norm = {**derived["norm"], **given.get("norm", {})}
        missing = [f"{kind}_dim" for kind in ("state", "action") if not data.get(f"{kind}_dim")]
        missing += [f"statistics of {kind}" for kind in ("state", "action") if kind not in norm]
        if missing:
            raise UsageError(
                f"{directory} has no {missing[0]}: write {FILE} with state_dim, action_dim and norm (mean and std of "
                "state and action of the training data), or copy openpi's assets beside the weights"
            )
        for kind in ("state", "action"):  # published statistics are often padded
            dim, numbers = data[f"{kind}_dim"], norm[kind].items()
            norm[kind] = {name: v[:dim] if isinstance(v, list | tuple) else v for name, v in numbers}
        data["execute"] = min(data.get("execute", config.chunk_size), config.chunk_size)
        return Preprocessing.from_json({**data, "norm": norm})
    except UsageError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{directory / FILE} is broken: {type(error).__name__}: {error}") from error


def _derived(stored: Stored, fields: dict[str, Any]) -> PI0Config:
    """A configuration of that of the released network, in the sizes that the weights have."""
    shape = stored.shapes
    try:
        vision = _vision(shape)
        text = _gemma(shape, "model.vlm.language_model.")
        expert = _gemma(shape, "model.dit.")
        width, hidden = shape["model.vlm.multi_modal_projector.linear.weight"]
        state, action = (
            shape[f"embed_action_time.{name}.weight"][1] for name in ("state_proj", "action_in_proj")
        )
        vocabulary = shape["model.vlm.language_model.embed_tokens.weight"][0]
    except KeyError as error:
        raise stored.wrong(
            "missing", [str(error.args[0])], "without it the network's size is not known"
        ) from error
    data: dict[str, Any] = {
        "vlm_config": {
            "model_type": "paligemma",
            "projection_dim": width,
            "image_token_id": vocabulary,  # beyond the last word
            "text_config": {**text, "vocab_size": vocabulary},
            "vision_config": vision,
        },
        "dit_config": expert,
        "max_state_dim": state,
        "max_action_dim": action,
    }
    data = _over(data, fields)
    if "chunk_size" not in data:
        raise UsageError(
            f"{stored.directory} does not say how many actions a chunk has (openpi's action_horizon: 50 for pi0_base, "
            f'10 for pi0_droid): write {FILE} with {{"network": {{"chunk_size": 50}}}}'
        )
    if "num_attention_heads" not in data["vlm_config"]["vision_config"]:
        raise UsageError(
            f"{stored.directory}: heads of a vision tower of width {hidden} are not known: write {FILE} with "
            '{"network": {"vlm_config": {"vision_config": {"num_attention_heads": ...}}}}'
        )
    return _configured(stored.directory, data)


def _gemma(shape: Mapping[str, tuple[int, ...]], start: str) -> dict[str, Any]:
    """pi0's Gemmas have one KV head, so its width is a head's."""
    first = f"{start}layers.0."
    d_head = shape[f"{first}self_attn.k_proj.weight"][0]
    heads, hidden = shape[f"{first}self_attn.q_proj.weight"]
    return {
        "model_type": "gemma",
        "hidden_size": hidden,
        "intermediate_size": shape[f"{first}mlp.up_proj.weight"][0],
        "num_hidden_layers": _layers(shape, f"{start}layers."),
        "num_attention_heads": heads // d_head,
        "num_key_value_heads": 1,
        "head_dim": d_head,
    }


def _vision(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    start = "model.vlm.vision_tower."
    hidden, _, patch, _ = shape[f"{start}embeddings.patch_embedding.weight"]
    side = isqrt(shape[f"{start}embeddings.position_embedding.weight"][0])
    known = {"num_attention_heads": _SO400M[1]} if hidden == _SO400M[0] else {}
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": shape[f"{start}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _layers(shape, f"{start}encoder.layers."),
        "patch_size": patch,
        "image_size": side * patch,
        "vision_use_head": False,
        **known,
    }


def _layers(shape: Mapping[str, tuple[int, ...]], start: str) -> int:
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in shape if name.startswith(start))


def _over(data: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with the given fields; dictionaries field by field."""
    found = dict(data)
    for name, value in fields.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = _over(found[name], value) if both else value
    return found


def _configured(directory: Path, data: dict[str, Any]) -> PI0Config:
    try:
        return PI0Config.from_dict(data)
    except Exception as error:  # strict configurations have errors of several libraries
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"cannot load the policy in {directory}: config.json: {type(error).__name__}: {lines[0] if lines else ''}"
        ) from error


def _tokenizer(directory: Path, named: str | None) -> PreTrainedTokenizerBase:
    """Of the directory, or the named one: a directory (also relative to this one) or a hub id."""
    own = any((directory / name).is_file() for name in _TOKENIZER_FILES)
    beside = directory / named if named else directory
    place = str(directory) if own or not named else str(beside if beside.is_dir() else named)
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=Path(place).is_dir())
    except Exception as error:  # not there, offline, not allowed: the hub has a dozen classes for it
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"cannot load the policy in {directory}: no tokenizer in {place}: {lines[0] if lines else ''}; put "
            f'PaliGemma\'s tokenizer files there, or write {FILE} with {{"tokenizer": "a directory or hub id"}}'
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is missing or broken: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is broken: it must hold an object")
    return data
