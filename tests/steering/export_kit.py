"""What the tests of exports share."""

from pathlib import Path

import peft

from interp.policies import Observation, load_policy
from steering.pi0_adapter import in_transformers_names
from steering.verify import Answer, chunks_of


def answer_here(
    directory: Path, frames: list[Observation], seed: int, base: str | None = None, device: str = "cpu"
) -> Answer:
    """What `ask_fresh_process` answers, without the seconds that a fresh process takes."""
    policy = load_policy(base or directory, device)
    if base is not None:
        with in_transformers_names(directory) as readable:
            peft.PeftModel.from_pretrained(policy.module, str(readable)).eval()
    return Answer(policy.fingerprint, chunks_of(policy, frames, seed))
