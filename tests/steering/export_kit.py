"""What the tests of exports share."""

from pathlib import Path

from interp.policies import Observation
from steering.verify import Answer, answer_of


def answer_here(
    directory: Path, frames: list[Observation], seed: int, base: str | None = None, device: str = "cpu"
) -> Answer:
    """What `ask_fresh_process` answers, without the seconds that a fresh process takes."""
    return answer_of(directory, frames, seed, base, device)
