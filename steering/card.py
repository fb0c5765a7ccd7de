"""Cards: where an exported policy comes from, as `card.json` for programs and README.md for people.

The provenance of a training (its summary.json, with the JSON of its results under `results`) goes in as it
is, but for paths of this machine, which mean nothing to whoever receives the export: of those only the last
part is kept. Hugging Face shows the README as the model's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.scores import now

CARD, README = "card.json", "README.md"
SCHEMA = 1

_MERGED = """
from interp.policies import load_policy

policy = load_policy("this/directory")
"""
_ADAPTER = """
import peft
from interp.policies import load_policy

policy = load_policy("{base}")
peft.PeftModel.from_pretrained(policy.module, "this/directory").eval()  # in place: policy acts finetuned now
"""
_LEROBOT = """
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0.modeling_pi0 import PI0Policy

policy = PI0Policy.from_pretrained("this/directory")
device = {"device_processor": {"device": policy.config.device}}
before, after = make_pre_post_processors(policy.config, "this/directory", preprocessor_overrides=device)
"""
_LEROBOT_ADAPTER = """
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_policy

config = PreTrainedConfig.from_pretrained("this/directory")
config.pretrained_path = "this/directory"
policy = make_policy(config, ds_meta=dataset.meta)
"""
_OPENPI = """
from openpi.policies.policy_config import create_trained_policy

policy = create_trained_policy(train_config, "this/directory")
"""
_USE = {
    "merged": ("transformers", _MERGED),
    "peft": ("peft", _ADAPTER),
    "lerobot": ("lerobot", _LEROBOT),
    "lerobot-peft": ("lerobot", _LEROBOT_ADAPTER),
    "openpi": ("openpi", _OPENPI),
}
"""Of a form, the library that reads it, and how."""


def make_card(
    provenance: Mapping[str, Any],
    *,
    policy: str,
    form: str,
    frames: int,
    difference: float,
    notes: Sequence[str] = (),
    precision: str | None = None,
) -> dict[str, Any]:
    """The card of a verified export: `policy` is the fingerprint of the policy that it acts as, `notes` what whoever
    receives it has to know, `precision` what it was verified in where that is not its own."""
    verified = {"frames": frames, "largest_difference": difference}
    card = {
        **_portable(provenance),
        "schema": SCHEMA,
        "policy": policy,
        "form": form,
        "verified": {**verified, "precision": precision} if precision else verified,
        "created": now(),
    }
    return {**card, "notes": list(notes)} if notes else card


def at_rate(fps: float | None) -> str:
    """A note: the rate [Hz] has to be told to the robot's program, which reads it off no file."""
    default = "LeRobot's default is 30 (--fps), openpi_client's as fast as it can (Runtime's max_hz)"
    if fps is None:
        return f"no file says at how many actions a second it was demonstrated: find out, for {default}"
    return f"demonstrated at {fps:g} Hz: lerobot-rollout --fps={fps:g}, Runtime(max_hz={fps:g}); {default}"


def base_name(source: str) -> str:
    """A base as others can know it: a name or hub id as it is, of a directory its last part."""
    return Path(source).name if source.startswith(("/", "./", "../", "~")) else source


def _portable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    card = dict(provenance)
    if isinstance(card.get("base"), Mapping):
        card["base"] = {**card["base"], "source": base_name(str(card["base"].get("source", "?")))}
    if isinstance(card.get("demonstrations"), Mapping) and "path" in card["demonstrations"]:
        card["demonstrations"] = {**card["demonstrations"], "path": Path(card["demonstrations"]["path"]).name}
    if card.get("results"):
        card["results"] = [_portable_result(result) for result in card["results"]]
    return card


def _portable_result(result: Mapping[str, Any]) -> dict[str, Any]:
    settings = result.get("settings")
    if not settings or "policy" not in settings:
        return dict(result)
    return {**result, "settings": {**settings, "policy": base_name(str(settings["policy"]))}}


def readme(card: Mapping[str, Any]) -> str:
    """The card for people."""
    base, recipe = card.get("base") or {}, card.get("recipe") or {}
    library, use = _USE[card.get("form", "merged")]
    lines = ["---", f"library_name: {library}", "pipeline_tag: robotics"]
    if "peft" in card.get("form", "") and base.get("source"):
        lines.append(f"base_model: {base['source']}")
    lines += [
        "tags: [robosteer]",
        "---",
        f"# {base.get('source', 'policy')}, {'finetuned' if recipe else 'exported'} with robosteer",
        "",
        f"- policy: `{card['policy']}`",
        f"- base: `{base.get('source', '?')}` (`{base.get('fingerprint', '?')}`)",
        *([f"- recipe: {recipe.get('name', '?')}, {recipe.get('steps', '?')} steps"] if recipe else []),
        *_facts(card),
        *_results(card.get("results") or []),
        "",
        "```python",
        *use.replace("{base}", str(base.get("source", "base"))).strip().splitlines(),
        "```",
    ]
    return "\n".join([*lines, ""])


def _facts(card: Mapping[str, Any]) -> list[str]:
    lines = []
    if heads := card.get("heads"):
        lines.append(f"- heads ({len(heads)}): {', '.join(heads)}")
    if data := card.get("demonstrations"):
        lines.append(f"- demonstrations: {len(data['episodes'])} episodes, {data['frames']} frames")
    if parameters := card.get("trainable_parameters"):
        counts = "; ".join(f"{group} {n:,}" for group, n in parameters.items())
        lines.append(f"- trainable parameters: {sum(parameters.values()):,} ({counts})")
    verified = card["verified"]
    precision = f" in {verified['precision']}" if "precision" in verified else ""
    lines.append(
        f"- verified: reloaded in a fresh process, actions on {verified['frames']} frames within "
        f"{verified['largest_difference']:.1e}{precision}"
    )
    return lines + [f"- note: {note}" for note in card.get("notes", ())]


def _results(results: list[Mapping[str, Any]]) -> list[str]:
    if not results:
        return []
    lines = ["", "| task | suite | arm | n | success | 95 % interval |", "|---|---|---|---|---|---|"]
    for result in results:
        low, high = result["wilson"]
        suite = result.get("suite") or "in-domain"
        lines.append(
            f"| {result['task']} | {suite} | {result['arm']} | {result['n']} | {result['success_rate']:.0%} "
            f"| {low:.0%} to {high:.0%} |"
        )
    return lines
