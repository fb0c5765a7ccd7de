"""The names of pi0's tensors in the layouts that its weights are published in, and the way between them.

Every layout holds the same tensors in the same shapes: the ways differ in names alone.

transformers   `PI0ForConditionalGeneration.state_dict()`: model.vlm..., model.dit..., embed_action_time...
saved          the file that transformers' `save_pretrained` writes of it (tiny-pi0's is one)
openpi         openpi's PyTorch port: paligemma_with_expert..., action_in_proj...
lerobot        LeRobot's `PI0Policy`: openpi's names behind a leading model.

openpi's and LeRobot's vlm has its word embeddings under two names, `embed_tokens` and `lm_head`, and a file holds one
of them or both (`TWIN`); LeRobot's, from 0.5 on, two tensors, of which nothing reads `lm_head`. The expert's embeddings
are read by nothing in any of them; there they are its `lm_head`.

Sources: openpi examples/convert_jax_model_to_pytorch.py; lerobot/policies/pi0/modeling_pi0.py;
transformers/conversion_mapping.py.
"""

import re
from collections.abc import Iterable
from typing import Literal, get_args

from interp.errors import UsageError, unknown

Layout = Literal["transformers", "saved", "openpi", "lerobot"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_BOTH = "paligemma_with_expert."
_PALIGEMMA, _EXPERT = f"{_BOTH}paligemma.", f"{_BOTH}gemma_expert."
_VLM_WORDS = "model.vlm.language_model.embed_tokens.weight"
_EXPERT_WORDS = "model.dit.embed_tokens.weight"
_HEADS = "state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out"

# Part of transformers' name -> part of openpi's. The first that fits counts, in both directions.
_PARTS: tuple[tuple[str, str], ...] = (
    (_VLM_WORDS, f"{_PALIGEMMA}lm_head.weight"),
    (_EXPERT_WORDS, f"{_EXPERT}lm_head.weight"),
    ("model.vlm.vision_tower.", f"{_PALIGEMMA}model.vision_tower.vision_model."),
    ("model.vlm.", f"{_PALIGEMMA}model."),
    ("model.dit.", f"{_EXPERT}model."),
    *((f"embed_action_time.{head}.", f"{head}.") for head in _HEADS.split("|")),
    ("action_out_proj.", "action_out_proj."),
)
# transformers saves openpi's names with other levels in two places.
_SAVED: tuple[tuple[str, str], ...] = (
    (f"{_PALIGEMMA}lm_head.", f"{_PALIGEMMA}model.language_model.model.embed_tokens."),
    (f"{_PALIGEMMA}model.vision_tower.vision_model.", f"{_PALIGEMMA}model.vision_tower."),
    (f"{_PALIGEMMA}model.language_model.", f"{_PALIGEMMA}model.language_model.model."),
)

TWIN: dict[Layout, tuple[str, str]] = {
    "openpi": (f"{_PALIGEMMA}lm_head.weight", f"{_PALIGEMMA}model.language_model.embed_tokens.weight"),
    "lerobot": (
        f"model.{_PALIGEMMA}lm_head.weight",
        f"model.{_PALIGEMMA}model.language_model.embed_tokens.weight",
    ),
}
"""The two names of the vlm's word embeddings: the one that `from_transformers` gives, and the other."""


def from_transformers(name: str, layout: Layout) -> str:
    """What `layout` calls the tensor that transformers' state_dict calls `name`."""
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    openpi = _replaced(name, _PARTS)
    if openpi is None:
        raise UsageError(f"{name!r} is no tensor of transformers' PI0ForConditionalGeneration")
    if layout == "transformers":
        return name
    if layout == "saved":
        return _replaced(openpi, _SAVED) or openpi
    return f"model.{openpi}" if layout == "lerobot" else openpi


def to_transformers(name: str) -> str | None:
    """What transformers' state_dict calls a tensor with this name in any of the layouts; None if no layout has it.

    Both twins have the same answer. Levels that depend on a library's version (`vision_model`) may be there or not.
    """
    if _replaced(name, _PARTS) is not None and name.startswith(("model.vlm.", "model.dit.", "embed_action")):
        return name
    openpi = name.removeprefix("model.")
    openpi = openpi.replace(".language_model.model.", ".language_model.")
    openpi = re.sub(r"\.vision_tower\.(?!vision_model\.)", ".vision_tower.vision_model.", openpi)
    if openpi == TWIN["openpi"][1]:
        return _VLM_WORDS
    return _replaced(openpi, tuple((theirs, ours) for ours, theirs in _PARTS))


def layout_of(names: Iterable[str]) -> Layout:
    """The layout that these names of a file's tensors are in. What is no pi0 is refused with the reason."""
    found = set(names)
    if any(re.search(r"(^|\.)time_mlp_in\.|layernorm\.dense\.", name) for name in found):
        raise UsageError("the weights are of pi0.5 (time_mlp_in, adaptive norms), not of pi0")
    if any(name.startswith(("normalize_inputs.", "normalize_targets.")) for name in found):
        raise UsageError(
            "the weights are in the layout of LeRobot before 0.4 (statistics among the weights): "
            "bring them to 0.4 with LeRobot's lerobot.processor.migrate_policy_normalization"
        )
    if any(name.startswith(("model.vlm.", "model.dit.")) for name in found):
        return "transformers"
    if any(name.startswith(f"model.{_BOTH}") for name in found):
        return "lerobot"
    if any(name.startswith(f"{_PALIGEMMA}model.language_model.model.") for name in found):
        return "saved"
    if any(name.startswith(_BOTH) for name in found):
        return "openpi"
    first = min(found, default="none at all")
    raise UsageError(f"the weights are in none of pi0's layouts ({', '.join(LAYOUTS)}): first name {first}")


def _replaced(name: str, parts: tuple[tuple[str, str], ...]) -> str | None:
    for start, other in parts:
        if name.startswith(start):
            return other + name.removeprefix(start)
    return None
