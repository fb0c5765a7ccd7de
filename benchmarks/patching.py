"""How fast is exact patching of all heads, and AtP? Against TransformerLens and nnsight on the same module, in one run.

    python benchmarks/patching.py                    tiny-pi0 and a random pi0 of 18 layers x 8 heads, full sampling
    python benchmarks/patching.py --policies tiny-pi0 --towers expert --repeats 5

Contenders, of which each answers the same question, NIE / TE of every head, from clean and corrupt observations on:

ours                      interp.patching.patch
transformerlens           `patching.get_act_patch_attn_head_out_all_pos` through `vla.view(tower)`: a run of the policy
                          for every head
transformerlens + prefix  the same, given what it does not know: the prefix, computed once (expert only)
nnsight                   a loop over heads that traces the module, and computes once what no head of the tower changes
atp                       interp.attribution.atp: all heads of both towers in one backward pass

Repeats of all contenders are interleaved; ratios are of medians. `difference` is the largest absolute difference of an
effect to ours; `error` the same to our module in float64, so it says who is nearer to the truth.
Writes benchmarks/results/patching.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import torch
from nnsight import NNsight
from torch import Tensor
from transformer_lens import patching

from interp.attribution import atp
from interp.attribution.atp import agreement
from interp.edits import single
from interp.hooked import HookedVLA
from interp.patching import Pairs, Sides, patch, patch_heads
from interp.policies import Observation, Policy, Prefix, load_policy
from interp.runs import write_json

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/patching.json"
Grid = np.ndarray
Z = list[list[Tensor]]
"""By flow step and layer."""
TracedEdit = tuple[int, slice, Z]
TracedRun = Callable[[TracedEdit | None], tuple[Tensor, Z]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policies", nargs="+", default=["tiny-pi0", "random-18x8"])
    parser.add_argument("--towers", nargs="+", default=["expert", "vlm"])
    parser.add_argument("--pairs", type=int, default=1, help="pairs that go through together")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    how = {name: getattr(arguments, name) for name in ("pairs", "repeats", "threads")}
    found: dict[str, Any] = {**how, "torch": torch.__version__, "policies": {}}
    for name in arguments.policies:
        policy = random_pi0() if name == "random-18x8" else load_policy(name)
        case = Case(policy, observation_pairs(policy, arguments.pairs))
        found["policies"][name] = {
            "towers": {tower: measured(case, tower, arguments.repeats) for tower in arguments.towers},
            "atp": measured_atp(case, arguments.towers, arguments.repeats),
        }
        show(name, found["policies"][name])
        write_json(RESULT, found)  # the larger policies take long
    print(RESULT.relative_to(ROOT))


class Case:
    """A policy and one block of pairs."""

    def __init__(self, policy: Policy, pairs: Pairs) -> None:
        self.policy = policy
        self.pairs = pairs
        self.block = list(range(len(pairs)))
        self.vla = HookedVLA(policy)
        self.traced, self.traced_vlm = NNsight(policy.module), NNsight(model_of(policy).vlm)

    def contenders(self, tower: str) -> dict[str, Callable[[], Grid]]:
        found = {
            "ours": lambda: self.ours(tower),
            "transformerlens": lambda: self.transformer_lens(tower, False),
        }
        if tower == "expert":
            found["transformerlens + prefix"] = lambda: self.transformer_lens(tower, True)
        return {**found, "nnsight": lambda: self.nnsight(tower)}

    def heads(self, tower: str) -> list[tuple[int, int]]:
        return [(head.layer, head.index) for head in self.policy.spec.live_heads([tower])]

    def ours(self, tower: str) -> Grid:
        return patch(self.policy, self.pairs, single(self.policy, tower), block=len(self.pairs)).effect

    def transformer_lens(self, tower: str, shared: bool) -> Grid:
        view = self.vla.view(tower)
        sides = Sides.of(self.policy, self.pairs, self.block, "denoising", 0)
        clean, corrupt = (view.inputs(batch, sides.noise) for batch in (sides.source, sides.base))
        if not shared:
            clean, corrupt = replace(clean, prefix=None), replace(corrupt, prefix=None)
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(view.cfg.n_layers)]
        answer, cache = view.run_with_cache(clean, names_filter=names)
        base = self.policy.normalise_actions(view(corrupt))
        difference = self.policy.normalise_actions(answer) - base

        def metric(actions: Tensor) -> Tensor:
            change = self.policy.normalise_actions(actions) - base
            return (change * difference).sum() / difference.square().sum()

        with quiet():
            grid = patching.get_act_patch_attn_head_out_all_pos(view, corrupt, cache, metric)
        return np.array([float(grid[at]) for at in self.heads(tower)])

    def nnsight(self, tower: str) -> Grid:
        """A loop over heads that computes once what no head of the tower can change: of the expert's, the prefix, and
        every flow step is a trace; of the vlm's, the image features, and the prefix is a trace."""
        d, dims = self.policy.spec.tower(tower).d_head, self.policy.spec.action_dim
        sides = Sides.of(self.policy, self.pairs, self.block, "denoising", 0)
        run = self._traced_expert if tower == "expert" else self._traced_vlm
        clean, corrupt = run(sides.source, sides.noise), run(sides.base, sides.noise)
        target, z = clean(None)
        base, _ = corrupt(None)
        difference = (target - base)[..., :dims]
        effects = []
        for layer, head in self.heads(tower):
            own = slice(head * d, (head + 1) * d)
            change = (corrupt((layer, own, z))[0] - base)[..., :dims]
            effects.append(float((change * difference).sum() / difference.square().sum()))
        return np.array(effects)

    def _traced_expert(self, batch: dict[str, Tensor], noise: Tensor) -> TracedRun:
        steps, layers = self.policy.spec.flow_steps, self.traced.model.dit.layers
        with torch.no_grad():
            prefix = self.policy.prefix(batch)

        def run(edit: TracedEdit | None) -> tuple[Tensor, Z]:
            x, seen = noise, []
            for step in range(steps):
                inputs = {
                    "state": batch["state"],
                    "timestep": torch.full((len(x),), 1 - step / steps),
                    "attention_mask": prefix.mask,
                    "past_key_values": cache_of(prefix),
                }
                with torch.no_grad(), self.traced.trace(noise=x, **inputs):
                    if edit is None:
                        z = nnsight.save([layer.self_attn.o_proj.input for layer in layers])
                    else:
                        at, own, source = edit
                        layers[at].self_attn.o_proj.input[..., own] = source[step][at][..., own]
                    velocity = self.traced.action_out_proj.output.save()
                seen.append([each.clone() for each in z] if edit is None else [])
                x = x - velocity / steps
            return x, seen

        return run

    def _traced_vlm(self, batch: dict[str, Tensor], noise: Tensor) -> TracedRun:
        model, mask = model_of(self.policy), batch["attention_mask"]
        layers = self.traced_vlm.language_model.layers
        with torch.no_grad():
            embeddings = model.embed_prefix(
                batch["input_ids"], batch["pixel_values"], batch["pixel_attention_mask"]
            )
        inputs = {
            "inputs_embeds": embeddings,
            "attention_mask": mask,
            "position_ids": mask.cumsum(-1) - 1,
            "token_type_ids": torch.zeros_like(embeddings[..., 0]),
            "use_cache": True,
        }

        def run(edit: TracedEdit | None) -> tuple[Tensor, Z]:
            z: list[Tensor] = []
            with torch.no_grad(), self.traced_vlm.trace(**inputs):
                if edit is None:
                    z = nnsight.save([layer.self_attn.o_proj.input for layer in layers])
                else:
                    at, own, source = edit
                    layers[at].self_attn.o_proj.input[..., own] = source[0][at][..., own]
                cache = self.traced_vlm.output.past_key_values.save()
            kept = cache.layers
            prefix = Prefix(tuple(layer.keys for layer in kept), tuple(layer.values for layer in kept), mask)
            with torch.no_grad():
                return self.policy.denoise(batch, noise, prefix), [[each.clone() for each in z]]

        return run


def measured(case: Case, tower: str, repeats: int) -> dict[str, Any]:
    contenders = case.contenders(tower)
    seconds, answers = timed(contenders, repeats)
    exact = Case(in_float64(case.policy), case.pairs).transformer_lens(tower, False)
    return {
        "heads": len(case.heads(tower)),
        "contenders": {
            name: {
                "seconds": [round(s, 4) for s in seconds[name]],
                "ratio": round(float(np.median(seconds[name]) / np.median(seconds["ours"])), 2),
                "difference": float(np.abs(answers[name] - answers["ours"]).max()),
                "error": float(np.abs(answers[name] - exact).max()),
            }
            for name in contenders
        },
    }


def measured_atp(case: Case, towers: Sequence[str], repeats: int) -> dict[str, Any]:
    """Against the exact sweeps of the same towers, ours and TransformerLens's."""
    n = len(case.pairs)
    contenders: dict[str, Callable[[], Any]] = {
        "atp": lambda: atp(case.policy, case.pairs, towers=towers, resamples=0, block=n),
        "ours": lambda: patch_heads(case.policy, case.pairs, towers=towers, resamples=0, block=n),
        "transformerlens": lambda: [case.transformer_lens(tower, False) for tower in towers],
    }
    seconds, answers = timed(contenders, repeats)
    return {
        "towers": list(towers),
        "seconds": {name: [round(s, 4) for s in each] for name, each in seconds.items()},
        "ratio": {
            name: round(float(np.median(seconds[name]) / np.median(seconds["atp"])), 2)
            for name in ("ours", "transformerlens")
        },
        "pearson": {tower: round(r, 4) for tower, r in agreement(answers["atp"], answers["ours"]).items()},
    }


def timed(
    contenders: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Everyone once to warm up, then in turns."""
    answers = {name: run() for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, answers


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name:28}{'seconds':>10}{'ours is':>10}{'difference':>12}{'error to float64':>18}")
    for tower, measured in found["towers"].items():
        for contender, row in measured["contenders"].items():
            print(
                f"  {tower} {contender:{25 - len(tower)}}{np.median(row['seconds']):10.3f}{row['ratio']:9.1f}x"
                f"{row['difference']:12.1e}{row['error']:18.1e}"
            )
    a = found["atp"]
    ratios = ", ".join(f"{ratio:.1f}x faster than {other}" for other, ratio in a["ratio"].items())
    r = ", ".join(f"{tower} {value:.3f}" for tower, value in a["pearson"].items())
    print(
        f"  atp of {' + '.join(a['towers'])}: {np.median(a['seconds']['atp']):.3f} s, {ratios}; Pearson r: {r}"
    )


# ---- what is patched


def observation_pairs(policy: Policy, n: int, seed: int = 0) -> Pairs:
    """Random observations; the twin has other images and another state, so that every head has something to carry."""
    spec = policy.spec

    def observation(rng: np.random.Generator) -> Observation:
        shape = (spec.image_size, spec.image_size, 3)
        images = {camera: rng.integers(0, 256, shape, np.uint8) for camera in spec.cameras}
        return Observation(images, rng.normal(size=spec.state_dim).astype(np.float32), "pick up the red cube")

    rngs = [np.random.default_rng([seed, at]) for at in range(2 * n)]
    observations = [observation(rng) for rng in rngs]
    return Pairs(tuple(observations[:n]), tuple(observations[n:]))


def random_pi0() -> Policy:
    """18 layers x 8 heads as in the released model, an eighth as wide: head dimension 32 instead of 256."""
    sys.path.insert(0, str(ROOT / "tests"))
    from random_policy import build_policy

    with tempfile.TemporaryDirectory() as scratch:
        directory = build_policy(Path(scratch) / "p", heads=8, layers=18)
        return load_policy(widened(directory))


def widened(directory: Path) -> Path:
    """The same directory with a config of real proportions and fresh random weights."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    config = json.loads((directory / "config.json").read_text())
    for part, width, inner in (
        (config["vlm_config"]["text_config"], 256, 1024),
        (config["dit_config"], 128, 512),
    ):
        part.update(hidden_size=width, intermediate_size=inner, head_dim=32, initializer_range=0.08)
    config["vlm_config"].update(projection_dim=256)
    config.update(num_inference_steps=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = PI0ForConditionalGeneration(PI0Config(**config))
    module.save_pretrained(directory)
    return directory


def model_of(policy: Policy) -> Any:
    return policy.module.model


def in_float64(policy: Policy) -> Policy:
    other = copy(policy)
    other.module = deepcopy(policy.module).double()
    return other


def cache_of(prefix: Any) -> Any:
    """A fresh transformers cache: it grows when it is used."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(keys, values, layer)
    return cache


@contextmanager
def quiet() -> Iterator[None]:
    """TransformerLens draws a progress bar."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    main()
