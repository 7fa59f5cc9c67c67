"""Training and evaluation: the only package that imports torch's optimizers and peft.

A trial's way through it, from the outside in: `pack` (many trials on one base) and `launch` (one trial, one or many
processes) ask `trial` for each spec's record, from the store or trained; `engine` prepares base, adapters and data
and turns what came of it into a result; `loop` is the one training loop, and `checkpoint` keeps where it is (`saving`
is what it shares with packs). `batches`, `forward`, `gradients`, `optimizer`, `adapters`, `ranks`, `memory` and
`evaluation` are its parts. `finalist` makes a finalist's spec; `trained`, `testing` and `decoding` use finished models
again.
"""
