"""PI0 and PI0.5 in LeRobot: a SigLIP tower, a Gemma vlm, and a Gemma expert that reads the vlm's keys and values.

PI0's expert reads the state as its first token, PI0.5 finds it written out in the prompt. PI0.5 tells its expert the
flow time by adaptive norms whose gates scale what attention and MLP add to the stream (`hook_attn_out` is before the
gate).

Sources: Black et al., pi0 (arXiv 2410.24164), pi0.5 (arXiv 2504.16054); lerobot/policies/pi0, pi05.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from interp.errors import UsageError
from interp.policies.lerobot.architecture import Flow, Layout, Stack, between, block_of, kept, positions_of
from interp.policies.pi0_cache import cache_over
from interp.policies.protocol import Batch, Block, Prefix, Readout

_UNSEEN = -2.3819763e38  # what openpi adds to the scores of tokens that are not seen


class _First(nn.Module):
    """Of a module that answers with a tuple, its first part: LeRobot's norms also answer with a gate."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return out[0] if isinstance(out, tuple) else out


class PI(Flow):
    """An `Architecture` (see architecture.py)."""

    def __init__(self, module: Any) -> None:
        self.module = module
        config, both = module.config, module.model.paligemma_with_expert
        self.has_state = hasattr(module.model, "state_proj")
        self.horizon, self.flow_steps = config.chunk_size, config.num_inference_steps
        self.max_action_dim, self.max_tokens = config.max_action_dim, config.tokenizer_max_length
        # PI0's prompt is <bos> and the instruction; PI0.5's also holds the state, in between words.
        self.prompt_start = 1 if self.has_state else None
        paligemma = both.paligemma.model
        self._vision, self._vlm = paligemma.vision_tower.vision_model, paligemma.language_model
        self._expert = both.gemma_expert.model

    # ---- its parts

    def towers(self) -> Mapping[str, Stack]:
        vision, vlm, expert = self._vision.config, self._vlm.config, self._expert.config
        heads = vision.num_attention_heads
        return {
            "vision": Stack(self._vision, self._vision.encoder.layers, heads, vision.hidden_size // heads),
            "vlm": Stack(self._vlm, self._vlm.layers, vlm.num_key_value_heads, vlm.head_dim),
            "expert": Stack(self._expert, self._expert.layers, expert.num_key_value_heads, expert.head_dim),
        }

    def block(self, tower: str, layer: int) -> Block:
        return block_of(self.towers()[tower].layers[layer])

    def layout(self, cameras: Sequence[str]) -> Layout:
        vision, size = self._vision.config, self.module.config.image_resolution[0]
        side = size // vision.patch_size
        suffix = [("state", 1)] if self.has_state else []
        images = [(f"image/{camera}", side * side) for camera in cameras]
        return Layout.of(
            [*images, ("language", self.max_tokens), *suffix, ("action", self.horizon)],
            (side, side),
            suffix="state" if self.has_state else "action",
            image_size=size,
            anchor="centre",
        )

    # ---- the network

    def inputs(self, processed: Mapping[str, Tensor]) -> Batch:
        images, real = self.module._preprocess_images(dict(processed))
        # Cameras that a config only announces (empty_cameras) are masked out: nothing reads them.
        seen = [image for image, mask in zip(images, real, strict=True) if mask.all()]
        return {"pixel_values": torch.stack(seen, dim=1)}

    def prefix(self, batch: Batch) -> Prefix:
        both, cameras = self.module.model.paligemma_with_expert, batch["pixel_values"].shape[1]
        images = both.embed_image(batch["pixel_values"].flatten(0, 1))
        images = rearrange(images, "(b camera) token d -> b (camera token) d", camera=cameras)
        mask = batch["attention_mask"].bool()
        # LeRobot's own, without images: who scales the words has changed from version to version.
        words, _, _ = self.module.model.embed_prefix([], [], batch["input_ids"], mask)
        hidden = torch.cat([images.to(words.dtype), words], dim=1)
        _, cache = both.forward(
            attention_mask=between(_UNSEEN, mask[:, None] & mask[:, :, None], self._like(hidden)),
            position_ids=positions_of(mask),
            past_key_values=None,
            inputs_embeds=[hidden, None],
            use_cache=True,
        )
        keys, values = zip(*kept(cache), strict=True)
        return Prefix(keys, values, batch["attention_mask"])

    def velocity(self, batch: Batch, x: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        model = self.module.model
        given = (batch["state"],) if self.has_state else ()
        x = x.to(model.action_in_proj.weight.dtype)
        hidden, _, _, condition = model.embed_suffix(*given, x, time.float())
        hidden = hidden.to(self._expert.layers[0].self_attn.q_proj.weight.dtype)
        length, past = hidden.shape[1], prefix.mask.bool()
        pos = torch.arange(length, device=x.device)
        # Actions see everything, the state only the prefix and itself.
        own = (pos[:, None] >= len(given)) | (pos == 0)
        seen = torch.cat([past[:, None].expand(-1, length, -1), own.expand(len(x), -1, -1)], dim=-1)
        (_, out), _ = model.paligemma_with_expert.forward(
            attention_mask=between(_UNSEEN, seen, self._like(hidden)),
            position_ids=past.sum(dim=1, keepdim=True) + pos,
            past_key_values=cache_over(prefix),
            inputs_embeds=[None, hidden],
            use_cache=False,
            adarms_cond=[None, condition],
        )
        return model.action_out_proj(out[:, -self.horizon :].to(model.action_out_proj.weight.dtype))

    def _like(self, hidden: Tensor) -> Tensor:
        """Masks have the precision of the weights: fused attention asks for it."""
        return hidden.to(self._vlm.layers[0].self_attn.q_proj.weight.dtype)

    def lerobots(self, processed: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
        before = [tower.config._attn_implementation for tower in (self._vlm, self._expert)]
        try:
            return super().lerobots(processed, seed)
        finally:  # LeRobot switches its towers to eager attention and leaves them so
            for tower, how in zip((self._vlm, self._expert), before, strict=True):
                tower.config._attn_implementation = how

    def readout(self) -> Readout:
        if not self.has_state:
            raise UsageError(
                "lerobot/pi05: its residual streams are gated and its last norm depends on the flow time, so what a "
                "head writes into the action directly is not defined here; use patch, ablation or attribute"
            )
        return Readout(
            _First(self._expert.norm), self.module.model.action_out_proj, scale=-1.0 / self.flow_steps
        )
