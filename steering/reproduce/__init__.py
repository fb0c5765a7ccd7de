"""The paper's argument, repeated in simulation: every arm, task, seed and suite, resumable, with honest intervals.

plan        arms, studies, what is run in which order
scores      how heads are chosen
work        one job: demonstrations, scores, training, rollouts
experiment  all jobs, in processes; records as they are done
records     the files that are kept
maps        what every head does on every task: the scores that figures show
"""
