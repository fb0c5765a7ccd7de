"""What LeRobot's and openpi's directories of a pi0 have in common: the network's names, its weights, its tokenizer.

Both build their network from names, not from numbers: `gemma_2b` reading through `gemma_300m` on the SigLIP of
PaliGemma, 257152 words. A network of that size gets those names. Any other gets names that spell its sizes
(`gemma-128x8x384x8x1x16`: width, layers, mlp, heads, KV heads, head dim), which LeRobot refuses in one line; under a
name it knows, LeRobot would load nothing of it, say so in its log only, and act at random.

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
from safetensors.torch import save_file

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
    """The tensors of a network under the names of `layout`, each as it is. safetensors holds none of them twice."""
    stored, twin = TWIN[layout]
    tensors = {from_transformers(name, layout): t.contiguous() for name, t in module.state_dict().items()}
    save_file(
        tensors, path, {"format": "pt", twin: stored}
    )  # as its save_model says that two names are one tensor


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
    """`directory` must hold the weights of `policy`, bit by bit, in that layout."""
    from interp.policies.pi0_weights import UNREAD, open_weights  # needs transformers 5

    stored = open_weights(directory)
    if stored.layout != layout:
        raise UsageError(f"{directory} is in {stored.layout}'s layout, not in {layout}'s")
    for name, tensor in policy.module.state_dict().items():
        place = stored.places.get(name)
        if place is None and name == UNREAD:
            continue
        if place is not None:
            # Opened every time: a file that stays open keeps every page of it that was read in memory.
            with safe_open(place.file, "pt") as file:
                # It may hold less precision than the network computes in.
                if torch.equal(file.get_tensor(place.name).to(tensor.dtype), tensor.cpu()):
                    continue
        raise UsageError(f"{directory} does not hold the weights of {policy.source}: {name} differs")


def as_they_compute(policy: PI0Policy, directory: Path) -> PI0Policy:
    """`policy` in the precision that LeRobot and openpi compute in with the weights in `directory`.

    They keep some parts of a bfloat16 network in float32. Everything else is shared with `policy`, not copied.
    """
    from interp.policies.pi0_weights import (  # needs transformers 5
        cast_between_parts,
        open_weights,
        precisions,
    )

    wanted = precisions(open_weights(directory))
    own = dict(policy.module.named_parameters())
    raised = [name for name, parameter in own.items() if parameter.dtype != wanted.get(name, parameter.dtype)]
    if not raised:
        return policy
    theirs = copy.copy(policy)
    theirs.module = copy.deepcopy(
        policy.module, {id(parameter): parameter for name, parameter in own.items() if name not in raised}
    )
    for name in raised:
        parameter = theirs.module.get_parameter(name)
        parameter.data = parameter.data.to(wanted[name])
    cast_between_parts(theirs.module)
    return theirs


# ---- what a layout does not say


def write_about(policy: PI0Policy, directory: Path, names: Sequence[str]) -> None:
    """robosteer.json: these fields of the preprocessing, which the layout has no place for, and the network's sizes.

    robosteer reads it beside the layout's own files (interp/policies/pi0_files.py); other libraries leave it alone.
    """
    about, config = policy.preprocessing, policy.module.config.to_dict()
    for name in ("architectures", "dtype", "transformers_version"):
        config.pop(name, None)
    always = (
        "state_names",
        "action_names",
        "images",
        *(["fps"] if about.fps is not None else []),
        *(["delta_actions"] if about.acts_in_deltas else []),
    )
    fields = {name: getattr(about, name) for name in (*always, *names)}
    write_settings(directory / FILE, {"schema": SCHEMA, **fields, **about.notes, "network": config}, indent=1)


def rescaled(stats: Statistics, floor: float) -> dict[str, list[float]]:
    """Mean and std for a library that divides by std + `floor`, such that it divides by what the policy did."""
    own, theirs = np.float32(stats.floor), np.float32(floor)
    std = stats.std if own == theirs else [_with_sum(np.float32(s) + own, theirs) for s in stats.std]
    return {"mean": list(stats.mean), "std": list(std)}


def _with_sum(total: np.float32, floor: np.float32) -> float:
    """The number that gives `total` if `floor` is added to it, also after rounding: actions follow every bit."""
    near = max(total - floor, np.float32(0))
    tries = (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(0)))
    return float(next((each for each in tries if each + floor == total), near))


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


def resized(
    policy: PI0Policy, observations: Sequence[Observation], library: Images, called: str
) -> Iterator[str]:
    """What comes of images that have not the network's size, if the policy was trained on another resizing than that
    of the library `called` so."""
    about, size = policy.preprocessing, policy.preprocessing.image_size
    if about.images == library or all(
        image.shape[:2] == (size, size) for each in observations for image in each.images.values()
    ):
        return
    theirs = copy.copy(policy)
    theirs.preprocessing = dataclasses.replace(about, images=library)
    change = float(np.abs(chunks_of(theirs, observations, 0) - chunks_of(policy, observations, 0)).max())
    yield (
        f"{called} resizes cameras to {size} x {size} by its own code, not by the one of the training: "
        f"actions differ by up to {change:.1e} here; images of that size are taken as they are"
    )


def write_settings(path: Path, data: Mapping[str, Any], indent: int = 2) -> None:
    path.write_text(json.dumps(data, indent=indent) + "\n")
