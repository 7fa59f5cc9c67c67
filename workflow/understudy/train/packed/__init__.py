"""Packed trials: many LoRA trials trained at once on one frozen base, each as if it were alone.

The tokens of all trials go through the base's layers as one long row of tokens without padding; each trial's adapter is
applied to its own tokens, and each trial has an optimizer, a schedule and random numbers of its own. Nothing that a
trial computes depends on who shares its pack: on one CPU thread that holds to the bit.

From the bottom up:

    layout      where the weights of an adapter lie in its one flat vector
    base        the frozen decoder's weights, dequantized when they are needed
    adapters    the stacked vectors of all trials, their gradients and moments; PEFT's format in and out
    rows        from examples to one long row of tokens, and from there to attention
    products    the adapters' products with all trials' tokens, forward and backward
    batched     the same on GPUs: those of all trials at once, padded
    rotary      rotary positions, forward and backward
    decoder     forward and backward through the layers, written out
    head        the loss on completion tokens
    trials      what a trial has done and does next, and which trials go through the base together
    passes      what goes through the base at once: a step of some trials, an evaluation of one
    halving     who goes on at a rung
    rungs       what trials have there, and what becomes of them
    pack        the loop, and what happens when memory runs out
    checkpoint  a pack's state in a file
    train       from specs to records
"""
