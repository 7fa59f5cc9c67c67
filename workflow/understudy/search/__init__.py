"""What to try: the proxy's trials, what they say about the target, the target's proposals, who is best.

values       rounding, and when two configurations are the same
sequences    uniform and Sobol trials; grid: the grid's
defaults     published rules for the learning rate, and configurations that are known to be good
planning     packs of trials, and target configurations run back on the proxy
scaling      from a value on the proxy to its value on the target, and back
table        the proxy's trial table as configurations; importance: how much each hyperparameter matters
evidence     where the best trials lie, against chance
clusters     groups among the best trials; regions: padded boxes around them; starts: first configurations
transfer     all of this together
window       which results a proposal sees
surface      the proxy's response surface; two_fidelity: the target by it; acquisition: what to try next by that
samplers     who is asked: that, or Optuna's samplers on a study that is rebuilt in memory; quiet: without its remarks
refinement   the same as an Optuna sampler, for other programs
guidance     regions at work: where a proposal goes, and how it gets there
propose      one target trial
finalists    who is trained again, and who wins
"""
