"""X-VLA: Florence-2's encoder reads the first camera and the instruction; one transformer reads its output, the other
cameras and soft prompts of the robot's domain together with the action tokens, and predicts clean actions.

That transformer is the `expert` tower here. It has no prefix of keys and values: what it reads of the observation are
tokens of its own sequence, so every flow step computes them again, and an edit of the vlm changes all of its layers.
DaViT, the vision tower, attends within windows and between channels: its heads have no positions in the image, and are
left out.

The sampler starts every flow step from the first noise again, x_t = t noise + (1 - t) estimate. So x holds both,
[estimate, noise] along the last axis, and the action is in its first half.

Source: Zheng et al., X-VLA (arXiv 2510.10274); lerobot/policies/xvla.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.errors import UsageError
from interp.policies.lerobot.architecture import Layout, Stack, block_of
from interp.policies.protocol import Batch, Block, Prefix, Readout


class XVLA:
    """An `Architecture` (see architecture.py)."""

    def __init__(self, module: Any) -> None:
        self.module = module
        config, model = module.config, module.model
        self.horizon, self.flow_steps = config.chunk_size, max(1, config.num_denoising_steps)
        self.dim = model.dim_action
        self.max_action_dim, self.max_tokens = 2 * self.dim, config.tokenizer_max_length
        self.prompt_start = 1  # BART begins with <s>
        # LeRobot 0.4's own Florence-2 has a level more than transformers'.
        language = model.vlm.language_model
        self._encoder, self._transformer = getattr(language, "model", language).encoder, model.transformer
        self._weight, self._logits = _weights(model.action_space)

    # ---- its parts

    def towers(self) -> Mapping[str, Stack]:
        attention, block = self._encoder.layers[0].self_attn, self._transformer.blocks[0].attn
        return {
            "vlm": Stack(self._encoder, self._encoder.layers, attention.num_heads, attention.head_dim),
            "expert": Stack(self._transformer, self._transformer.blocks, block.num_heads, block.head_dim),
        }

    def block(self, tower: str, layer: int) -> Block:
        block = self.towers()[tower].layers[layer]
        if tower == "expert":  # queries, keys and values are one projection: they have no hooks of their own
            return Block(block, block.attn, block.attn.proj, mlp=block.mlp)
        return block_of(block)

    def query(self, tower: str, layer: int) -> nn.Linear | None:
        if tower == "expert":
            return self._transformer.blocks[layer].attn.qkv  # [queries, keys, values], each head by head
        return self.block(tower, layer).query

    def layout(self, cameras: Sequence[str]) -> Layout:
        config = self.module.config
        size = config.resize_imgs_with_padding or next(iter(config.image_features.values())).shape[-2:]
        if size[0] != size[1]:
            raise UsageError(
                f"this X-VLA sees images of {tuple(size)}: set resize_imgs_with_padding to a square"
            )
        tokens = self._tokens_of_an_image(size[0])
        views = max(config.num_image_views or 0, len(cameras))
        # In the expert's own sequence the actions come first, then what the vlm made of its tokens, then the rest.
        others = [(f"image/{camera}", tokens) for camera in cameras[1:]]
        blank = [("views without a camera", tokens * (views - len(cameras)))]
        prompts = [("soft prompts", config.len_soft_prompts)]
        expert = [("action", self.horizon), ("read", tokens + self.max_tokens), *others, *blank, *prompts]
        return Layout.of(
            [(f"image/{cameras[0]}", tokens), ("language", self.max_tokens), *expert],
            (1, tokens),
            suffix="action",
            image_size=size[0],
            anchor="bottom-right" if config.resize_imgs_with_padding else "stretch",
        )

    def _tokens_of_an_image(self, size: int) -> int:
        like, word = next(self.module.parameters()), torch.zeros(1, 1, dtype=torch.long)
        with torch.no_grad():
            blank = (
                like.new_zeros(1, 1, 3, size, size),
                torch.ones(1, 1, dtype=torch.bool, device=like.device),
            )
            read = self.module.model.forward_vlm(word.to(like.device), *blank)["vlm_features"]
        return read.shape[1] - 1

    # ---- the network

    def inputs(self, processed: Mapping[str, Tensor]) -> Batch:
        found = self.module._build_model_inputs(dict(processed))
        real = found["image_mask"][0]
        return {"pixel_values": found["image_input"][:, real], "domain_id": found["domain_id"][:, None]}

    def prefix(self, batch: Batch) -> Prefix:
        pixels = batch["pixel_values"].to(next(self.module.parameters()).dtype)
        rows, cameras = pixels.shape[:2]
        real = torch.ones(rows, cameras, dtype=torch.bool, device=pixels.device)
        found = self.module.model.forward_vlm(batch["input_ids"], pixels, real)
        seen, others = found["vlm_features"], found["aux_visual_inputs"]
        # Views without a camera are zeros, and are read.
        views = max(self.module.config.num_image_views or 0, cameras)
        tokens = others.shape[1] // max(1, cameras - 1) if cameras > 1 else seen.shape[1] - self.max_tokens
        others = F.pad(others, (0, 0, 0, tokens * (views - cameras)))
        return Prefix((), (), batch["attention_mask"], (seen, others))

    def velocity(self, batch: Batch, x: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        """Of the first half, noise - actions; the second stands still."""
        noise = x[..., self.dim :]
        return torch.cat([noise - self._predicted(batch, x, time, prefix), torch.zeros_like(noise)], dim=-1)

    def _predicted(self, batch: Batch, x: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        model, dtype = self.module.model, next(self.module.parameters()).dtype
        t = time.to(dtype)[:, None, None]
        estimate, noise = x.to(dtype).split(self.dim, dim=-1)
        proprio = batch["state"].to(dtype)[:, : model.dim_proprio]
        proprio, mixed = model.action_space.preprocess(proprio, t * noise + (1 - t) * estimate)
        return self._transformer(
            domain_id=batch["domain_id"][:, 0],
            action_with_noise=mixed,
            proprio=proprio,
            t=time.to(dtype),
            vlm_features=prefix.read[0],
            aux_visual_inputs=prefix.read[1],
        )

    def step(self, batch: Batch, x: Tensor, at: int, prefix: Prefix) -> Tensor:
        estimate, noise = x.split(self.dim, dim=-1)
        if at == 0:  # nothing is known of the action yet: all of x is noise
            x = torch.cat([torch.zeros_like(estimate), noise], dim=-1)
        time = torch.full((len(x),), (self.flow_steps - at) / self.flow_steps, device=x.device)
        found = self._predicted(batch, x, time, prefix)
        if at == self.flow_steps - 1 and self._logits:
            found = found.clone()
            found[..., self._logits] = found[..., self._logits].sigmoid()
        return torch.cat([found.to(x.dtype), noise], dim=-1)

    def loss(self, batch: Batch, actions: Tensor, noise: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        real = actions.shape[-1]
        target = F.pad(actions, (0, self.dim - real))
        x = torch.cat([target, noise[..., self.dim :]], dim=-1)
        found = self._predicted(batch, x, time, prefix)[..., :real]
        error = (found - actions) ** 2
        if self._logits:
            error = error.clone()
            error[..., self._logits] = F.binary_cross_entropy_with_logits(
                found[..., self._logits], actions[..., self._logits], reduction="none"
            )
        return error * self._weight[:real].to(error)

    def lerobots(self, processed: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
        """LeRobot's X-VLA takes no noise: it draws from the global generator, and so do we, from the same seed. What
        goes into the network has the precision that the configuration names: here that of the weights."""
        like, config = next(self.module.parameters()), self.module.config
        named = config.dtype
        config.dtype = str(like.dtype).removeprefix("torch.")
        try:
            return self._lerobots(processed, seed, like)
        finally:
            config.dtype = named

    def _lerobots(self, processed: Mapping[str, Any], seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            torch.manual_seed(seed)
            first = torch.randn(1, self.horizon, self.dim, device=like.device, dtype=like.dtype)
            torch.manual_seed(seed)
            chunk = self.module.predict_action_chunk(dict(processed))
        return torch.cat([torch.zeros_like(first), first], dim=-1).float(), chunk

    def readout(self) -> Readout:
        raise UsageError(
            "lerobot/xvla: its action decoder depends on the robot's domain and follows a layer norm, so what a head "
            "writes into the action directly is not defined here; use patch, ablation or attribute"
        )


def _weights(space: Any) -> tuple[Tensor, list[int]]:
    """By which factors LeRobot's loss of this action space weighs every dimension, so that their mean is its sum; and
    the dimensions that are logits of a gripper."""
    kind, dim = space.name, space.dim_action
    real = {"auto": getattr(space, "real_dim", dim), "franka_joint7": getattr(space, "REAL_DIM", dim)}.get(
        kind, dim
    )
    gripper = list(space.gripper_idx)
    groups: list[tuple[Sequence[int], float]]
    if kind in ("ee6d", "agibot_ee6d"):
        groups = [(space.POS_IDX_1, space.XYZ_SCALE), (space.POS_IDX_2, space.XYZ_SCALE)]
        groups += [(space.ROT_IDX_1, space.ROT_SCALE), (space.ROT_IDX_2, space.ROT_SCALE)]
    elif kind in ("joint", "auto", "franka_joint7"):
        groups = [([at for at in range(real) if at not in gripper], space.JOINTS_SCALE)]
    else:
        raise UsageError(f"this X-VLA's action space {kind!r} is not known here")
    if gripper:
        groups.append((gripper, space.GRIPPER_SCALE))
    weight = torch.zeros(dim)
    for members, scale in groups:
        weight[list(members)] = scale * real / len(members)
    return weight, gripper if kind in ("ee6d", "joint") else []
