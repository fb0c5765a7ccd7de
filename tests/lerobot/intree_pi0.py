"""Transformers' own pi0 in the sizes of patched_gemma.py, finetuned and exported: `python intree_pi0.py DIRECTORY`.

Runs in the core environment, whose transformers has PI0; what it leaves is read by the tests in LeRobot's. Its
network is as small as what `patched_gemma.install` makes of LeRobot's, and is told that those sizes are the stock ones:
`gemma_2b` means the same tiny Gemma on both sides.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from export_kit import answer_here
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PI0Config, PI0ForConditionalGeneration, PreTrainedTokenizerFast

import steering.export
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from interp.policies.pi0_layouts import from_transformers
from interp.policies.spec import TowerSpec
from steering import pi0_files
from steering.export import Names, export, export_adapter
from steering.pi0_files import Gemma, Stock
from steering.slices import attach
from steering.verify import chunks_of

WORDS = ["pick", "up", "the", "red", "blue", "green", "cube", "and", "place", "it", "in", "bowl", "\n"]
CAMERAS, STATE_DIM, ACTION_DIM, HORIZON, STEPS, SIZE, VOCABULARY = ("front", "wrist"), 6, 5, 8, 4, 28, 400
DELTAS = [True, False, True, True, False]
HEADS = (Head("expert", 0, 1), Head("expert", 2, 5), Head("vlm", 1, 3))
STOCK = Stock(
    {"gemma_2b": Gemma(48, 3, 64, 8, 1, 16), "gemma_300m": Gemma(32, 3, 64, 8, 1, 16)},
    (48, 2, 4, 64, 14),
    VOCABULARY,
)


def observations(n: int, size: int = SIZE) -> list[Observation]:
    rng = np.random.default_rng(5)
    tasks = ["pick up the red cube", "place it in the bowl", "pick up the blue cube and place it in the bowl"]
    return [
        Observation(
            {camera: rng.integers(0, 256, (size, size, 3), np.uint8) for camera in CAMERAS},
            rng.normal(size=STATE_DIM).astype(np.float32),
            tasks[at % len(tasks)],
        )
        for at in range(n)
    ]


def build(directory: Path, suffix: str = "\n") -> Path:
    """Random weights, large enough that attention has preferences, not so large that rounding grows."""
    gemma = {"model_type": "gemma", "num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 8}
    gemma |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCABULARY}
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "patch_size": 14, "image_size": SIZE, "vision_use_head": False,
    }  # fmt: skip
    vlm = {
        "model_type": "paligemma", "image_token_id": VOCABULARY - 1, "projection_dim": 48,
        "text_config": {**gemma, "hidden_size": 48}, "vision_config": vision,
    }  # fmt: skip
    sizes = {"chunk_size": HORIZON, "max_state_dim": 8, "max_action_dim": 7, "num_inference_steps": STEPS}
    config = PI0Config(vlm_config=vlm, dit_config={**gemma, "hidden_size": 32}, **sizes)
    torch.manual_seed(0)
    module: Any = PI0ForConditionalGeneration(config)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2 and "embed_tokens" not in name:
            torch.nn.init.normal_(parameter, std=0.8 * parameter.shape[1] ** -0.5)
    module.save_pretrained(directory)
    tokens = {word: at for at, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    # A new line is a token of its own, as PaliGemma's is.
    lines, words = pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Split(" ", "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    rng = np.random.default_rng(0)
    norm = {
        name: {"mean": rng.normal(size=dim).tolist(), "std": rng.uniform(0.5, 2, size=dim).tolist()}
        for name, dim in (("state", STATE_DIM), ("action", ACTION_DIM))
    }
    about = {
        "schema": 1, "cameras": list(CAMERAS), "image_size": SIZE, "state_dim": STATE_DIM, "action_dim": ACTION_DIM,
        "max_tokens": 14, "execute": 3, "prompt_suffix": suffix, "norm": norm,
    }  # fmt: skip
    (directory / "robosteer.json").write_text(json.dumps(about))
    return directory


def tuned(base: Path) -> Policy:
    """Heads of two towers changed, and the projection of actions, which an adapter keeps whole."""
    policy: Any = load_policy(base)
    slices, random = attach(policy, HEADS), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.normal_(std=0.2, generator=random)
        slices.merge()
        policy.module.embed_action_time.action_in_proj.weight.mul_(1.1)
    return policy


def released() -> dict[str, Any]:
    """Of transformers' default PI0, which has the released sizes: configuration and tensors under LeRobot's names."""
    config = PI0Config()
    with init_empty_weights():
        module: Any = PI0ForConditionalGeneration(config)
    one = TowerSpec((8,), 1, 256)
    policy: Any = SimpleNamespace(module=module, spec=SimpleNamespace(towers={"vlm": one, "expert": one}))
    network = pi0_files.Network.of(policy)
    shapes = {from_transformers(name, "lerobot"): list(t.shape) for name, t in module.state_dict().items()}
    return {"variants": [network.vlm, network.expert], "shapes": shapes}


def main(root: Path) -> None:
    (root / "released.json").write_text(json.dumps(released()))
    base = load_policy(build(root / "base"))
    policy, frames = tuned(root / "base"), observations(3)
    about = {"base": {"source": "tiny", "fingerprint": base.fingerprint}}
    export(policy, root / "unlike", frames[:1], about, form="lerobot")
    steering.export.ask_fresh_process = answer_here  # once is enough: it takes seconds
    pi0_files.STOCK = STOCK
    export(base, root / "base-lerobot", frames, about, form="lerobot")
    export(policy, root / "lerobot", frames, about, form="lerobot")
    export(policy, root / "openpi", frames, about, form="openpi", names=Names(asset="me/robot"))
    names = Names(base=str(root / "base-lerobot"))
    export_adapter(base, policy, root / "adapter", frames, about, form="lerobot-peft", names=names)
    bare: Any = load_policy(build(root / "bare", suffix=""))
    export(bare, root / "bare-lerobot", frames, about, form="lerobot")
    told = build(root / "deltas") / "robosteer.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "delta_actions": DELTAS}))
    deltas: Any = load_policy(root / "deltas")
    export(deltas, root / "deltas-lerobot", frames, about, form="lerobot")
    # Images that LeRobot resizes, and a policy that takes them as LeRobot does.
    larger = [replace(frames[0], images=observations(1, size=40)[0].images)]
    policy.preprocessing = replace(policy.preprocessing, images="lerobot")
    seen = {
        f"{kind}/{at}/{camera}": image
        for kind, each in (("frames", frames), ("larger", larger))
        for at, observation in enumerate(each)
        for camera, image in observation.images.items()
    }
    np.savez(
        root / "expected.npz",
        **seen,
        state=np.stack([each.state for each in frames]),
        instruction=np.array([each.instruction for each in frames]),
        noise=torch.cat([policy.noise(1, at) for at in range(len(frames))]).numpy(),
        base=chunks_of(base, frames, 0),
        tuned=chunks_of(policy, frames, 0),
        bare=chunks_of(bare, frames, 0),
        deltas=chunks_of(deltas, frames, 0),
        larger=chunks_of(policy, larger, 0),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
