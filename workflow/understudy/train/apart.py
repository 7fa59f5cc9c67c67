"""Whether a model keeps the examples of one row apart, found out by trying."""

from __future__ import annotations

import torch
from torch import nn

from understudy.data.encoding import Encoded
from understudy.errors import ModelError
from understudy.train.evaluation import evaluation_mode
from understudy.train.forward import collate, completion_logits, device_of
from understudy.trial import ResolvedExecution

TOLERANCE = 1e-3  # of the largest logit: kernels may sum in another order, and another example moves it by far more


def check_apart(model: nn.Module, execution: ResolvedExecution) -> None:
    """Raise `ModelError` where what an example predicts depends on the example before it in the row.

    That is so for models with a state that runs along the row (Mamba), and where a class ignores positions when it
    makes its masks. Takes two passes of 14 tokens; every rank has to call it.
    """
    second = Encoded([1, 2, 3, 0, 2, 1], 1, 1)
    seen = []
    with evaluation_mode(model), torch.no_grad():
        for token in (2, 3):
            first = Encoded([token] * 8, 7, 1)
            batch = collate([first, second], 0, device_of(model), execution)
            seen.append(completion_logits(model, batch, execution)[1:])
    moved, largest = (seen[0] - seen[1]).abs().max(), seen[0].abs().max()
    if moved > TOLERANCE * largest:
        raise ModelError(
            f"`execution.target.padding_free` puts examples one behind the other, and {type(model).__name__} doesn't "
            "keep them apart: what one predicts depends on the one before it; set `padding_free: false`"
        )
