"""PI0 and PI0.5 small enough to be built in a second; with LeRobot 0.4, on stock transformers.

LeRobot 0.4's PI0 refuses stock transformers: it wants a git branch whose Gemma has adaptive norms with gates, does not
scale its embeddings, and whose image features are not scaled either. There `install` puts classes with that behaviour,
written here, in the places where LeRobot 0.4 looks for them. From 0.5 on, LeRobot brings these classes itself
(pi_gemma.py), and they are only made small. The library never uses this.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import transformers.models.gemma.modeling_gemma as gemma
import transformers.models.paligemma.modeling_paligemma as paligemma
import transformers.models.siglip as siglip
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

VOCABULARY = 400
OWN_GEMMA = find_spec("lerobot.policies.pi_gemma") is not None
"""LeRobot 0.5 and newer."""


def install() -> None:
    import lerobot.policies.pi0.modeling_pi0 as pi0
    import lerobot.policies.pi05.modeling_pi05 as pi05

    _RELEASED.setdefault("get_gemma_config", pi0.get_gemma_config)
    small_config = pi0.GemmaConfig
    for module in (pi0, pi05):
        module.get_gemma_config = lambda variant: small_config(
            # eight heads are written into LeRobot's training pass
            width=48 if variant == "gemma_2b" else 32, depth=3, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=16
        )  # fmt: skip
    for name, small in zip(_names(), (_small_paligemma, _small_expert), strict=True):
        own = _RELEASED.setdefault(name, getattr(pi0, name) if OWN_GEMMA else _CLASSES[name])
        for module in (pi0, pi05):
            setattr(module, name, partial(small, own))
    if OWN_GEMMA:
        return
    check = ModuleType("transformers.models.siglip.check")
    check.check_whether_transformers_replace_is_installed_correctly = lambda: True  # type: ignore[attr-defined]
    sys.modules[check.__name__] = siglip.check = check
    gemma._gated_residual = _gated


_RELEASED: dict[str, Any] = {}
"""What was there before."""


def _names() -> tuple[str, str]:
    """What LeRobot calls the classes that it builds a PaliGemma and an expert of."""
    if OWN_GEMMA:
        return "PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"
    return "PaliGemmaForConditionalGeneration", "GemmaForCausalLM"


@contextmanager
def released_size() -> Iterator[None]:
    """PI0 as large as LeRobot builds it, for as long as this lasts: only without memory (on the meta device)."""
    import lerobot.policies.pi0.modeling_pi0 as pi0

    small = {name: getattr(pi0, name) for name in _RELEASED}
    vars(pi0).update(_RELEASED)
    try:
        yield
    finally:
        vars(pi0).update(small)


class Norm(nn.Module):
    """Root mean square; with a condition, its scale, shift and gate come from that."""

    def __init__(self, dim: int, eps: float, condition: int | None) -> None:
        super().__init__()
        self.eps = eps
        if condition is None:
            self.weight, self.dense = nn.Parameter(torch.zeros(dim)), None
        else:
            self.dense = nn.Linear(condition, 3 * dim)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        if self.dense is None or cond is None:
            return (normed * (1 + self.weight.float())).to(x.dtype), None
        scale, shift, gate = self.dense(cond)[:, None].chunk(3, dim=-1)
        return (normed * (1 + scale.float()) + shift.float()).to(x.dtype), gate.to(x.dtype)


def _gated(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    return x + y if gate is None else x + y * gate


class Layer(nn.Module):
    def __init__(self, config: Any, at: int) -> None:
        super().__init__()
        condition = config.adarms_cond_dim if getattr(config, "use_adarms", False) else None
        self.self_attn, self.mlp = gemma.GemmaAttention(config, at), gemma.GemmaMLP(config)
        self.input_layernorm, self.post_attention_layernorm = (
            Norm(config.hidden_size, config.rms_norm_eps, condition) for _ in range(2)
        )

    def forward(self, hidden_states: Tensor, adarms_cond: Tensor | None = None, **others: Any) -> Tensor:
        x, gate = self.input_layernorm(hidden_states, cond=adarms_cond)
        x, _ = self.self_attn(x, **others)
        hidden_states = _gated(hidden_states, x, gate)
        x, gate = self.post_attention_layernorm(hidden_states, cond=adarms_cond)
        return _gated(hidden_states, self.mlp(x), gate)


class Model(gemma.GemmaModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        condition = config.adarms_cond_dim if getattr(config, "use_adarms", False) else None
        self.layers = nn.ModuleList([Layer(config, at) for at in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps, condition)

    def forward(  # type: ignore[override]
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        adarms_cond: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        elif past_key_values is not None:  # a denoising step must not grow the cache of the prefix
            past_key_values = copy.copy(past_key_values)
            past_key_values.layers = [copy.copy(layer) for layer in past_key_values.layers]
        hidden = inputs_embeds.to(self.layers[0].self_attn.q_proj.weight.dtype)
        rotation = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=attention_mask,
                position_embeddings=rotation,
                past_key_values=past_key_values,
                adarms_cond=adarms_cond,
            )
        hidden, _ = self.norm(hidden, cond=adarms_cond)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class Expert(gemma.GemmaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Model(config)


class PaliGemmaModel(paligemma.PaliGemmaModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.language_model = Model(config.text_config)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.multi_modal_projector(self.vision_tower(pixel_values).last_hidden_state)


class PaliGemma(paligemma.PaliGemmaForConditionalGeneration):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = PaliGemmaModel(config)
        self.lm_head.weight = self.model.language_model.embed_tokens.weight


_CLASSES = {"PaliGemmaForConditionalGeneration": PaliGemma, "GemmaForCausalLM": Expert}


def _small_paligemma(made: Any, config: Any) -> Any:
    small = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
    for name, value in {**small, "projection_dim": config.text_config.hidden_size}.items():
        setattr(config.vision_config, name, value)
    config.projection_dim = config.hidden_size = config.text_config.hidden_size
    config.text_config.vocab_size = VOCABULARY
    return made(config)


def _small_expert(made: Any, config: Any) -> Any:
    config.vocab_size = VOCABULARY
    return made(config)
