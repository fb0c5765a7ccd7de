"""LeRobot's own answers, for comparison: a policy loaded by LeRobot alone, and edits of it by hooks and by nnsight."""

import copy
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_kit import as_lerobot_sees
from nnsight import NNsight
from torch import Tensor, nn

from interp.heads import Head
from interp.policies import Batch, Observation, Policy


class LeRobot:
    """A directory as LeRobot loads it."""

    def __init__(self, directory: Path) -> None:
        config = PreTrainedConfig.from_pretrained(str(directory))
        self.policy: Any = get_policy_class(config.type).from_pretrained(str(directory))
        self.policy.eval()
        self.kind = config.type
        self.pre, self.post = make_pre_post_processors(config, pretrained_path=str(directory))

    def chunk(self, observation: Observation, ours: Policy, noise: Tensor) -> Tensor:
        """In the robot's units. `noise` as our policy takes it, of one row."""
        return self.post(self.normalised(self.pre(as_lerobot_sees(observation)), noise))[0]

    def running(self, network: Any) -> "LeRobot":
        """The same processors around another network of LeRobot's."""
        other = copy.copy(self)
        other.policy = network
        return other

    def normalised(self, processed: dict[str, Any], noise: Tensor) -> Tensor:
        if self.kind != "xvla":
            return self.policy.predict_action_chunk(processed, noise=noise)
        # X-VLA draws its noise itself.
        model, inputs = self.policy.model, self.policy._build_model_inputs(processed)
        real, drawn = torch.randn, noise[..., model.dim_action :]
        torch.randn = lambda *shape, **how: drawn.clone()
        try:
            return model.generate_actions(**inputs, steps=self.policy.config.num_denoising_steps)
        finally:
            torch.randn = real

    def loss(
        self, observation: Observation, ours: Policy, actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """Over the real dimensions, with the given noise and flow time."""
        batch = self.pre({**as_lerobot_sees(observation), "action": actions})
        policy, model = self.policy, self.policy.model
        dims = actions.shape[-1]
        with torch.no_grad():
            if self.kind == "xvla":
                inputs, targets = policy._build_model_inputs(batch), policy._prepare_action_targets(batch)
                encoded = model.forward_vlm(inputs["input_ids"], inputs["image_input"], inputs["image_mask"])
                t = time.view(-1, 1, 1)
                mixed = noise[..., model.dim_action :] * t + targets * (1 - t)
                proprio, mixed = model.action_space.preprocess(inputs["proprio"], mixed)
                found = model.transformer(
                    domain_id=inputs["domain_id"], action_with_noise=mixed, t=time, proprio=proprio, **encoded
                )
                return sum(model.action_space.compute_loss(found, targets).values())
            words = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
            target = policy.prepare_action(batch)
            prepare = policy.prepare_images if self.kind == "smolvla" else policy._preprocess_images
            seen = prepare(batch)
            state = () if self.kind == "pi05" else (policy.prepare_state(batch),)
            losses = model.forward(*seen, *words, *state, target, noise=noise, time=time)
        return losses[..., :dims].mean()


def by_hand(policy: Policy, batch: Batch, noise: Tensor, head: Head) -> Tensor:
    """The chunk, normalised, with z of one head zero everywhere: one plain hook, one whole run."""
    d_head = policy.spec.tower(head.tower).d_head

    def zero(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., head.index * d_head : (head.index + 1) * d_head] = 0
        return (z, *args[1:])

    hook = policy.out_projection(head.tower, head.layer).register_forward_pre_hook(zero)
    try:
        with torch.no_grad():
            return policy.denoise(batch, noise)
    finally:
        hook.remove()


class _Sampling(nn.Module):
    """LeRobot's sampling as a forward pass, which is what nnsight traces."""

    def __init__(self, theirs: LeRobot, processed: dict[str, Any]) -> None:
        super().__init__()
        self.policy, self.theirs, self.processed = theirs.policy, [theirs], processed

    def forward(self, noise: Tensor) -> Tensor:
        return self.theirs[0].normalised(dict(self.processed), noise)


def by_nnsight(
    theirs: LeRobot, ours: Policy, base: Observation, source: Observation, noise: Tensor, head: Head
) -> Tensor:
    """The chunk of `base`, in the robot's units, with z of one head from `source`, every time its layer runs."""
    names = {module: name for name, module in ours.module.named_modules()}
    name = names[ours.out_projection(head.tower, head.layer)]
    d_head = ours.spec.tower(head.tower).d_head
    own = slice(head.index * d_head, (head.index + 1) * d_head)
    runs = ours.spec.flow_steps if head.tower == "expert" else 1
    from_source, onto_base = (
        NNsight(_Sampling(theirs, theirs.pre(as_lerobot_sees(each)))) for each in (source, base)
    )
    with from_source.trace(noise) as tracer:
        kept = [].save()
        for _ in tracer.iter[:runs]:
            kept.append(_at(from_source.policy, name).input.clone())
    with onto_base.trace(noise) as tracer:
        for step in tracer.iter[:runs]:
            _at(onto_base.policy, name).input[..., own] = kept[step][..., own]
        chunk = onto_base.output.save()
    return theirs.post(chunk)[0]


def _at(envoy: Any, name: str) -> Any:
    for part in name.split("."):
        envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
    return envoy
