"""Adapt: choose heads, finetune only those, prove it in closed loop, hand over the checkpoint.

headset   which heads: files, fingerprints, top-k / bottom-k / random-k
slices    trainable parameters for chosen heads alone
recipes   what trains: head slices and the controls they are compared with
finetune  one resumable training loop for all recipes (draws: its randomness; frames, frozen, stored: what is computed
          once; augment, checkpoint, progress, memory; ranks: several processes)
retain    averages of a finetuned policy with its base
rollouts  closed-loop evaluation in spawned workers, paired seeds (episode, workers, video: its parts)
suites    perturbation suites by factor, the unseen task, forgetting
stats     intervals of rates, of paired differences, of means over tasks
results   the JSON that comparisons and the dashboard read
compare   arms side by side: success, robustness, forgetting, cost (compare_figures, compare_report, looks: how that is
          shown)
export    merged checkpoints, verified in a fresh process
"""
