"""A policy of LeRobot's: its network, its pre- and post-processor, and the architecture that drives it.

What lies between a robot and the network is LeRobot's own: observations go through the pre-processor that was saved
beside the weights (renaming, tokens, normalisation), actions through the post-processor. Sampling is driven here from
given noise; when a policy is loaded, its chunk on one observation is compared with the one LeRobot's code computes.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from lerobot.processor import NormalizerProcessorStep, TokenizerProcessorStep, TransitionKey
from torch import Tensor, nn

from interp.errors import UsageError, unknown
from interp.policies.dead import dead_heads
from interp.policies.lerobot.architecture import Architecture
from interp.policies.lerobot.files import fit_cameras, save, save_settings
from interp.policies.lerobot.parity import check_parity
from interp.policies.lerobot.relative import RELATIVE, SETTING
from interp.policies.preprocessing import FILE, start_of, states_of
from interp.policies.protocol import Batch, Block, Observation, Prefix, Readout
from interp.policies.spec import PolicySpec, TowerSpec

STATE, TOKENS, TOKENS_MASK = (
    "observation.state",
    "observation.language.tokens",
    "observation.language.attention_mask",
)
ROBOT_STATE = "robot_state"
"""Of a batch, the state in the robot's units, where actions are relative to it."""
_IMAGE = ("observation.images.", "observation.")
_EMPTY = "empty_camera_"

# Of a configuration, what says how to train, where to run or where to publish: not what the policy is.
_OUTSIDE = (
    "device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_", "use_peft",
    "optimizer_", "scheduler_", "freeze_", "train_", "compile_", "load_vlm_weights", "gradient_checkpointing",
    "vlm_model_name", "tokenizer_name", "rtc_config", "n_action_steps", "dtype",
)  # fmt: skip


class LeRobotPolicy:
    """A `Policy` (see ../protocol.py)."""

    def __init__(
        self,
        architecture: Architecture,
        preprocessor: Any,
        postprocessor: Any,
        source: str = "memory",
        cameras: Sequence[str] | None = None,
        fps: float | None = None,
    ) -> None:
        """`cameras` are those that the robot has, of the configuration's; None: all. Others are as LeRobot has them
        that are not in an observation: masked where there is a mask. `fps` is the rate that its robot acts at [Hz]."""
        self.architecture = architecture
        self.module: Any = architecture.module.eval().requires_grad_(False)
        self.preprocessor, self.postprocessor = preprocessor, postprocessor
        self.source, self._fps = source, fps
        known = {camera_of(key): key for key in self.module.config.image_features if _EMPTY not in key}
        for camera in cameras or ():
            if camera not in known:
                raise UsageError(
                    f"{source}: cameras in {FILE}: {camera!r} is none of the policy's ({', '.join(known)}): name those "
                    "of them that the robot has"
                )
        self.keys = {camera: key for camera, key in known.items() if cameras is None or camera in cameras}
        self.absent = tuple(camera for camera in known if camera not in self.keys)
        step = next((s for s in preprocessor.steps if isinstance(s, TokenizerProcessorStep)), None)
        if step is None or not self.keys:
            raise UsageError(f"{source}: its pre-processor has no tokenizer, or its config no cameras")
        self._tokenizer_step = step
        # Adds to actions the last state that it has seen; before LeRobot 0.5 there is none.
        self._relative = next(
            (s for s in preprocessor.steps if type(s).__name__ == RELATIVE and s.enabled), None
        )
        # Only where words stand in the prompt as they are can attention be shown on them.
        self.tokenizer = step.input_tokenizer if architecture.prompt_start is not None else None
        self.prompt_start = architecture.prompt_start or 0
        self.spec = self._spec({})
        self.fingerprint = self._fingerprint()
        check_parity(self)
        self.spec = self._spec(dead_heads(self))

    def _spec(self, dead: Mapping[str, tuple[tuple[int, int], ...]]) -> PolicySpec:
        config, cameras = self.module.config, tuple(self.keys)
        layout = self.architecture.layout(cameras)
        towers = {}
        for name, stack in self.architecture.towers().items():
            reads = (self.out_projection(name, at).in_features for at in range(len(stack.layers)))
            heads = tuple(width // stack.d_head for width in reads)
            towers[name] = TowerSpec(heads, stack.kv_heads, stack.d_head, dead.get(name, ()))
        state, action = config.robot_state_feature, config.action_feature
        if state is None or action is None:
            raise UsageError(f"{self.source}: config.json names no {STATE} or no action feature")
        return PolicySpec(
            family=f"lerobot/{config.type}",
            towers=towers,
            spans=layout.spans,
            cameras=cameras,
            image_size=layout.image_size,
            state_dim=state.shape[0],
            action_dim=action.shape[0],
            max_action_dim=self.architecture.max_action_dim,
            horizon=self.architecture.horizon,
            flow_steps=self.architecture.flow_steps,
            fps=self._fps,
            execute=config.n_action_steps,
            state_names=tuple(f"state_{i}" for i in range(state.shape[0])),
            action_names=tuple(f"action_{i}" for i in range(action.shape[0])),
            suffix=layout.suffix,
            patches=layout.patches,
            anchor=layout.anchor,
        )

    def _fingerprint(self) -> str:
        """Over weights, configuration, processors and vocabulary; not over names of files, devices or how to train."""
        digest = hashlib.sha256()
        steps = [*self.preprocessor.steps, *self.postprocessor.steps]
        defining = [_defining(self.module.config.__dict__), *(_defining(step.get_config()) for step in steps)]
        vocabulary = sorted(self._tokenizer_step.input_tokenizer.get_vocab().items())
        digest.update(json.dumps([defining, vocabulary], sort_keys=True, default=str).encode())
        if self.absent:
            digest.update(json.dumps([*self.keys]).encode())
        tensors = [*sorted(self.module.state_dict().items())]
        tensors += [pair for step in steps for pair in sorted(step.state_dict().items())]
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return f"{self.module.config.type}-{digest.hexdigest()[:16]}"

    def lerobots(
        self, observation: Observation, seed: int
    ) -> tuple[Float[Tensor, "1 horizon max_action_dim"], Float[Tensor, "1 horizon action"]]:
        """Noise, and the chunk that LeRobot's own code computes from it, normalised."""
        return self.architecture.lerobots(self._processed(observation), seed)

    @property
    def _device(self) -> torch.device:
        found: torch.device = next(self.module.parameters()).device
        return found

    def save(self, directory: str | Path) -> None:
        save(self, Path(directory))

    def beside_adapter(self, directory: Path) -> str:
        """Writes what `make_policy` reads beside a PEFT adapter; the name that it will load the base by."""
        save_settings(self, directory, use_peft=True)
        source = Path(self.source)
        return str(source.resolve()) if source.is_dir() else self.source

    def fit_cameras(self, directory: Path, observations: Sequence[Observation]) -> tuple[str, ...]:
        """Gives what was saved there the cameras of these observations; notes for whoever gets it."""
        return fit_cameras(self, directory, observations[0])

    # ---- observations

    def batch(self, observations: Sequence[Observation]) -> Batch:
        if not observations:
            raise UsageError("a batch needs at least one observation")
        processed = [self._processed(observation) for observation in observations]
        tokens = torch.cat([self._padded_tokens(each[TOKENS]) for each in processed])
        words = torch.cat([self._padded_tokens(each[TOKENS_MASK]) for each in processed]).long()
        language, length = self.spec.span("language"), self.spec.prefix_length
        mask = words.new_ones(len(processed), length)
        mask[:, language.slice] = words
        state = torch.cat([each[STATE] for each in processed])
        seen = {} if self._relative is None else {ROBOT_STATE: states_of(observations, state.device)}
        inputs = [self.architecture.inputs(each) for each in processed]
        config = self.module.config
        return {
            **{name: torch.cat([each[name] for each in inputs]) for name in inputs[0]},
            **seen,
            "input_ids": tokens,
            "attention_mask": mask,
            "state": F.pad(state, (0, getattr(config, "max_state_dim", state.shape[1]) - state.shape[1])),
        }

    def _processed(self, observation: Observation) -> dict[str, Any]:
        """What LeRobot's pre-processor makes of it, where the network is; first axis batch, of one."""
        spec = self.spec
        missing = [camera for camera in spec.cameras if camera not in observation.images]
        if missing:
            raise UsageError(
                f"observation lacks camera {missing[0]!r}: the policy needs {', '.join(spec.cameras)}, "
                f"the observation has {', '.join(observation.images) or 'none'}"
                f"{spec.without_camera(observation.images)}"
            )
        if len(observation.state) != spec.state_dim:
            raise UsageError(f"state has {len(observation.state)} numbers: the policy needs {spec.state_dim}")
        raw: dict[str, Any] = {
            key: rearrange(
                torch.tensor(observation.images[camera]), "height width c -> c height width"
            ).float()
            / 255
            for camera, key in self.keys.items()
        }
        raw[STATE] = torch.tensor(np.asarray(observation.state), dtype=torch.float32)
        found = self.preprocessor({**raw, "task": observation.instruction})
        if found[TOKENS].shape[1] >= self._tokenizer_step.max_length:
            self._check_not_cut(observation.instruction, found["task"])
        self._warn_of_unknown(observation.instruction, found)
        return {
            name: value.to(self._device) if isinstance(value, Tensor) else value
            for name, value in found.items()
            if isinstance(value, Tensor) or name == "task"
        }

    def _warn_of_unknown(self, instruction: str, found: Mapping[str, Any]) -> None:
        tokenizer = self._tokenizer_step.input_tokenizer
        # Some tokenizers can say everything, and use the name for something else.
        others = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        unknown_word = tokenizer.unk_token_id
        if unknown_word is not None and unknown_word not in others and (found[TOKENS] == unknown_word).any():
            warnings.warn(
                f"instruction {instruction!r} has words that the policy does not know", stacklevel=4
            )

    def _check_not_cut(self, instruction: str, tokenised: Sequence[str]) -> None:
        """LeRobot's tokenizer cuts long prompts without a word. PI0.5's hold the state, too, and end with `Action:`."""
        limit, tokenizer = self._tokenizer_step.max_length, self._tokenizer_step.input_tokenizer
        count = max(len(tokenizer(prompt)["input_ids"]) for prompt in tokenised)
        if count > limit:
            raise UsageError(
                f"instruction {instruction!r} makes a prompt of {count} tokens: the policy takes at most {limit}"
            )

    def _padded_tokens(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, : self.architecture.max_tokens]
        return F.pad(tokens, (0, self.architecture.max_tokens - tokens.shape[1]))

    # ---- the network

    def prefix(self, batch: Batch, draws: int = 1) -> Prefix:
        return self.architecture.prefix(batch).repeat(draws)

    def velocity(
        self,
        batch: Batch,
        x: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        if len(time) != len(x):
            raise UsageError(f"x has {len(x)} rows and time {len(time)}: every row needs a time")
        batch, prefix = self._for_rows_of(x, batch, prefix)
        return self.architecture.velocity(batch, x, time, prefix)

    def loss(
        self,
        batch: Batch,
        actions: Float[Tensor, "batch horizon action"],
        noise: Float[Tensor, "batch horizon max_action_dim"],
        time: Float[Tensor, " batch"],
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "batch horizon action"]:
        batch, prefix = self._for_rows_of(noise, batch, prefix)
        return self.architecture.loss(batch, actions, noise, time, prefix)

    def denoise(
        self,
        batch: Batch,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        prefix: Prefix | None = None,
        steps: range | None = None,
    ) -> Float[Tensor, "batch horizon max_action_dim"]:
        batch, prefix = self._for_rows_of(noise, batch, prefix)
        x = noise
        for step in range(self.spec.flow_steps) if steps is None else steps:
            x = self.architecture.step(batch, x, step, prefix)
        return x

    def _for_rows_of(self, x: Tensor, batch: Batch, prefix: Prefix | None) -> tuple[Batch, Prefix]:
        """One row of batch and prefix for every row of x, which may hold several draws of each observation."""
        rows = len(batch["state"])
        if len(x) % rows:
            raise UsageError(f"x has {len(x)} rows: it must be a multiple of the batch's {rows}")
        prefix = self.prefix(batch) if prefix is None else prefix
        if len(prefix) not in (rows, len(x)):
            raise UsageError(
                f"the prefix has {len(prefix)} rows and x {len(x)}: it needs one a draw, or {rows} to be shared"
            )
        if len(prefix) < len(x):
            prefix = prefix.repeat(len(x) // rows)
        if rows < len(x):
            needed = {name: t for name, t in batch.items() if name != "pixel_values"}
            batch = {name: t.repeat_interleave(len(x) // rows, dim=0) for name, t in needed.items()}
        return batch, prefix

    def sample(
        self, batch: Batch, noise: Float[Tensor, "batch horizon max_action_dim"], prefix: Prefix | None = None
    ) -> Float[Tensor, "batch horizon action"]:
        actions, state = (
            self.denoise(batch, noise, prefix)[..., : self.spec.action_dim],
            batch.get(ROBOT_STATE),
        )
        if state is not None:
            state = state.repeat_interleave(len(noise) // len(state), dim=0)
        return self.unnormalise_actions(actions, state)

    def noise(self, n: int, seed: int | torch.Generator) -> Float[Tensor, "batch horizon max_action_dim"]:
        """Standard normal, drawn on the CPU so that a seed means the same on every device."""
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        drawn = torch.randn(n, self.spec.horizon, self.spec.max_action_dim, generator=generator)
        return drawn.to(self._device)

    def normalise_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        for step in self.preprocessor.steps:
            if isinstance(step, NormalizerProcessorStep):
                state = step({TransitionKey.OBSERVATION: {STATE: state}})[TransitionKey.OBSERVATION][STATE]
        return state

    def normalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None = None
    ) -> Float[Tensor, "batch *axes action"]:
        if self._relative is not None:
            known = {TransitionKey.OBSERVATION: {STATE: start_of(actions, state, SETTING)}}
            actions = self._relative({**known, TransitionKey.ACTION: actions})[TransitionKey.ACTION]
        for step in self.preprocessor.steps:
            if isinstance(step, NormalizerProcessorStep):
                actions = step({TransitionKey.ACTION: actions})[TransitionKey.ACTION]
        return actions

    def unnormalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None = None
    ) -> Float[Tensor, "batch *axes action"]:
        if self._relative is not None:  # the post-processor's last step asks it for the state
            self._relative({TransitionKey.OBSERVATION: {STATE: start_of(actions, state, SETTING)}})
        return self.postprocessor(actions).to(actions.device)

    # ---- its parts

    def tower_module(self, tower: str) -> nn.Module:
        towers = self.architecture.towers()
        if tower not in towers:
            raise unknown("tower", tower, towers)
        return towers[tower].module

    def block(self, tower: str, layer: int) -> Block:
        towers = self.architecture.towers()
        if tower not in towers:
            raise unknown("tower", tower, towers)
        last = len(towers[tower].layers) - 1
        if not 0 <= layer <= last:
            raise UsageError(f"tower {tower} has {last + 1} layers (0-{last}), not layer {layer}")
        return self.architecture.block(tower, layer)

    def attention(self, tower: str, layer: int) -> nn.Module:
        return self.block(tower, layer).attention

    def out_projection(self, tower: str, layer: int) -> nn.Linear:
        return self.block(tower, layer).out

    def query_projection(self, tower: str, layer: int) -> nn.Linear:
        self.block(tower, layer)  # says which layers there are
        query = self.architecture.query(tower, layer)
        if query is None:
            raise UsageError(f"{self.spec.family}: tower {tower} has no query projection of its own")
        return query

    def readout(self) -> Readout:
        return self.architecture.readout()


def camera_of(key: str) -> str:
    """`observation.images.front` is camera `front`."""
    for start in _IMAGE:
        if key.startswith(start):
            return key.removeprefix(start)
    return key


def _defining(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith(_OUTSIDE)}
