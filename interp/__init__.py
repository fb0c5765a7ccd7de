"""Understand: what every attention head of a policy does, and which heads carry a task.

The rooms, in the order in which a run visits them:

policies     one file a VLA family; the Protocol that the rest of the toolkit speaks to
hooked       HookedVLA: TransformerLens hook points around any policy
demos        demonstrations (LeRobotDataset v3) as observations and actions
capture      z of every head at chosen tokens, streamed to disk, resumable
sweep        many edits of z as rows of one batch: the engine under ablation and patching
ablation     what the policy loses without a head
replay       a pass that starts in the middle, at the layer that an edit is in
patching     which heads carry the difference between two observations
paths        what one head tells another, or the action, directly
attribution  the same from gradients; what a head itself writes into the action
mass         where heads look, span by span
factors      twins in which one thing differs: how visual, linguistic, physical a head is
explain      one action: the heads that made it, what they look at, where else they are strong
footage      what every head looks at in every frame, for people to watch
view         one tower as TransformerLens sees a model
knn          which heads know the demonstrated action
stability    how far that ranking depends on the demonstrations
scores       HeadScores, the one result type of every method
runs         all of it as plain files in a directory

Importing this package imports nothing heavy: pick the room you need.
"""
