"""Transformers' pi0 as a directory that openpi's PyTorch port loads, written without openpi.

Source: openpi, policies/policy_config.py, shared/normalize.py, transforms.py, examples/convert_jax_model_to_pytorch.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import UsageError
from interp.policies import Observation
from interp.policies.preprocessing import FILE
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

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FLOOR = 1e-6
"""What openpi adds to a standard deviation before it divides by it."""
PERIODS, STEPS = (0.004, 4.0), 10
"""Of openpi's flow time, and its flow steps unless told otherwise."""


def openpi_directory(
    policy: PI0Policy, directory: Path, observations: Sequence[Observation], asset: str
) -> tuple[str, ...]:
    """A directory for openpi's `create_trained_policy`: model.safetensors and assets/<asset>/norm_stats.json.

    Answers with what whoever receives it has to know: openpi's configurations are code, and have to agree.
    """
    module, about = policy.module, policy.preprocessing
    config = module.config
    if len(about.cameras) > len(CAMERAS):
        raise UsageError(
            f"the policy sees {len(about.cameras)} cameras: openpi's pi0 sees at most {len(CAMERAS)}"
        )
    if Path(asset).is_absolute() or ".." in Path(asset).parts or not asset:
        raise UsageError(f"--asset-id {asset!r}: give a name such as droid or owner/dataset")
    if (config.min_period, config.max_period) != PERIODS:
        raise UsageError(
            f"the policy's flow time has periods {config.min_period} to {config.max_period}: "
            f"openpi's pi0 has {PERIODS[0]} to {PERIODS[1]}"
        )
    directory.mkdir(parents=True)
    network = Network.of(policy)
    # openpi reads the configuration by name and keeps these numbers "for reference".
    settings = {
        "action_dim": config.max_action_dim,
        "action_horizon": config.chunk_size,
        "paligemma_variant": network.vlm,
        "action_expert_variant": network.expert,
        "precision": precision(module),
    }
    write_settings(directory / CONFIG, settings)
    write_weights(module, directory / WEIGHTS, "openpi")
    check_weights(policy, directory, "openpi")
    norm = {"state": rescaled(about.state, FLOOR), "actions": rescaled(about.action, FLOOR)}
    (directory / "assets" / asset).mkdir(parents=True)
    write_settings(directory / "assets" / asset / "norm_stats.json", {"norm_stats": norm})
    write_tokenizer(policy.tokenizer, directory)
    unsaid = ["cameras", "image_size", "state_dim", "action_dim", "max_tokens", "execute"]
    write_about(policy, directory, [*unsaid, "prompt_suffix", "clean_prompt"])
    return (
        *not_built(network, "openpi"),
        *_notes(policy, asset),
        *resized(policy, observations, "openpi", "openpi"),
    )


def _notes(policy: PI0Policy, asset: str) -> Iterator[str]:
    config, about = policy.module.config, policy.preprocessing
    called = {ours: theirs for ours, theirs in zip(about.cameras, CAMERAS, strict=False) if ours != theirs}
    if called:
        yield "cameras as openpi's images: " + ", ".join(f"{ours} is {name}" for ours, name in called.items())
    yield f"pi0 with action_horizon {config.chunk_size}, asset_id {asset}, use_quantile_norm False"
    if about.acts_in_deltas:
        yield f"its configuration needs DeltaActions and AbsoluteActions with mask {about.delta_actions}"
    elif about.images == "openpi":  # trained by it; only its configurations say whether on deltas
        yield (
            "if its configuration has DeltaActions (extra_delta_transform, Aloha), the policy was trained on the wrong "
            f"actions: say so in {FILE} (delta_actions) before finetuning"
        )
    if config.max_state_dim != config.max_action_dim:
        yield f"openpi pads state ({config.max_state_dim}) and action ({config.max_action_dim}) to one action_dim"
    if config.num_inference_steps != STEPS:
        yield f"sample_kwargs num_steps {config.num_inference_steps}"
    if about.prompt_suffix != "\n":
        yield "openpi ends an instruction with a new line, which this policy was trained without"
    if precision(policy.module) == "bfloat16":
        yield "openpi keeps norms and projections in float32: actions differ by bfloat16's rounding"
    else:  # policy_config.py: to_bfloat16_for_selected_params("bfloat16"), whatever the file holds
        yield (
            "openpi casts to bfloat16 what it loads, norms and projections excepted: its actions differ from this "
            "float32 policy's by bfloat16's rounding"
        )
    if not about.clean_prompt:
        yield "openpi makes spaces of an instruction's underscores and line breaks; this policy was trained without"
