"""Watching: one pass of the policy over a few frames that sees what every head attends to and writes.

Attention patterns, token spans, words and direct contributions come from the same forward pass, so that what
filming.py keeps of a frame belongs together. Axes: those of protocol.py and mass.py; `word` is a word of the
instruction, `row` and `column` place a patch in its camera's grid.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from interp.attribution import direct
from interp.errors import UsageError
from interp.footage import Camera
from interp.mass import bars, parts_of
from interp.policies.preprocessing import states_of
from interp.policies.protocol import Batch, Observation, Policy
from interp.sites import Tap, site_name, tapped

QUERIES = {"vlm": "language", "expert": "action"}
"""The token span from which a tower's attention is watched; the same as in mass.py."""


@dataclass(frozen=True)
class Seen:
    """What a block of frames shows, by tower; numbers are float32."""

    images: Mapping[tuple[str, str], Float[np.ndarray, "layer head frame row column"]]
    """By (tower, camera); padding is 0."""
    mass: Mapping[str, Float[np.ndarray, "layer head frame part"]]
    words: Mapping[str, Float[np.ndarray, "layer head frame word"]]
    contribution: Mapping[str, Float[np.ndarray, "layer head frame action"]]
    prediction: Float[np.ndarray, "frame action"]
    parts: tuple[str, ...]
    vocabulary: tuple[str, ...]
    cameras: Mapping[str, Camera]


def watch(
    policy: Policy, observations: Sequence[Observation], noise: Float[Tensor, "frame horizon max_action_dim"]
) -> Seen:
    """One pass over a few frames of one instruction: patterns, parts, words and direct contributions together."""
    told = {observation.instruction for observation in observations}
    if len(told) > 1:
        raise UsageError(f"frames of {len(told)} instructions are watched apart: their words differ")
    spec, batch = policy.spec, policy.batch(observations)
    queries = {tower: spec.positions(tower, QUERIES[tower]) for tower in QUERIES}
    language = spec.span("language")
    real = batch["attention_mask"][:, language.slice].float()
    weight = {
        "vlm": real / real.sum(dim=1, keepdim=True),
        "expert": torch.full((len(observations), len(spec.span("action"))), 1 / len(spec.span("action"))),
    }
    kept: dict[tuple[str, int], list[Tensor]] = {}

    def look(tower: str, layer: int, pattern: Tensor, step: int | None) -> None:
        share = weight[tower].to(pattern)
        mean = einsum(pattern[:, :, queries[tower]], share, "frame head q k, frame q -> frame head k")
        kept.setdefault((tower, layer), []).append(mean.float())

    taps: dict[str, Tap] = {
        site_name(tower, layer, "attn.hook_pattern"): partial(look, tower, layer)
        for tower in QUERIES
        for layer in range(spec.tower(tower).layers)
    }
    with torch.no_grad(), tapped(policy, taps):
        wrote, action = _contributions(policy, batch, noise)
    attended = {tower: _stacked(policy, tower, kept) for tower in QUERIES}  # [layer, head, frame, key]
    keys = {tower: attended[tower].shape[-1] for tower in QUERIES}
    parts = {tower: parts_of(policy, observations, batch, keys[tower]) for tower in QUERIES}
    named = tuple(parts["expert"])
    vocabulary, tokens = words_of(policy, observations[0].instruction)
    shown = {camera: _camera(policy, observations[0], camera) for camera in spec.cameras}
    return Seen(
        images={
            (tower, camera): _patches(policy, observations, attended[tower], camera, shown[camera].grid)
            for tower in QUERIES
            for camera in spec.cameras
        },
        mass={tower: _shares(attended[tower], parts[tower], named) for tower in QUERIES},
        words={tower: _to_words(attended[tower], language.start, tokens) for tower in QUERIES},
        contribution={} if wrote is None else {"expert": _numbers(wrote)},
        prediction=_numbers(policy.unnormalise_actions(action, states_of(observations, action.device))),
        parts=named,
        vocabulary=vocabulary,
        cameras=shown,
    )


def _contributions(
    policy: Policy, batch: Batch, noise: Tensor
) -> tuple[Float[Tensor, "layer head frame action"] | None, Float[Tensor, "frame action"]]:
    """What heads add to the first action, None where that is not known; and that action. Normalised units."""
    try:
        found = direct(policy, batch, noise)
    except UsageError:  # no root-mean-square norm before the readout: there is still attention to see
        return None, policy.denoise(batch, noise)[:, 0, : policy.spec.action_dim]
    return rearrange(
        found.heads[:, :, :, 0], "frame layer head action -> layer head frame action"
    ), found.action[:, 0]


def _stacked(
    policy: Policy, tower: str, kept: Mapping[tuple[str, int], Sequence[Tensor]]
) -> Float[Tensor, "layer head frame key"]:
    """Mean over runs of the tower; heads that a layer lacks are zero."""
    spec = policy.spec.tower(tower)
    means = [torch.stack(list(kept[tower, layer])).mean(dim=0) for layer in range(spec.layers)]
    keys = max(mean.shape[-1] for mean in means)  # cross-attention layers see the prefix alone
    padded = [
        torch.nn.functional.pad(mean, (0, keys - mean.shape[-1], 0, spec.heads - mean.shape[1]))
        for mean in means
    ]
    return rearrange(torch.stack(padded), "layer frame head key -> layer head frame key")


def _patches(
    policy: Policy, observations: Sequence[Observation], attended: Tensor, camera: str, grid: tuple[int, int]
) -> Float[np.ndarray, "layer head frame row column"]:
    span = policy.spec.span(f"image/{camera}")
    shown = np.stack([~bars(policy, o.images[camera].shape[:2], grid) for o in observations])
    return _numbers(attended[..., span.slice].unflatten(-1, grid)) * shown.astype(np.float32)


def _camera(policy: Policy, observation: Observation, name: str) -> Camera:
    span = policy.spec.span(f"image/{name}")
    box = policy.spec.letterbox(*observation.images[name].shape[:2])
    return Camera(span.grid or (1, len(span)), vars(box))


def _to_words(
    attended: Tensor, language: int, tokens: Sequence[Sequence[int]]
) -> Float[np.ndarray, "layer head frame word"]:
    if not tokens:
        return _numbers(attended[..., :0])
    return _numbers(
        torch.stack([attended[..., [language + at for at in word]].sum(-1) for word in tokens], -1)
    )


def _shares(
    attended: Tensor, parts: Mapping[str, Tensor], named: Sequence[str]
) -> Float[np.ndarray, "layer head frame part"]:
    """Sums over the keys of every part; a part that the tower does not see has none."""
    frames, keys = attended.shape[-2:]
    nothing = torch.zeros(frames, keys, dtype=torch.bool, device=attended.device)
    inside = torch.stack([parts.get(name, nothing) for name in named]).to(attended)
    return _numbers(einsum(attended, inside, "layer head frame key, part frame key -> layer head frame part"))


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def words_of(policy: Policy, instruction: str) -> tuple[tuple[str, ...], list[list[int]]]:
    """The words of the instruction as the policy reads it, and the places of their tokens in the language span.

    A word is what stands between blanks; a tokenizer may cut it in pieces. Nothing for a policy without a tokenizer
    that says where its tokens come from.
    """
    tokenizer = getattr(policy, "tokenizer", None)
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return (), []
    preprocessing = getattr(policy, "preprocessing", None)
    instruction = preprocessing.cleaned(instruction) if preprocessing else instruction
    spans = [match.span() for match in re.finditer(r"\S+", instruction)]
    offsets = tokenizer(instruction, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    tokens: list[list[int]] = [[] for _ in spans]
    first_token = getattr(policy, "prompt_start", 1)  # 0 is <bos>, where there is one
    for at, (start, stop) in enumerate(offsets, start=first_token):
        for word, (first, last) in enumerate(spans):
            if start < last and stop > first:
                tokens[word].append(at)
                break
    return tuple(instruction[first:last] for first, last in spans), tokens
