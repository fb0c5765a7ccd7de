"""PI0 as transformers implements it: tiny-pi0 and the released 18 x 8 x 256 model are the same class.

A SigLIP tower turns every camera into patch tokens, a Gemma vlm reads them with the instruction, and a
smaller Gemma, the expert, reads the vlm's keys and values layer by layer and predicts the flow's velocity for
[state, actions]. Sampling is driven here rather than by `PI0ForConditionalGeneration.sample_actions`, which
switches gradients off; the two agree to the bit on the same noise.

Source: Black et al., pi0 (arXiv 2410.24164); transformers/models/pi0/modeling_pi0.py.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PI0ForConditionalGeneration, PreTrainedTokenizerBase
from transformers.utils import logging

from interp.errors import UsageError, unknown
from interp.policies.dead import dead_heads
from interp.policies.pi0_cache import CACHE, cache_over
from interp.policies.pi0_files import read
from interp.policies.pi0_spec import pi0_spec
from interp.policies.pi0_weights import load_network
from interp.policies.preprocessing import FILE, Preprocessing
from interp.policies.protocol import Batch, Block, Observation, Prefix, Readout
from interp.policies.spec import TowerSpec
from interp.runs import whole_directory

# What a network computes depends on these and not on the shapes and values of its weights alone.
_DEFINING = (
    "chunk_size", "num_inference_steps", "min_period", "max_period", "image_token_id", "image_token_index",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps",
    "rope_parameters", "patch_size", "image_size", "vision_use_head",
)  # fmt: skip
_UNSAID_RATE = 10  # in fingerprints, as it was once assumed: so they stay


class PI0Policy:
    """A `Policy` (see protocol.py): the network, its tokenizer and its preprocessing."""

    def __init__(
        self,
        module: PI0ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        preprocessing: Preprocessing,
        source: str = "memory",
    ) -> None:
        # Frozen by default: gradients then flow to activations, and only what somebody unfreezes costs
        # memory.
        self.module: Any = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.source = source
        self.spec = pi0_spec(module.config, preprocessing)
        self.spec = replace(self.spec, towers={name: self._counted(name) for name in self.spec.towers})
        self.fingerprint = self._fingerprint()
        dead = dead_heads(self)
        towers = {name: replace(tower, dead=dead[name]) for name, tower in self.spec.towers.items()}
        self.spec = replace(self.spec, towers=towers)

    # ---- loading and saving

    @classmethod
    def load(
        cls, directory: str | Path, device: str | torch.device = "cpu", source: str | None = None
    ) -> "PI0Policy":
        """Of transformers', LeRobot's or openpi's making: see pi0_files.py."""
        found = read(Path(directory))
        module = load_network(found.config, found.stored, device)
        return cls(module, found.tokenizer, found.preprocessing, source or str(directory))

    def save(self, directory: str | Path) -> None:
        target = Path(directory)
        if (
            target.exists()
            and not (target / FILE).is_file()
            and (not target.is_dir() or any(target.iterdir()))
        ):
            raise UsageError(f"{target} exists and is not a policy: give an empty or new directory")
        with whole_directory(target) as fresh:
            _quietly(self.module.save_pretrained, fresh)
            self.tokenizer.save_pretrained(fresh)
            about = {**self.preprocessing.to_json(), **self.preprocessing.notes}
            (fresh / FILE).write_text(json.dumps(about, indent=1))

    def _counted(self, tower: str) -> TowerSpec:
        """With the heads that the output projections really read: layers of a pruned network differ."""
        spec = self.spec.towers[tower]
        reads = (self.out_projection(tower, layer).in_features for layer in range(spec.layers))
        return replace(spec, heads_per_layer=tuple(width // spec.d_head for width in reads))

    def _fingerprint(self) -> str:
        """Over weights, preprocessing, vocabulary and the defining part of the configuration: not over file
        names, library versions or comments, so that a copy or a re-save of the same policy keeps its
        fingerprint."""
        digest = hashlib.sha256()
        defining = sorted(_walk_config(self.module.config.to_dict()))
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        about = {"fps": _UNSAID_RATE, **self.preprocessing.to_json()}
        digest.update(json.dumps([about, defining, vocabulary], sort_keys=True).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return f"pi0-{digest.hexdigest()[:16]}"

    # ---- observations

    def batch(self, observations: Sequence[Observation]) -> Batch:
        if not observations:
            raise UsageError("a batch needs at least one observation")
        spec = self.spec
        for observation in observations:
            missing = [camera for camera in spec.cameras if camera not in observation.images]
            if missing:
                raise UsageError(
                    f"observation lacks camera {missing[0]!r}: the policy needs {', '.join(spec.cameras)}, "
                    f"the observation has {', '.join(observation.images) or 'none'}"
                    f"{spec.without_camera(observation.images)}"
                )
            if len(observation.state) != spec.state_dim:
                raise UsageError(
                    f"state has {len(observation.state)} numbers: the policy needs {spec.state_dim}"
                )
        pixels = [
            torch.stack([self.preprocessing.pixels(observation.images[camera]) for camera in spec.cameras])
            for observation in observations
        ]
        states = torch.stack(
            [torch.as_tensor(observation.state, dtype=torch.float32) for observation in observations]
        )
        language, words = self._tokenise([observation.instruction for observation in observations])
        n_image = spec.span("language").start
        image_tokens = torch.full((len(observations), n_image), self.module.config.vlm_config.image_token_id)
        batch = {
            "pixel_values": torch.stack(pixels).to(self._pixel_dtype),
            "pixel_attention_mask": torch.ones(len(observations), len(spec.cameras), dtype=torch.bool),
            "input_ids": torch.cat([image_tokens, language], dim=1),
            "attention_mask": torch.cat([torch.ones_like(image_tokens), words], dim=1),
            "state": self._padded(self.normalise_state(states), self.module.config.max_state_dim),
        }
        return {name: tensor.to(self.module.device) for name, tensor in batch.items()}

    def _tokenise(
        self, instructions: Sequence[str]
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """<bos> and the instruction's tokens, padded to max_tokens; and a mask that is 0 on the padding."""
        length = self.preprocessing.max_tokens
        ids = torch.full((len(instructions), length), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, instruction in enumerate(instructions):
            text = self.preprocessing.prompt(instruction)
            words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = [self.tokenizer.bos_token_id, *words]
            if len(tokens) > length:
                raise UsageError(
                    f"instruction {instruction!r} has {len(tokens) - 1} tokens: "
                    f"the policy takes at most {length - 1}"
                )
            if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in tokens:
                warnings.warn(
                    f"instruction {instruction!r} has words that the policy does not know", stacklevel=3
                )
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask

    @staticmethod
    def _padded(values: Float[Tensor, "*axes dim"], dim: int) -> Float[Tensor, "*axes padded"]:
        return F.pad(values, (0, dim - values.shape[-1]))

    # ---- the network

    @property
    def _pixel_dtype(self) -> torch.dtype:
        return self.module.model.vlm.vision_tower.embeddings.patch_embedding.weight.dtype

    @property
    def _flow_dtype(self) -> torch.dtype:
        """Of state, noisy actions and velocity: float32 in released policies, whose towers are bfloat16."""
        return self.module.action_out_proj.weight.dtype

    def prefix(self, batch: Batch, draws: int = 1) -> Prefix:
        model, mask = self.module.model, batch["attention_mask"]
        embeddings = model.embed_prefix(
            batch["input_ids"], batch["pixel_values"], batch["pixel_attention_mask"]
        )
        out = model.vlm(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            # Type 0 is what makes attention within the prefix bidirectional.
            token_type_ids=torch.zeros_like(embeddings[..., 0]),
            use_cache=True,
        )
        layers = getattr(out, CACHE).layers
        prefix = Prefix(tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers), mask)
        return prefix.repeat(draws)

    def velocity(
        self,
        batch: Batch,
        x: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        """`cache` is over the prefix; kept from step to step it saves copying the prefix every time."""
        rows = len(batch["state"])
        if len(x) % rows or len(time) != len(x):
            raise UsageError(
                f"x has {len(x)} rows and time {len(time)}: both must be a multiple of the batch's {rows}"
            )
        draws = len(x) // rows
        if prefix is None:
            prefix = self.prefix(batch, draws)
        if len(prefix) not in (rows, len(x)):
            raise UsageError(
                f"the prefix has {len(prefix)} rows and x {len(x)}: it needs one a draw, or {rows} to be shared"
            )
        if len(prefix) < len(x):
            return self._velocity_of_draws(batch, x, time, prefix)
        return self.module(
            state=batch["state"].repeat_interleave(draws, dim=0).to(self._flow_dtype),
            noise=x.to(self._flow_dtype),
            timestep=time.float(),
            attention_mask=prefix.mask,
            **{CACHE: cache_over(prefix) if cache is None else cache},
        ).logits

    def _velocity_of_draws(
        self,
        batch: Batch,
        x: Float[Tensor, "batch_draw horizon max_action_dim"],
        time: Float[Tensor, " batch_draw"],
        prefix: Prefix,
    ) -> Float[Tensor, "batch_draw horizon max_action_dim"]:
        """All draws of an observation as one sequence over its prefix, which is then neither copied nor read
        once a draw. A block-diagonal mask keeps the draws apart, so the numbers are those of a repeated prefix.
        """
        draws = len(x) // len(prefix)
        state = batch["state"].repeat_interleave(draws, dim=0).to(self._flow_dtype)
        tokens = self.module.embed_action_time(state, x.to(self._flow_dtype), time.float())
        tokens = rearrange(tokens, "(batch draw) pos d_model -> batch (draw pos) d_model", draw=draws)

        length = 1 + self.spec.horizon  # the state, then the actions
        draw = torch.arange(draws, device=x.device).repeat_interleave(length)
        pos = torch.arange(length, device=x.device).repeat(draws)
        # Within its draw an action sees everything, the state only itself.
        suffix = (draw[:, None] == draw) & ((pos[:, None] > 0) | (pos == 0))
        past = prefix.mask.bool()
        seen = torch.cat(
            [
                repeat(past, "batch token -> batch 1 query token", query=len(pos)),
                repeat(suffix, "query key -> batch 1 query key", batch=len(past)),
            ],
            dim=-1,
        )
        blocked = torch.zeros(seen.shape, dtype=tokens.dtype, device=x.device)
        blocked.masked_fill_(~seen, torch.finfo(tokens.dtype).min)
        model = self.module.model
        out = model.dit(
            inputs_embeds=tokens,
            attention_mask=blocked,
            position_ids=past.sum(dim=-1, keepdim=True) + pos,
            **{CACHE: cache_over(prefix)},
        ).last_hidden_state
        actions = rearrange(out, "batch (draw pos) d_model -> (batch draw) pos d_model", draw=draws)[:, 1:]
        return self.module.action_out_proj(actions)

    def loss(
        self,
        batch: Batch,
        actions: Float[Tensor, "batch horizon action"],
        noise: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon action"]:
        target = self._padded(actions, self.spec.max_action_dim)
        t = rearrange(time, "batch -> batch 1 1")
        velocity = self.velocity(batch, t * noise + (1 - t) * target, time, prefix)
        return ((velocity - (noise - target)) ** 2)[..., : self.spec.action_dim]

    def denoise(
        self,
        batch: Batch,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        prefix: Prefix | None = None,
        steps: range | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        if prefix is None:
            prefix = self.prefix(batch, len(noise) // len(batch["state"]))
        total = self.spec.flow_steps
        dt = -1.0 / total
        cache = cache_over(prefix)
        x = noise
        for step in range(total) if steps is None else steps:
            time = torch.full((len(x),), 1.0 + step * dt, dtype=torch.float32, device=x.device)
            x = x + dt * self.velocity(batch, x, time, prefix, cache)
        return x

    def sample(
        self, batch: Batch, noise: Float[Tensor, "batch horizon max_action_dim"], prefix: Prefix | None = None
    ) -> Float[Tensor, "batch horizon action"]:
        actions, state = self.denoise(batch, noise, prefix)[..., : self.spec.action_dim], None
        if self.preprocessing.acts_in_deltas:
            state = self.preprocessing.state.invert(batch["state"][:, : self.spec.state_dim])
            state = state.repeat_interleave(len(noise) // len(state), dim=0)
        return self.unnormalise_actions(actions, state)

    def noise(self, n: int, seed: int | torch.Generator) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Standard normal, drawn on the CPU so that a seed means the same on every device."""
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        drawn = torch.randn(n, self.spec.horizon, self.spec.max_action_dim, generator=generator)
        return drawn.to(self.module.device, self._flow_dtype)

    def normalise_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        return self.preprocessing.state.apply(state)

    def normalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None = None
    ) -> Float[Tensor, "batch *axes action"]:
        return self.preprocessing.normalise_actions(actions, state)

    def unnormalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None = None
    ) -> Float[Tensor, "batch *axes action"]:
        return self.preprocessing.unnormalise_actions(actions, state)

    # ---- its parts

    def tower_module(self, tower: str) -> nn.Module:
        model = self.module.model
        towers = {"vision": model.vlm.vision_tower, "vlm": model.vlm.language_model, "expert": model.dit}
        if tower not in towers:
            raise unknown("tower", tower, towers)
        return towers[tower]

    def block(self, tower: str, layer: int) -> Block:
        stack: Any = self.tower_module(tower)
        layers = stack.encoder.layers if tower == "vision" else stack.layers
        if not 0 <= layer < len(layers):
            raise UsageError(
                f"tower {tower} has {len(layers)} layers (0-{len(layers) - 1}), not layer {layer}"
            )
        attention = layers[layer].self_attn
        return Block(
            layer=layers[layer],
            attention=attention,
            out=attention.out_proj if tower == "vision" else attention.o_proj,
            query=attention.q_proj,
            key=attention.k_proj,
            value=attention.v_proj,
            mlp=layers[layer].mlp,
        )

    def attention(self, tower: str, layer: int) -> nn.Module:
        return self.block(tower, layer).attention

    def out_projection(self, tower: str, layer: int) -> nn.Linear:
        return self.block(tower, layer).out

    def query_projection(self, tower: str, layer: int) -> nn.Linear:
        query = self.block(tower, layer).query
        assert query is not None
        return query

    def readout(self) -> Readout:
        # An Euler step of flow time -1 / steps along the velocity.
        return Readout(
            self.module.model.dit.norm, self.module.action_out_proj, scale=-1.0 / self.spec.flow_steps
        )


def _quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Without transformers' own progress bars, which would break into ours."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return call(*args, **kwargs)
    finally:
        if enabled:
            logging.enable_progress_bar()


def _walk_config(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            yield from _walk_config(value, f"{path}{name}.")
        elif name in _DEFINING:
            yield f"{path}{name}", json.dumps(value, sort_keys=True)
