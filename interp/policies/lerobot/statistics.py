"""The statistics that LeRobot's processors normalise by: whether they are there, and where to get them from.

LeRobot passes a number on as it is where it finds no statistics for it, and says nothing (huggingface/lerobot, issue
4415). Policies that were trained on several data sets have them under other names: the released smolvla_base under
`so100.buffer.action`. Its state would reach the network in degrees, and its actions a robot in standard deviations.

lerobot-train gives a policy those of the data set that it trains on (scripts/lerobot_train.py), and so does
`with_statistics`; but a policy of relative actions gets those of relative actions even if the data set's are of
absolute ones, as they are before `lerobot-edit-dataset` recomputed them, and the names of the data's actions in
config.json and its processor, as lerobot-train writes them.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

from interp.data.layout import Layout
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies.lerobot import relative
from interp.policies.lerobot.files import CONFIG, quiet, read_config, read_processors
from interp.runs import read_json, whole_directory, write_json

STATE, ACTION = "observation.state", "action"
_STATS = "meta/stats.json"
_NEEDED = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def missing(pre: Any, post: Any) -> list[str]:
    """`action.mean`, ...: what the processors need for state and action, by their modes, and do not have."""
    found = (each for step in (*pre.steps, *post.steps) for each in _missing(step))
    return list(dict.fromkeys(found))


def _missing(step: Any) -> Iterator[str]:
    if isinstance(step, NormalizerProcessorStep):
        chosen = step.normalize_observation_keys
        if STATE in step.features and (chosen is None or STATE in chosen):
            yield from _lacking(step, STATE, FeatureType.STATE)
    if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
        yield from _lacking(step, ACTION, FeatureType.ACTION)


def _lacking(step: Any, key: str, kind: FeatureType) -> Iterator[str]:
    has = step.state_dict()
    needed = _NEEDED.get(step.norm_map.get(kind, NormalizationMode.IDENTITY), ())
    return (name for name in (f"{key}.{each}" for each in needed) if name not in has)


def check(pre: Any, post: Any, source: str) -> None:
    """Refuse processors that would let state or actions through as they are."""
    if lacking := missing(pre, post):
        steps = [
            s
            for s in (*pre.steps, *post.steps)
            if isinstance(s, NormalizerProcessorStep | UnnormalizerProcessorStep)
        ]
        has = sorted({name.rpartition(".")[0] for step in steps for name in step.state_dict()})
        raise UsageError(
            f"policy {source}: no statistics {', '.join(lacking)} to normalise by, only those of "
            f"{', '.join(has) or 'nothing'}: raw numbers would pass; "
            f"`robosteer demos normalise DEMOS NEW --policy {source}` writes a copy with those of your data set"
        )


def with_statistics(directory: Path, demos: str | Path, out: Path) -> None:
    """A copy of a policy's directory that normalises by the statistics of these demonstrations."""
    if out.exists():
        raise UsageError(f"{out} exists: give a new directory")
    config, layout = read_config(directory), Layout.open(demos)
    found = statistics_of(layout)
    if relative.is_relative(config):
        config.action_feature_names = relative.names_of(config, layout)
        found[ACTION] = relative_statistics(config, demos)
    for key, feature in ((STATE, config.robot_state_feature), (ACTION, config.action_feature)):
        theirs, own = len(found[key]["mean"]), feature.shape[0] if feature else 0
        if theirs != own:
            raise UsageError(f"demonstrations {demos}: {key} has {theirs} numbers, the policy's has {own}")
    # As lerobot-train does.
    inputs, outputs = config.input_features, config.output_features
    given = {"stats": found, "norm_map": config.normalization_mapping}
    before, after = relative.overrides(config)
    pre, post = read_processors(
        directory,
        config,
        {"normalizer_processor": {**given, "features": {**inputs, **outputs}}, **before},
        {"unnormalizer_processor": {**given, "features": outputs}, **after},
    )
    relative.check(config, pre, post, str(directory))
    if lacking := missing(pre, post):
        raise UsageError(
            f"{layout.path / _STATS} has no {', '.join(lacking)}, which this {config.type} normalises by"
        )
    with whole_directory(out) as fresh:
        own_processors = shutil.ignore_patterns("policy_preprocessor*", "policy_postprocessor*")
        shutil.copytree(directory, fresh, ignore=own_processors)
        if relative.is_relative(config):
            named = {"action_feature_names": config.action_feature_names}
            write_json(fresh / CONFIG, read_json(fresh / CONFIG) | named)
        with quiet():
            pre.save_pretrained(fresh)
            post.save_pretrained(fresh)


def relative_statistics(config: Any, demos: str | Path) -> dict[str, np.ndarray]:
    """Of the actions of every whole chunk, less the state that the chunk starts from: by LeRobot's own code.

    As `config` has it, dimensions whose name in it has an excluded joint's in it stay absolute.
    """
    from lerobot.datasets.compute_stats import compute_relative_action_stats  # not in LeRobot before 0.5

    opened = Demonstrations.open(demos)
    dim, at = opened.action.shape[1], opened.state.shape[1]
    if len(opened.episodes) == 0 or max(map(len, opened.episodes)) < config.chunk_size:
        raise UsageError(
            f"demonstrations {demos}: no episode has the {config.chunk_size} frames of one chunk, which a policy of "
            "relative actions is normalised by: record longer ones"
        )
    if dim > at:
        raise UsageError(
            f"demonstrations {demos}: action has {dim} numbers and observation.state {at}: actions relative to the "
            "state need a state of every joint"
        )
    episode = np.repeat(np.arange(len(opened.episodes)), [len(each) for each in opened.episodes])
    columns = {ACTION: opened.action, STATE: opened.state, "episode_index": episode}
    found = compute_relative_action_stats(
        columns,
        {ACTION: {"shape": (dim,), "names": config.action_feature_names}},
        config.chunk_size,
        config.relative_exclude_joints,
    )
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def statistics_of(layout: Layout) -> dict[str, dict[str, np.ndarray]]:
    """What meta/stats.json says, by feature; state and action, whatever they are called there, by LeRobot's names."""
    file = layout.path / _STATS
    if not file.is_file():
        raise UsageError(f"{file} is missing: `robosteer demos export` writes demonstrations with statistics")
    try:
        stats: dict[str, dict[str, Any]] = json.loads(file.read_text())
        found = {
            feature: {name: np.asarray(value, np.float32) for name, value in each.items()}
            for feature, each in stats.items()
        }
        for key, features in ((STATE, layout.states), (ACTION, layout.actions)):
            parts = [found[feature] for feature in features]
            shared = [name for name in parts[0] if all(name in part for part in parts)]
            found[key] = {name: np.concatenate([part[name].ravel() for part in parts]) for name in shared}
            found[key]["mean"]  # every data set has it
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is broken: {type(error).__name__}: {error}") from error
    return found
