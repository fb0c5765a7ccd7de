"""Factors: which heads see, which listen, which feel where things are.

A factor is a way to make a corrupt twin of an observation in which one thing differs; a head's factor score is its
share of what that does to the action.

pairs           FactorPairs: twins, labelled with factor, kind, edit and episode
tabletop        pairs from the testbed: the same simulator state, rendered twice (its edits: tabletop_edits)
edits           pairs from recorded demonstrations: edits that stand in
effects         what every head carries of every pair, exactly or to first order, and the controls
scores          HeadScores of a factor, and of a kind (semantic, nuisance) over factors
profile         how visual, linguistic and physical a head is
study           all of it for a run, saved into it
"""
