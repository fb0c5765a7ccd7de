"""Tiny random policies of LeRobot's own classes, saved as LeRobot saves them, and data for them.

Real classes, random weights: scaled up so that every head matters, and with statistics that are not neutral.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import patched_gemma
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from interp.policies import Observation

WORDS = ["pick", "up", "the", "red", "blue", "green", "cube", "and", "place", "it", "in", "bowl", "\n"]
CAMERAS, STATE_DIM, ACTION_DIM, HORIZON, STEPS = ("front", "wrist"), 6, 5, 8, 4
FAMILIES = ("smolvla", "pi0", "pi05", "xvla")
HEIGHT, WIDTH = 24, 32


def build(family: str, directory: Path, seed: int = 0, **changes: Any) -> Path:
    """A policy directory of that family. `changes` are settings of its configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module, pre, post = _BUILDERS[family](directory.parent / f"parts-of-{directory.name}", changes)
        _enliven(module, scale=1.0 if family == "pi05" else 1.3)
    for part in (module, pre, post):
        part.save_pretrained(directory)
    return directory


def observations(n: int, seed: int = 0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    tasks = [
        "pick up the red cube",
        "place it in the bowl",
        "pick up the blue cube and place it in the green bowl",
    ]
    return [
        Observation(
            {camera: rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for camera in CAMERAS},
            rng.normal(size=STATE_DIM).astype(np.float32),
            tasks[at % len(tasks)],
        )
        for at in range(n)
    ]


def as_lerobot_sees(observation: Observation) -> dict[str, Any]:
    """The dictionary that a robot of LeRobot's gives to a pre-processor."""
    images = {
        f"observation.images.{camera}": torch.tensor(image).permute(2, 0, 1) / 255
        for camera, image in observation.images.items()
    }
    return {**images, "observation.state": torch.tensor(observation.state), "task": observation.instruction}


def write_demonstrations(root: Path, lengths: tuple[int, ...] = (9, 7, 8)) -> Path:
    """Episodes recorded by LeRobot itself, with images. Actions follow the state: there is something to learn."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "image", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    kinds: dict[str, Any] = {f"observation.images.{camera}": image for camera in CAMERAS}
    for name, dim in (("observation.state", STATE_DIM), ("action", ACTION_DIM)):
        kinds[name] = {"dtype": "float32", "shape": (dim,), "names": [f"{name}.{at}" for at in range(dim)]}
    recorded = LeRobotDataset.create("local/tiny", fps=10, features=kinds, root=root, use_videos=False)
    for at, length in enumerate(lengths):
        for observation in observations(length, seed=at):
            recorded.add_frame(
                {
                    **{f"observation.images.{camera}": image for camera, image in observation.images.items()},
                    "observation.state": observation.state,
                    "action": np.tanh(observation.state[:ACTION_DIM]),
                    "task": observations(at + 1)[at].instruction,
                }
            )
        recorded.save_episode()
    recorded.finalize()
    return root


def video_codec(name: str) -> dict[str, Any]:
    """How `LeRobotDataset.create` is told the codec of its films."""
    try:
        from lerobot.configs.video import RGBEncoderConfig
    except ImportError:  # before 0.6
        return {"vcodec": name}
    return {"rgb_encoder": RGBEncoderConfig(vcodec=name)}


def features() -> tuple[dict[str, Any], dict[str, Any]]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    images = {
        f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
        for camera in CAMERAS
    }
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,))}
    return {**images, **state}, {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))}


def statistics(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    found = {}
    for name, dim in (("observation.state", STATE_DIM), ("action", ACTION_DIM)):
        mean, std = torch.tensor(rng.normal(size=dim)).float(), torch.tensor(rng.uniform(0.5, 2, dim)).float()
        found[name] = {
            "mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std,
            "q01": mean - 2 * std, "q99": mean + 2 * std,
        }  # fmt: skip
    return found


def _enliven(module: torch.nn.Module, scale: float) -> None:
    """Random weights that do something: attention that is not uniform, gates that are open.

    Above the usual scale, 1, attention has preferences; under PI0.5's gated norms, that would also blow rounding up.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5)
        elif parameter.ndim == 1 and "dense" in name:  # PI0.5's gates
            torch.nn.init.ones_(parameter)


def _tokenizer(special: dict[str, str], **extra: Any) -> PreTrainedTokenizerFast:
    words = [*special.values(), *extra.get("extra_special_tokens", {}).values(), *WORDS]
    words += [*map(str, range(257)), "Task", "State", "Action", *":;,-"]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **extra)


def _smolvla(parts: Path, changes: dict[str, Any]) -> tuple[Any, ...]:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    tokens = {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global>"}
    tokens["end_of_utterance_token"] = "<end>"
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = _tokenizer(special, extra_special_tokens=tokens)
    SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=4
    ).save_pretrained(parts)
    # 3 heads on 1 KV head of 16 dimensions at a width of 60, as the released 15 on 5 of 64 at 960: not width / heads.
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 60, "intermediate_size": 64,
        "num_hidden_layers": 5, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    vlm = SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=image, pad_token_id=0
    )
    vlm.architectures = ["SmolVLMForConditionalGeneration"]
    vlm.save_pretrained(parts)
    inputs, outputs = features()
    settings = {
        "vlm_model_name": str(parts), "input_features": inputs, "output_features": outputs,
        "resize_imgs_with_padding": (32, 32), "chunk_size": HORIZON, "n_action_steps": HORIZON, "max_state_dim": 8,
        "max_action_dim": 7, "num_vlm_layers": 4, "num_steps": STEPS, "tokenizer_max_length": 14,
        "expert_width_multiplier": 0.5, "device": "cpu", "push_to_hub": False,
    }  # fmt: skip
    config = SmolVLAConfig(**{**settings, **changes})
    return SmolVLAPolicy(config), *make_smolvla_pre_post_processors(config, statistics())


def _pi0(parts: Path, changes: dict[str, Any]) -> tuple[Any, ...]:
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy
    from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors

    return _pi(PI0Policy, PI0Config, make_pi0_pre_post_processors, parts, changes, tokens=14)


def _pi05(parts: Path, changes: dict[str, Any]) -> tuple[Any, ...]:
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy
    from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors

    return _pi(PI05Policy, PI05Config, make_pi05_pre_post_processors, parts, changes, tokens=64)


def _pi(
    policy: Any, configure: Any, processors: Any, parts: Path, changes: dict[str, Any], tokens: int
) -> tuple[Any, ...]:
    patched_gemma.install()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = _tokenizer(special)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    inputs, outputs = features()
    settings = {
        "input_features": inputs, "output_features": outputs, "chunk_size": HORIZON, "n_action_steps": HORIZON,
        "max_state_dim": 8, "max_action_dim": 7, "num_inference_steps": STEPS, "image_resolution": (28, 28),
        "tokenizer_max_length": tokens, "dtype": "float32", "device": "cpu", "push_to_hub": False,
    }  # fmt: skip
    config = configure(**{**settings, **changes})
    return (
        policy(config),
        *_with_tokenizer(tokenizer, parts, lambda: processors(config, statistics())),
    )


def _xvla(parts: Path, changes: dict[str, Any]) -> tuple[Any, ...]:
    from lerobot.policies.xvla.configuration_xvla import XVLAConfig
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
    from lerobot.policies.xvla.processor_xvla import make_xvla_pre_post_processors

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = _tokenizer(special)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    vision = {
        "model_type": "davit", "dim_embed": [16, 32], "num_heads": [2, 4], "num_groups": [2, 4], "depths": [1, 1],
        "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
        "window_size": 4, "projection_dim": 48, "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 20},
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 10},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }  # fmt: skip
    text = {
        "model_type": "florence2_language", "vocab_size": len(tokenizer), "d_model": 48, "encoder_layers": 2,
        "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "max_position_embeddings": 128,
    }  # fmt: skip
    florence = {
        "model_type": "florence2", "projection_dim": 48, "vision_config": vision, "text_config": text,
    }  # fmt: skip
    inputs, outputs = features()
    settings = {
        "florence_config": florence, "hidden_size": 64, "depth": 3, "num_heads": 4, "num_domains": 3,
        "len_soft_prompts": 4, "dim_time": 16, "chunk_size": HORIZON, "n_action_steps": HORIZON,
        "num_denoising_steps": STEPS, "action_mode": "auto", "max_action_dim": 7, "max_state_dim": 8,
        "max_len_seq": 128, "num_image_views": 3, "tokenizer_max_length": 14, "resize_imgs_with_padding": (32, 32),
        "input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    }  # fmt: skip
    config = XVLAConfig(**{**settings, **changes})
    made = _with_tokenizer(tokenizer, parts, lambda: make_xvla_pre_post_processors(config, statistics()))
    return XVLAPolicy(config), *made


def _with_tokenizer(tokenizer: Any, parts: Path, make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Processors whose tokenizer lies in `parts`; LeRobot names one on the hub."""
    tokenizer.save_pretrained(parts)
    step = "lerobot.processor.tokenizer_processor"
    with mock.patch(f"{step}.AutoTokenizer.from_pretrained", return_value=tokenizer):
        pre, post = make()
    for each in pre.steps:
        if hasattr(each, "tokenizer_name"):
            each.tokenizer_name = str(parts)
    return pre, post


_BUILDERS: dict[str, Callable[[Path, dict[str, Any]], tuple[Any, ...]]] = {
    "smolvla": _smolvla,
    "pi0": _pi0,
    "pi05": _pi05,
    "xvla": _xvla,
}
