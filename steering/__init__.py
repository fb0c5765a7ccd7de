"""Adapt: choose heads, finetune only those, prove it in closed loop, hand over the checkpoint.

headset   which heads: files, fingerprints, top-k / bottom-k / random-k
slices    trainable parameters for chosen heads alone
recipes   what trains: head slices and the controls they are compared with
finetune  one resumable training loop for all recipes
rollouts  closed-loop evaluation in spawned workers, paired seeds
stats     intervals of rates and of paired differences
results   the JSON that comparisons and the dashboard read
export    merged checkpoints, verified in a fresh process
"""
