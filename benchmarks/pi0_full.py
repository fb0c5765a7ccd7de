"""pi0 at its released size, in bfloat16, on one machine: what loading it and capturing all its heads costs.

    taskset -c 0,1 .venv/bin/python benchmarks/pi0_full.py            about ten minutes on two cores, 8 GB of disk
    .venv/bin/python benchmarks/pi0_full.py --tiny                    does it run? a network of 1 M, no record

Weights are random; sizes, names and files are those of openpi's PyTorch port (PaliGemma-3B: SigLIP so400m of 27 layers
and 16 heads, Gemma-2B of 18 x 8 x 256; expert of 18 x 8 x 256 at width 1024; 50 actions, 32 dimensions), in parts of
1 GB with an index, beside a norm_stats.json. Frames of 480 x 640 from three cameras at 224 x 224, read by the command
line's own capture. Measured, with the peak memory so far:

    write       random weights, tensor by tensor
    read        `load_network`: names, shapes and precisions compared, weights mapped from disk
    load        `load_policy`: the same, and the fingerprint of all weights and the dead heads of all towers
    capture     z of all towers and the predicted chunk on the frames

Writes benchmarks/results/pi0_full.json. The weights are deleted at the end.
"""

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import PI0Config, PI0ForConditionalGeneration

from interp.capture import capture
from interp.demos import Demonstrations
from interp.policies import load_policy
from interp.policies.pi0_files import CAMERAS, read
from interp.policies.pi0_layouts import from_transformers
from interp.policies.pi0_weights import INDEX, load_network
from testbed.dataset import ACTION, STATE, DatasetWriter, Form, Take, Vector

OUT = Path(__file__).parent / "results/pi0_full.json"
HEIGHT, WIDTH, STATE_DIM, ACTION_DIM = 480, 640, 8, 7
LIMIT_GB, PART_GB = 22.0, 1.0
WORDS = [f"word{i}" for i in range(40)]
TINY: dict[str, Any] = {
    "vlm_config": {
        "model_type": "paligemma", "projection_dim": 64, "image_token_id": 64,
        "text_config": {"model_type": "gemma", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64},
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
                          "num_hidden_layers": 2, "num_attention_heads": 16, "patch_size": 14, "image_size": 224,
                          "vision_use_head": False},
    },
    "dit_config": {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                   "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to see that all of this runs")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    found: dict[str, Any] = {"frames": a.frames, "threads": a.threads, "cameras": len(CAMERAS)}
    found |= {"seconds": {}, "processor seconds": {}, "peak GB so far": {}}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start, busy = time.perf_counter(), time.process_time()
        result = run()
        found["seconds"][name] = round(time.perf_counter() - start, 2)
        found["processor seconds"][name] = round(time.process_time() - busy, 2)
        found["peak GB so far"][name] = round(peak_gb(), 2)
        print(
            f"{name:10} {found['seconds'][name]:9.1f} s   {found['processor seconds'][name]:9.1f} s of processors"
            f"   peak {peak_gb():5.1f} GB",
            flush=True,
        )
        return result

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        directory = timed("write", lambda: random_openpi(work / "pi0", a.tiny))
        demos = Demonstrations.open(write_frames(work / "demos", a.frames))
        here = read(directory)
        timed("read", lambda: load_network(here.config, here.stored, "cpu"))
        policy = timed("load", lambda: load_policy(directory))
        found["parameters"] = sum(p.numel() for p in policy.module.parameters())
        found["weights GB"] = round(
            sum(p.numel() * p.element_size() for p in policy.module.parameters()) / 2**30, 2
        )
        found["heads"] = {
            name: f"{tower.layers} x {tower.heads} x {tower.d_head}, {len(tower.dead)} dead"
            for name, tower in policy.spec.towers.items()
        }
        run = timed("capture", lambda: capture(policy, demos, work / "run"))
        for tower, spec in policy.spec.towers.items():
            for token in run.tokens(tower):
                z = np.asarray(run.activations(tower, token))
                assert z.shape == (a.frames, spec.layers, spec.heads, spec.d_head), z.shape
                assert np.isfinite(z).all()
    found["peak GB"] = round(peak_gb(), 2)
    if not a.tiny:
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['parameters'] / 1e9:.2f} billion parameters; {found['heads']}")
    print(f"peak {found['peak GB']} GB (limit {LIMIT_GB})")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def random_openpi(directory: Path, tiny: bool) -> Path:
    """A checkpoint of openpi's converter. Memory holds one part of the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = PI0Config(**TINY) if tiny else PI0Config()
    with init_empty_weights():
        empty = PI0ForConditionalGeneration(config).state_dict()
    directory.mkdir()
    parts, index = list(_parts(empty)), {}
    generator = torch.Generator().manual_seed(0)
    for at, names in enumerate(parts):
        file = f"model-{at + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {
            from_transformers(name, "openpi"): _random(name, empty[name].shape, generator) for name in names
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (directory / INDEX).write_text(json.dumps({"weight_map": index}))

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)

    norm = {
        name: {"mean": [0.0] * 32, "std": [1.0] * dim + [0.0] * (32 - dim)}
        for name, dim in (("state", STATE_DIM), ("actions", ACTION_DIM))
    }
    (directory / "assets/droid").mkdir(parents=True)
    (directory / "assets/droid/norm_stats.json").write_text(json.dumps({"norm_stats": norm}))
    about = {"action_dim": 32, "action_horizon": 50, "paligemma_variant": "gemma_2b", "precision": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(about))
    if tiny:
        network = {"vlm_config": {"vision_config": {"num_attention_heads": 16}}}
        (directory / "robosteer.json").write_text(json.dumps({"network": network}))
    return directory


def _parts(tensors: dict[str, Tensor]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        bytes_ = 2 * tensor.numel()
        if part and size + bytes_ > PART_GB * 2**30:
            yield part
            part, size = [], 0
        part.append(name)
        size += bytes_
    yield part


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """At a scale at which activations keep theirs. Norms and biases leave things as they are."""
    if name.endswith("bias") or (len(shape) == 1 and "vision_tower" not in name):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    # Words are scaled by the root of the width when they are read.
    scale = shape[1:].numel() ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(
        -math.sqrt(3) * scale, math.sqrt(3) * scale, generator=generator
    )


def write_frames(root: Path, frames: int) -> Path:
    """Random frames in two episodes."""
    rng = np.random.default_rng(0)
    vectors = {STATE: Vector(STATE_DIM), ACTION: Vector(ACTION_DIM)}
    form = Form(15, "droid", dict.fromkeys(CAMERAS, (HEIGHT, WIDTH)), vectors)
    with DatasetWriter(root, form) as writer:
        for length in (frames - frames // 2, frames // 2):
            images = {
                camera: rng.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8) for camera in CAMERAS
            }
            numbers = {
                name: rng.normal(size=(length, vector.width)).astype(np.float32)
                for name, vector in vectors.items()
            }
            writer.add(Take.from_arrays(" ".join(WORDS[:8]), images, numbers))
    return root


if __name__ == "__main__":
    main()
