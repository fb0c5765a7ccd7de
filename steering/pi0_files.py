"""What LeRobot's and openpi's directories of a pi0 have in common: the network's names, its weights, its tokenizer.

Both build their network from names, not from numbers: `gemma_2b` reading through `gemma_300m` on the SigLIP of
PaliGemma, 257152 words. A network of that size gets those names. Any other gets names that spell its sizes
(`gemma-128x8x384x8x1x16`: width, layers, mlp, heads, KV heads, head dim), which LeRobot refuses in one line; under a
name it knows, LeRobot would load nothing of it, say so in its log only, and act at random.

Weights are written one tensor after the other: nothing is held in memory twice.

Sources: LeRobot 0.4.4, policies/pi0; openpi, models/gemma.py and models_pytorch.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from interp.errors import UsageError
from interp.policies import Observation
from interp.policies.pi0_layouts import TWIN, Layout, from_transformers
from interp.policies.preprocessing import FILE, SCHEMA, Images, Statistics
from steering.verify import chunks_of

if TYPE_CHECKING:
    from interp.policies.pi0 import PI0Policy  # needs transformers 5

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Gemma:
    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> Gemma:
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )

    def __str__(self) -> str:
        return "gemma-" + "x".join(map(str, astuple(self)))


@dataclass(frozen=True)
class Stock:
    """What LeRobot and openpi build: Gemmas by name, and one SigLIP (width, layers, heads, mlp, patch)."""

    gemmas: Mapping[str, Gemma]
    siglip: tuple[int, int, int, int, int]
    words: int


_GEMMA = (10000.0, "default", 1e-6, "gelu_pytorch_tanh")
STOCK = Stock(
    {"gemma_2b": Gemma(2048, 18, 16384, 8, 1, 256), "gemma_300m": Gemma(1024, 18, 4096, 8, 1, 256)},
    (1152, 27, 16, 4304, 14),
    257152,
)


@dataclass(frozen=True)
class Network:
    """What LeRobot's and openpi's configurations call the two Gemmas of a policy."""

    vlm: str
    expert: str
    unlike: tuple[str, ...]
    """What theirs has otherwise; empty if they build this one."""

    @classmethod
    def of(cls, policy: PI0Policy) -> Network:
        config = policy.module.config
        text, vision, dit = config.vlm_config.text_config, config.vlm_config.vision_config, config.dit_config
        siglip = (
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.intermediate_size,
            vision.patch_size,
        )
        names = {gemma: name for name, gemma in STOCK.gemmas.items()}
        gemmas = {"vlm": Gemma.of(text), "expert": Gemma.of(dit)}
        unlike = [f"{tower} {gemma}" for tower, gemma in gemmas.items() if gemma not in names]
        if siglip != STOCK.siglip:
            unlike.append(f"vision siglip-{'x'.join(map(str, siglip))}")
        if text.vocab_size != STOCK.words:
            unlike.append(f"{text.vocab_size} words")
        for tower, part in (("vlm", text), ("expert", dit)):
            rope = part.rope_parameters.get("rope_theta"), part.rope_parameters.get("rope_type")
            if (*rope, part.rms_norm_eps, part.hidden_act) != _GEMMA:
                unlike.append(f"{tower} {rope[1]} rope {rope[0]}, eps {part.rms_norm_eps}, {part.hidden_act}")
        pruned = [t for t, spec in policy.spec.towers.items() if len(set(spec.heads_per_layer)) > 1]
        unlike += [f"{tower} with layers of unequal heads" for tower in pruned]
        if unlike:
            return cls(str(gemmas["vlm"]), str(gemmas["expert"]), tuple(unlike))
        return cls(names[gemmas["vlm"]], names[gemmas["expert"]], ())


# ---- weights


def write_weights(module: Any, path: Path, layout: Layout) -> None:
    """The tensors of a network under the names of `layout`, each as it is, streamed to a safetensors file."""
    tensors = {from_transformers(name, layout): tensor for name, tensor in module.state_dict().items()}
    # Wide types first, so that all are aligned, as safetensors does it.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    metadata = {"format": "pt"}
    if layout in TWIN:
        stored, twin = TWIN[layout]
        metadata[twin] = stored  # as safetensors' save_model says that two names are one tensor
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].nbytes
        kind, shape = _DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    with path.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little"))
        file.write(packed)
        for name in ordered:
            plain = tensors[name].detach().cpu().contiguous()
            file.write(memoryview(plain.flatten().view(torch.uint8).numpy()))


_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def precision(module: Any) -> str:
    """`dtype` of LeRobot's configuration, `precision` of openpi's."""
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    dtype = next(module.model.vlm.language_model.parameters()).dtype
    if dtype not in names:
        raise UsageError(
            f"the policy is {dtype}: LeRobot's and openpi's pi0 are float32 or bfloat16; load it in one"
        )
    return names[dtype]


def check_weights(policy: PI0Policy, directory: Path, layout: Layout) -> None:
    """`directory` must hold the weights of `policy`, bit by bit."""
    if not (directory / WEIGHTS).is_file():
        raise UsageError(f"{directory} has no {WEIGHTS}: name a directory in {layout}'s layout")
    stored, twin = TWIN[layout]
    with safe_open(directory / WEIGHTS, "pt") as file:
        names = set(file.keys())
        for name, tensor in policy.module.state_dict().items():
            theirs = from_transformers(name, layout)
            theirs = twin if theirs == stored and theirs not in names else theirs
            # A file may hold less precision than the network computes in.
            if theirs not in names or not torch.equal(file.get_tensor(theirs).to(tensor.dtype), tensor.cpu()):
                raise UsageError(
                    f"{directory} does not hold the weights of {policy.source}: {theirs} differs"
                )


# ---- what a layout does not say


def write_about(policy: PI0Policy, directory: Path, names: Sequence[str]) -> None:
    """robosteer.json: these fields of the preprocessing, which the layout has no place for, and the network's sizes.

    robosteer reads it beside the layout's own files (interp/policies/pi0_files.py); other libraries leave it alone.
    """
    about, config = policy.preprocessing, policy.module.config.to_dict()
    for name in ("architectures", "dtype", "transformers_version"):
        config.pop(name, None)
    fields = {name: getattr(about, name) for name in ("state_names", "action_names", "fps", "images", *names)}
    write_settings(directory / FILE, {"schema": SCHEMA, **fields, **about.notes, "network": config}, indent=1)


def rescaled(stats: Statistics, floor: float) -> dict[str, list[float]]:
    """Mean and std for a library that divides by std + `floor`, such that it divides by what the policy did."""
    std = stats.std if stats.floor == floor else [max(s + stats.floor - floor, 0.0) for s in stats.std]
    return {"mean": list(stats.mean), "std": list(std)}


# ---- tokenizer


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """tokenizer.json, and a tokenizer_config.json that transformers 4 reads as well as 5.

    LeRobot's step asks the tokenizer for <bos>, which is put in front here by the policy.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.bos_token is None:
        raise UsageError("the policy's tokenizer has no tokenizer.json or no <bos>: LeRobot cannot use it")
    fast = json.loads(backend.to_str())
    bos, at = tokenizer.bos_token, tokenizer.bos_token_id
    fast["truncation"] = fast["padding"] = None
    fast["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [at], "tokens": [bos]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False))
    named = {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
    named["pad"] = named["pad"] or tokenizer.convert_ids_to_tokens(0)  # masked; the policy takes it too
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": token for name, token in named.items() if token is not None},
        "model_max_length": 10**30,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    write_settings(directory / "tokenizer_config.json", config)


# ---- what to know


def not_built(network: Network, library: str) -> Iterator[str]:
    if network.unlike:
        yield f"{library} cannot build this network ({'; '.join(network.unlike)}); robosteer can"


def resized(policy: PI0Policy, observations: Sequence[Observation], library: Images) -> Iterator[str]:
    """What comes of images that have not the network's size, if the policy was trained on another resizing."""
    about, size = policy.preprocessing, policy.preprocessing.image_size
    if about.images == library or all(
        image.shape[:2] == (size, size) for each in observations for image in each.images.values()
    ):
        return
    theirs = copy.copy(policy)
    theirs.preprocessing = dataclasses.replace(about, images=library)
    change = float(np.abs(chunks_of(theirs, observations, 0) - chunks_of(policy, observations, 0)).max())
    yield (
        f"{library} resizes cameras to {size} x {size} by its own code, not by the one of the training: "
        f"actions differ by up to {change:.1e} here; images of that size are taken as they are"
    )


def write_settings(path: Path, data: Mapping[str, Any], indent: int = 2) -> None:
    path.write_text(json.dumps(data, indent=indent) + "\n")
