"""A pi0 policy without weights, on the meta device: what counting.py counts. Importing this loads transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PI0ForConditionalGeneration

from interp.policies.pi0 import PI0Policy
from interp.policies.spec import PolicySpec


class Skeleton(PI0Policy):
    """A PI0 that knows its shapes and can neither see nor act."""

    def __init__(self, directory: Path, spec: PolicySpec, fingerprint: str) -> None:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            module = PI0ForConditionalGeneration(config)
        self.module = module.eval().requires_grad_(False)
        self.spec, self.fingerprint, self.source = spec, fingerprint, str(directory)
