"""SmolVLA: a SigLIP tower, a Llama vlm whose prefix ends with the state, and an expert that reads the vlm's keys and
values layer by layer, in some layers through self-attention over prefix and actions, in the others by cross-attention.

LeRobot's loop calls the projections of every layer and never the layers. Here layers are called; their attention is
given a `forward` that computes what that loop computes: rotation in float32, keys and values of the prefix behind which
a self-attention layer puts its own, and which a cross-attention layer projects again.

Source: Shukor et al., SmolVLA (arXiv 2506.01844); lerobot/policies/smolvla.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from lerobot.policies.smolvla.smolvlm_with_expert import apply_rope
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

from interp.errors import UsageError
from interp.policies.lerobot.architecture import (
    Flow,
    Layout,
    Stack,
    between,
    block_of,
    kept,
    positions_of,
    through,
)
from interp.policies.pi0_cache import cache_over
from interp.policies.protocol import Batch, Block, Prefix, Readout


class SelfAttention(LlamaAttention):
    """Over the prefix and what came before it in this pass."""

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: Any,
        **others: Any,
    ) -> tuple[Tensor, None]:
        hidden = hidden_states.to(self.q_proj.weight.dtype)
        q = _rotated(_heads(self.q_proj(hidden), self.head_dim), position_ids)
        k = _rotated(_heads(self.k_proj(hidden), self.head_dim), position_ids)
        v = _heads(self.v_proj(hidden), self.head_dim)
        k, v = past_key_values.update(k, v, self.layer_idx)
        return _attended(self, q, k, v, attention_mask), None


class CrossAttention(LlamaAttention):
    """Over the prefix alone. The mask's first columns are the prefix; positions count from the first action."""

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: Any,
        **others: Any,
    ) -> tuple[Tensor, None]:
        hidden = hidden_states.to(self.q_proj.weight.dtype)
        start = position_ids.min(dim=1, keepdim=True).values
        q = _rotated(_heads(self.q_proj(hidden), self.head_dim), position_ids - start)
        read = past_key_values.layers[self.layer_idx]
        k, v = (
            _heads(
                projection(rearrange(part, "b head pos d -> b pos (head d)").to(projection.weight.dtype)),
                self.head_dim,
            )
            for projection, part in ((self.k_proj, read.keys), (self.v_proj, read.values))
        )
        return _attended(self, q, k, v, attention_mask[..., : k.shape[-2]]), None


def _heads(projected: Tensor, d_head: int) -> Tensor:
    return rearrange(projected, "b pos (head d) -> b head pos d", d=d_head)


def _rotated(x: Tensor, positions: Tensor) -> Tensor:
    return apply_rope(x.transpose(1, 2), positions).transpose(1, 2)


def _attended(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    how = module.config._attn_implementation
    attend = eager_attention_forward if how == "eager" else ALL_ATTENTION_FUNCTIONS[how]
    z, _ = attend(module, q, k.to(q.dtype), v.to(q.dtype), mask.to(q.dtype), scaling=module.scaling)
    return module.o_proj(rearrange(z, "b pos head d -> b pos (head d)").to(module.o_proj.weight.dtype))


class SmolVLA(Flow):
    """An `Architecture` (see architecture.py)."""

    def __init__(self, module: Any) -> None:
        self.module = module
        config, both = module.config, module.model.vlm_with_expert
        if both.num_expert_layers != both.num_vlm_layers:
            raise UsageError(
                f"this SmolVLA's expert has {both.num_expert_layers} layers and its vlm {both.num_vlm_layers}: only "
                "experts that read the vlm layer by layer are supported (num_expert_layers -1)"
            )
        if config.adapt_to_pi_aloha:
            raise UsageError(
                "this SmolVLA converts Aloha's joints (adapt_to_pi_aloha), which is not supported"
            )
        self.horizon, self.flow_steps = config.chunk_size, config.num_steps
        self.max_action_dim, self.max_tokens = config.max_action_dim, config.tokenizer_max_length
        self.prompt_start = 0
        vlm = both.vlm.model
        self._vision, self._vlm, self._expert = vlm.vision_model, vlm.text_model, both.lm_expert
        every, cross = both.self_attn_every_n_layers, "cross" in both.attention_mode
        for at, layer in enumerate(self._vlm.layers):
            # The same modules with the same weights; LeRobot's loop uses their projections and goes on doing so.
            layer.self_attn.__class__ = SelfAttention
            alone = cross and not (every > 0 and at % every == 0)
            self._expert.layers[at].self_attn.__class__ = CrossAttention if alone else SelfAttention

    # ---- its parts

    def towers(self) -> Mapping[str, Stack]:
        text, vision = self._vlm.config, self._vision.config
        heads = vision.num_attention_heads
        return {
            "vision": Stack(self._vision, self._vision.encoder.layers, heads, vision.hidden_size // heads),
            "vlm": Stack(self._vlm, self._vlm.layers, text.num_key_value_heads, text.head_dim),
            "expert": Stack(self._expert, self._expert.layers, text.num_key_value_heads, text.head_dim),
        }

    def block(self, tower: str, layer: int) -> Block:
        return block_of(self.towers()[tower].layers[layer])

    def layout(self, cameras: Sequence[str]) -> Layout:
        config, vision = self.module.config, self._vision.config
        size = config.resize_imgs_with_padding
        if size is None or size[0] != size[1]:
            raise UsageError(
                f"resize_imgs_with_padding is {size}: images must be made square for this SmolVLA"
            )
        side = size[0] // vision.patch_size
        grid = (side // self._scale, side // self._scale)
        before, after = (2, 1) if config.add_image_special_tokens else (0, 0)
        images = [[("-", before), (f"image/{camera}", grid[0] * grid[1]), ("-", after)] for camera in cameras]
        return Layout.of(
            [
                *(part for image in images for part in image),
                ("language", self.max_tokens),
                ("state", 1),
                ("action", self.horizon),
            ],
            grid,
            suffix="action",
            image_size=size[0],
            anchor="bottom-right",
            patches=(side, side),
        )

    @property
    def _scale(self) -> int:
        return self.module.model.vlm_with_expert.config.scale_factor

    # ---- the network

    def inputs(self, processed: Mapping[str, Tensor]) -> Batch:
        images, real = self.module.prepare_images(dict(processed))
        # Cameras that a config only announces (empty_cameras) are masked out: nothing reads them.
        seen = [image for image, mask in zip(images, real, strict=True) if mask.all()]
        return {"pixel_values": torch.stack(seen, dim=1)}

    def prefix(self, batch: Batch) -> Prefix:
        hidden = self._embedded(batch)
        mask = batch["attention_mask"].bool()
        seen = mask[:, None, :] & mask[:, :, None]
        seen[:, :-1, -1] = False  # images and words do not see the state
        cache = DynamicCache()
        through(
            self._vlm.layers,
            hidden,
            attention_mask=between(torch.finfo(hidden.dtype).min, seen, hidden),
            position_ids=positions_of(mask),
            past_key_values=cache,
        )
        keys, values = zip(*kept(cache), strict=True)
        return Prefix(keys, values, batch["attention_mask"])

    def _embedded(self, batch: Batch) -> Tensor:
        model, words = self.module.model, self._vlm.get_input_embeddings()
        cameras = batch["pixel_values"].shape[1]
        images = model.vlm_with_expert.embed_image(batch["pixel_values"].flatten(0, 1))
        images = images * math.sqrt(images.shape[-1])
        if model.add_image_special_tokens:
            device = images.device
            start, end = (
                words(tokens.to(device))[None].expand(len(images), -1, -1)
                for tokens in (model.global_image_start_token, model.image_end_token)
            )
            images = torch.cat([start, images, end], dim=1)
        images = rearrange(images, "(b camera) token d -> b (camera token) d", camera=cameras)
        language = words(batch["input_ids"])
        language = language * math.sqrt(language.shape[-1])
        state = model.state_proj(batch["state"].to(model.state_proj.weight.dtype))[:, None]
        dtype = self._vlm.layers[0].self_attn.q_proj.weight.dtype
        return torch.cat([images.to(dtype), language.to(dtype), state.to(dtype)], dim=1)

    def velocity(self, batch: Batch, x: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        model = self.module.model
        hidden, _, _ = model.embed_suffix(x.to(model.action_in_proj.weight.dtype), time.float())
        hidden = hidden.to(self._expert.layers[0].self_attn.q_proj.weight.dtype)
        past = prefix.mask.bool()
        pos = torch.arange(self.horizon, device=x.device)
        # An action sees the prefix and the actions up to itself.
        causal = (pos[:, None] >= pos).expand(len(x), -1, -1)
        seen = torch.cat([past[:, None].expand(-1, self.horizon, -1), causal], dim=-1)
        hidden = through(
            self._expert.layers,
            hidden,
            attention_mask=between(torch.finfo(hidden.dtype).min, seen, hidden),
            position_ids=past.sum(dim=1, keepdim=True) + pos,
            past_key_values=cache_over(prefix),
        )
        return model.action_out_proj(self._expert.norm(hidden).to(model.action_out_proj.weight.dtype))

    def readout(self) -> Readout:
        norm: nn.Module = self._expert.norm
        return Readout(norm, self.module.model.action_out_proj, scale=-1.0 / self.flow_steps)
