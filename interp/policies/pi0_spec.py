"""The spec of a PI0: what its configuration and its preprocessing imply."""

from typing import Any

from interp.errors import UsageError
from interp.policies.preprocessing import FILE, Preprocessing
from interp.policies.spec import PolicySpec, TokenSpan, TowerSpec


def pi0_spec(config: Any, preprocessing: Preprocessing) -> PolicySpec:
    """The spec that configuration and preprocessing imply; dead heads are measured later."""
    text, vision, expert = config.vlm_config.text_config, config.vlm_config.vision_config, config.dit_config
    if preprocessing.image_size != vision.image_size:
        raise UsageError(
            f"{FILE}: image_size {preprocessing.image_size}, but the network sees {vision.image_size}"
        )
    for kind, dim, limit in (
        ("state", preprocessing.state_dim, config.max_state_dim),
        ("action", preprocessing.action_dim, config.max_action_dim),
    ):
        if dim > limit:
            raise UsageError(f"{FILE}: {kind}_dim {dim} exceeds the network's {limit}")
    if text.num_hidden_layers != expert.num_hidden_layers:
        raise UsageError(
            "config.json: the expert reads the vlm layer by layer, so both need the same number of layers"
        )
    side = vision.image_size // vision.patch_size
    spans: dict[str, TokenSpan] = {}
    stop = 0
    for camera in preprocessing.cameras:
        start, stop = stop, stop + side * side
        spans[f"image/{camera}"] = TokenSpan(start, stop, (side, side))
    for name, length in (("language", preprocessing.max_tokens), ("state", 1), ("action", config.chunk_size)):
        start, stop = stop, stop + length
        spans[name] = TokenSpan(start, stop)
    vision_heads = vision.num_attention_heads
    return PolicySpec(
        family="pi0",
        towers={
            "vision": TowerSpec(
                (vision_heads,) * vision.num_hidden_layers, vision_heads, vision.hidden_size // vision_heads
            ),
            "vlm": _gemma_tower(text),
            "expert": _gemma_tower(expert),
        },
        spans=spans,
        cameras=preprocessing.cameras,
        image_size=preprocessing.image_size,
        state_dim=preprocessing.state_dim,
        action_dim=preprocessing.action_dim,
        max_action_dim=config.max_action_dim,
        horizon=config.chunk_size,
        flow_steps=config.num_inference_steps,
        fps=preprocessing.fps,
        execute=preprocessing.execute,
        state_names=preprocessing.named("state"),
        action_names=preprocessing.named("action"),
    )


def _gemma_tower(config: Any) -> TowerSpec:
    # Gemma's head_dim is its own number, not width // heads.
    return TowerSpec(
        (config.num_attention_heads,) * config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    )
