"""The embedded default: a simulated Franka tabletop, its tasks and demonstrations, and tiny-pi0.

`testbed` imports nothing else of robosteer, so it can be used alone as a `gymnasium` environment.
"""

from pathlib import Path

from testbed.gl import choose_gl

TINY_PI0 = Path(__file__).parent / "tiny_pi0"
"""Directory of the shipped policy: transformers' PI0 layout plus `robosteer.json`."""

choose_gl()  # before anything imports MuJoCo
