"""Attribution: which heads made the action, from a run or two instead of one run a head.

atp      attribution patching: the effect of patching every head, to first order; the best verified by true patches
ig       integrated gradients: gradients on the way from one observation to the other instead of at its end
qk       attribution patching of queries and keys, with the softmax computed instead of linearised
direct   what a head itself writes into the action

Same pairs, sign and scale as patching.py, but for `direct`, which needs one run and is in normalised action units.
"""

from interp.attribution.atp import Check, atp, estimates, verify
from interp.attribution.direct import Direct, direct, direct_scores
from interp.attribution.ig import integrated
from interp.attribution.qk import atp_qk

__all__ = ["Check", "Direct", "atp", "atp_qk", "direct", "direct_scores", "estimates", "integrated", "verify"]
