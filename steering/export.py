"""Export: a finetuned policy as a plain checkpoint, proven before it is called done.

The directory is what `load_policy` and transformers' `from_pretrained` read, with merged weights and nothing
of ours in them, plus a provenance card (`card.json`, and `README.md` for people): base, demonstrations,
heads, recipe, results. It is written beside its destination, reloaded in a fresh process, its action chunks
on real frames are compared with the policy in memory, and only then is it renamed into place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.policies import Observation, Policy
from interp.runs import write_atomic, write_json
from interp.scores import now
from steering.slices import SlicedLinear
from steering.verify import ask_fresh_process, chunks_of

CARD, README = "card.json", "README.md"
TOLERANCE = 1e-6
"""Largest difference of an action, in robot units, between the policy in memory and its export."""


class ExportError(RuntimeError):
    """The exported files do not do what the policy does; nothing was left at the destination."""


@dataclass(frozen=True)
class Exported:
    """A verified export. `difference` is the largest absolute difference of any action on `frames` frames."""

    directory: Path
    fingerprint: str
    frames: int
    difference: float


def export(
    policy: Policy,
    directory: str | Path,
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write `policy` to `directory`, verified on `observations` (a few real frames).

    `provenance` goes into the card as it is: the summary of a training (`Finetuned.summary`), with the JSON of
    its results under `results` if there are any.
    """
    target = Path(directory)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists: choose a new directory, or allow overwriting")
    if target.exists() and not ((target / "config.json").is_file() or not any(target.iterdir())):
        raise UsageError(f"{target} exists and is not a policy: it will not be overwritten")
    if not observations:
        raise UsageError("export needs at least one observation to verify the exported policy on")
    unmerged = [name for name, module in policy.module.named_modules() if isinstance(module, SlicedLinear)]
    if unmerged:
        raise UsageError(
            f"the policy carries unmerged head slices ({unmerged[0]}): merge them before exporting"
        )

    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        policy.save(fresh / target.name)
        answer = ask_fresh_process(fresh / target.name, observations, seed)
        difference = float(np.abs(answer.chunks - chunks_of(policy, observations, seed)).max())
        if not difference <= TOLERANCE:  # also catches NaN
            raise ExportError(
                f"the exported policy differs from the one in memory by {difference:.2e} on "
                f"{len(observations)} frames (at most {TOLERANCE:.0e} allowed): nothing was exported"
            )
        exported = Exported(target, answer.fingerprint, len(observations), difference)
        card = _card(exported, provenance)
        write_json(fresh / target.name / CARD, card)
        write_atomic(fresh / target.name / README, _readme(card).encode())
        if target.exists():
            target.rename(fresh / "old")
        (fresh / target.name).rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return exported


def _card(exported: Exported, provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **provenance,
        "schema": 1,
        "policy": exported.fingerprint,
        "verified": {"frames": exported.frames, "largest_difference": exported.difference},
        "created": now(),
    }


def _readme(card: Mapping[str, Any]) -> str:
    """The card for people; Hugging Face shows it as the model's page."""
    base, recipe = card.get("base") or {}, card.get("recipe") or {}
    heads, results = card.get("heads") or [], card.get("results") or []
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: robotics",
        "tags: [robosteer]",
        "---",
        f"# {base.get('source', 'policy')}, finetuned with robosteer",
        "",
        f"- policy: `{card['policy']}`",
        f"- base: `{base.get('source', '?')}` (`{base.get('fingerprint', '?')}`)",
        f"- recipe: {recipe.get('name', '?')}, {recipe.get('steps', '?')} steps",
    ]
    if heads:
        lines.append(f"- heads ({len(heads)}): {', '.join(heads)}")
    if data := card.get("demonstrations"):
        lines.append(f"- demonstrations: {len(data['episodes'])} episodes, {data['frames']} frames")
    if parameters := card.get("trainable_parameters"):
        counts = "; ".join(f"{group} {n:,}" for group, n in parameters.items())
        lines.append(f"- trainable parameters: {sum(parameters.values()):,} ({counts})")
    verified = card["verified"]
    lines.append(
        f"- verified: reloaded in a fresh process, actions on {verified['frames']} frames within "
        f"{verified['largest_difference']:.1e}"
    )
    if results:
        lines += ["", "| task | arm | n | success | 95 % interval |", "|---|---|---|---|---|"]
        for r in results:
            low, high = r["wilson"]
            lines.append(
                f"| {r['task']} | {r['arm']} | {r['n']} | {r['success_rate']:.0%} | {low:.0%} to {high:.0%} |"
            )
    lines += [
        "",
        "```python",
        "from interp.policies import load_policy",
        "",
        'policy = load_policy("this/directory")',
        "```",
    ]
    return "\n".join([*lines, ""])
