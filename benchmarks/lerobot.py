"""SmolVLA at its released size, on one machine: what understanding and adapting it costs.

    make setup-lerobot
    taskset -c 0,1 .venv-lerobot/bin/python benchmarks/lerobot.py             about a quarter of an hour on two cores
    .venv-lerobot/bin/python benchmarks/lerobot.py --tiny                     does it run? a network of 0.2 M, no record

Weights are random, the architecture is that of lerobot/smolvla_base (SmolVLM2-500M: 16 of its 32 layers, 15 heads on 5
KV heads, an expert of 720), float32, two cameras of 480 x 640 at 512 x 512. Measured, with the peak memory so far:

    capture     z of all towers and the predicted chunk on the frames
    k-NN        ranking all expert heads on them
    sampling    zeroing expert heads alone, exact, through all ten denoising steps of one frame; on every fourth head
    nnsight     the same numbers from a loop over heads that traces LeRobot's sampling; on a few of these heads
    sweep       zeroing every expert head alone, exact, on all frames: the effect on the flow-matching loss at one draw
    aligned     20 steps of finetuning the 12 best heads

Two nnsight loops: `whole`, which traces LeRobot's own `predict_action_chunk` for every head, as a user would, and
`cached`, which runs vision and vlm once and traces the denoising alone, as a careful user would. Writes
benchmarks/results/lerobot.json.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[1]
# Python looks first where a script lies, and there this one is called as LeRobot is.
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from interp.ablation import AblationSettings, ablate  # noqa: E402
from interp.capture import capture  # noqa: E402
from interp.demos import Demonstrations  # noqa: E402
from interp.edits import Edit, single  # noqa: E402
from interp.heads import Head  # noqa: E402
from interp.knn import KnnSettings, rank  # noqa: E402
from interp.policies import Policy, load_policy  # noqa: E402
from interp.sweep import Stage  # noqa: E402
from steering.finetune import finetune  # noqa: E402
from steering.headset import HeadSet  # noqa: E402
from steering.recipes import Recipe  # noqa: E402

OUT = Path(__file__).parent / "results/lerobot.json"
CAMERAS, HEIGHT, WIDTH, STATE_DIM, ACTION_DIM = ("front", "wrist"), 480, 640, 6, 6
LIMIT_GB, LIMIT_SPEED = 12.0, 3.0
WORDS = [f"word{i}" for i in range(40)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--heads", type=int, default=6, help="heads that the nnsight loops are timed on")
    parser.add_argument("--sampled", type=int, default=60, help="heads that are swept through full sampling")
    parser.add_argument("--steps", type=int, default=20, help="steps of finetuning")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to see that all of this runs")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    found: dict[str, Any] = {"frames": a.frames, "threads": a.threads, "seconds": {}, "processor seconds": {}}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start, busy = time.perf_counter(), time.process_time()
        result = run()
        found["seconds"][name] = round(time.perf_counter() - start, 2)
        found["processor seconds"][name] = round(time.process_time() - busy, 2)
        print(
            f"{name:22} {found['seconds'][name]:9.1f} s   {found['processor seconds'][name]:9.1f} s of processors"
            f"   peak {peak_gb():5.1f} GB",
            flush=True,
        )
        return result

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        directory = timed("build", lambda: random_smolvla(work, a.tiny))
        policy = timed("load and check", lambda: load_policy(directory))
        found["parameters"] = sum(p.numel() for p in policy.module.parameters())
        demos = Demonstrations.open(write_frames(work / "demos", a.frames))
        run = timed("capture", lambda: capture(policy, demos, work / "run", thumbnails=False))
        scores = timed("k-NN", lambda: rank(run, KnnSettings(ks=(2, 3)), towers=("expert",)))
        batch = policy.batch([demos.observation(0)])
        edits = single(policy, "expert")
        noise = policy.noise(1, 0)
        some = edits[:: max(1, len(edits) // a.sampled)]
        chunks = timed("sweep, full sampling", lambda: Stage(policy, batch).denoise(noise, some))
        found["heads of the full sampling"] = len(some)
        loops = timed("nnsight", lambda: nnsight_loops(policy, demos, noise, some[:: len(some) // a.heads]))
        for name, (seconds, answers) in loops.items():
            worst = max(float((chunks[some.index(edit)][0] - answer).abs().max()) for edit, answer in answers)
            # By processor time, which does not ask what else the machine does.
            ratio = seconds * len(some) / found["processor seconds"]["sweep, full sampling"]
            found[name] = {"seconds a head": round(seconds, 3), "ratio": round(ratio, 2), "difference": worst}
            print(
                f"  {name}: {seconds:.2f} s a head; the sweep is {ratio:.1f} x as fast, difference {worst:.1e}"
            )
        of_loss = AblationSettings("zero", effect="loss", frames=None, draws=1)
        timed(f"sweep, {a.frames} frames", lambda: ablate(policy, demos, of_loss, towers=("expert",)))
        best = HeadSet(tuple(scores.best(12, "expert")))
        recipe = Recipe.named("aligned", steps=a.steps, batch=4, draws=2)
        timed(
            f"{a.steps} steps of aligned", lambda: finetune(policy, demos, recipe, work / "job", heads=best)
        )
    found["peak_gb"] = round(peak_gb(), 2)
    if not a.tiny:
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    slowest = min(found[name]["ratio"] for name in loops)
    print(f"peak {found['peak_gb']} GB (limit {LIMIT_GB}); slowest ratio {slowest} (limit {LIMIT_SPEED})")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def random_smolvla(work: Path, tiny: bool) -> Path:
    """A directory with a random SmolVLA as large as lerobot/smolvla_base, or tiny, saved as LeRobot saves it."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    extra = {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global>"}
    extra["end_of_utterance_token"] = "<end>"
    words = ["<pad>", "<unk>", "<s>", "</s>", *extra.values(), *WORDS]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=extra,
    )  # fmt: skip
    parts = work / "parts"
    SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=64
    ).save_pretrained(parts)
    text = {
        "model_type": "llama", "vocab_size": 49280, "hidden_size": 960, "intermediate_size": 2560,
        "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64,
        "max_position_embeddings": 8192, "rope_theta": 100000, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    if tiny:
        text |= {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6}
        text |= {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
        vision |= {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        vision |= {"image_size": 64}
    vlm = SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=4, image_token_id=4, pad_token_id=0
    )
    vlm.architectures = ["SmolVLMForConditionalGeneration"]
    vlm.save_pretrained(parts)
    inputs = {
        f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
        for camera in CAMERAS
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE_DIM,))
    small: dict[str, Any] = {"num_vlm_layers": 4, "resize_imgs_with_padding": (64, 64)} if tiny else {}
    config = SmolVLAConfig(
        vlm_model_name=str(parts), input_features=inputs, **small,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))}, device="cpu", push_to_hub=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = SmolVLAPolicy(config)
    one = {"mean": torch.zeros(STATE_DIM), "std": torch.ones(STATE_DIM)}
    pre, post = make_smolvla_pre_post_processors(config, {"observation.state": one, "action": one})
    for part in (module, pre, post):
        part.save_pretrained(work / "smolvla")
    return work / "smolvla"


def write_frames(root: Path, frames: int) -> Path:
    """Random frames in two episodes, recorded by LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "image", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    kinds: dict[str, Any] = {f"observation.images.{camera}": image for camera in CAMERAS}
    for name in ("observation.state", "action"):
        kinds[name] = {"dtype": "float32", "shape": (6,), "names": [f"{name}.{at}" for at in range(6)]}
    recorded = LeRobotDataset.create("local/frames", fps=10, features=kinds, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for length in (frames - frames // 2, frames // 2):
        for _ in range(length):
            images = {
                f"observation.images.{camera}": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                for camera in CAMERAS
            }
            numbers = {
                name: rng.normal(size=6).astype(np.float32) for name in ("observation.state", "action")
            }
            recorded.add_frame({**images, **numbers, "task": " ".join(WORDS[:8])})
        recorded.save_episode()
    recorded.finalize()
    return root


class _Call(nn.Module):
    """A function of LeRobot's policy as a forward pass, which is what nnsight traces."""

    def __init__(self, policy: Any, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.policy, self.run = policy, [run]

    def forward(self, noise: Tensor) -> Tensor:
        return self.run[0](noise)


def nnsight_loops(
    policy: Policy, demos: Demonstrations, noise: Tensor, edits: list[Edit]
) -> dict[str, tuple[float, list[tuple[Edit, Tensor]]]]:
    """Processor seconds a head and (edit, chunk) of the two loops."""
    lerobot: Any = policy.module
    model, dims, steps = lerobot.model, policy.spec.action_dim, policy.spec.flow_steps
    processed = policy._processed(demos.observation(0))  # type: ignore[attr-defined]
    images, masks = lerobot.prepare_images(processed)
    words = processed["observation.language.tokens"], processed["observation.language.attention_mask"]
    state = lerobot.prepare_state(processed)

    def whole(x: Tensor) -> Tensor:
        return model.sample_actions(images, masks, *words, state, noise=x)

    from lerobot.policies.smolvla.modeling_smolvla import make_att_2d_masks

    with torch.no_grad():
        embedded, real, order = model.embed_prefix(images, masks, *words, state=state)
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(real, order),
            position_ids=torch.cumsum(real, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
            fill_kv_cache=True,
        )

    def cached(x: Tensor) -> Tensor:
        for step in range(steps):
            time_now = torch.full((1,), 1.0 - step / steps)
            x = x - model.denoise_step(real, cache, x, time_now) / steps
        return x

    return {
        f"nnsight loop, {name}": _loop(_Call(lerobot, run), policy, noise, edits, steps, dims)
        for name, run in (("whole", whole), ("cached", cached))
    }


def _loop(
    module: nn.Module, policy: Policy, noise: Tensor, edits: list[Edit], steps: int, dims: int
) -> tuple[float, list[tuple[Edit, Tensor]]]:
    from nnsight import NNsight

    traced, d_head = NNsight(module), policy.spec.tower("expert").d_head

    def answer(head: Head) -> Tensor:
        own = slice(head.index * d_head, (head.index + 1) * d_head)
        layer = head.layer
        with torch.no_grad(), traced.trace(noise) as tracer:
            linear = traced.policy.model.vlm_with_expert.lm_expert.layers[layer].self_attn.o_proj
            for _ in tracer.iter[:steps]:
                linear.input[..., own] = 0
            chunk = traced.output.save()
        return chunk[0, :, :dims]

    answer(edits[0].heads[0])  # compiles its trace
    start = time.process_time()
    answers = [(edit, answer(edit.heads[0])) for edit in edits]
    return (time.process_time() - start) / len(edits), answers


if __name__ == "__main__":
    main()
