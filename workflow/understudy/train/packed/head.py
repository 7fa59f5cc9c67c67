"""The loss on completion tokens, and its gradient, without a graph.

Notation: n completion tokens, H the hidden size, V the vocabulary's, z (n, V) logits, W (V, H) the head,
p = softmax(z). With label smoothing e a token's loss is (1 - e) · -log p_target + e · mean(-log p), as in torch's
cross entropy.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.models.estimates import GPU_CHUNKS
from understudy.train.packed.rows import ROUND

CHUNK = 2**24  # logits that are held at once; on GPUs `GPU_CHUNKS` as many, since each chunk reads the head twice


def losses_and_gradient(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: Tensor | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Each token's loss (n,) in nats and the gradient (n, H) of the losses' sum weighted by `weights` (n,).

    `smoothing` (n,) is each token's label smoothing, None for none at all.
    """
    count, hidden, targets, weights = len(targets), _rounded(hidden), _rounded(targets), _rounded(weights)
    smoothing = None if smoothing is None else _rounded(smoothing)
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    gradient = torch.empty_like(hidden)
    for part in _chunks(len(targets), weight):
        logits = torch.mm(hidden[part], weight.t()).float()
        chosen = targets[part].unsqueeze(1)
        log_probabilities = torch.log_softmax(logits, 1)
        loss = -log_probabilities.gather(1, chosen)
        if smoothing is None:
            probabilities = log_probabilities.exp_()
            probabilities.scatter_add_(1, chosen, probabilities.new_full(chosen.shape, -1.0))
        else:
            share = smoothing[part].unsqueeze(1)
            loss = (1.0 - share) * loss - share * log_probabilities.mean(1, keepdim=True)
            probabilities = log_probabilities.exp_().sub_(share / logits.shape[1])
            probabilities.scatter_add_(1, chosen, share - 1.0)
        losses[part] = loss.squeeze(1)
        probabilities *= weights[part].unsqueeze(1)
        torch.mm(probabilities.to(weight.dtype), weight, out=gradient[part])
    return losses[:count], gradient[:count]


def losses_and_hits(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's negative log-likelihood (n,) in nats, and whether no other token has a larger logit (n,)."""
    count, hidden, targets = len(targets), _rounded(hidden), _rounded(targets)
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    hits = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for part in _chunks(len(targets), weight):
        logits = torch.mm(hidden[part], weight.t()).float()
        log_probabilities = torch.log_softmax(logits, 1)
        at_target = log_probabilities.gather(1, targets[part].unsqueeze(1)).squeeze(1)
        losses[part] = -at_target
        hits[part] = at_target == log_probabilities.amax(1)
    return losses[:count], hits[:count]


def _chunks(tokens: int, weight: Tensor) -> Iterator[slice]:
    """The tokens whose logits are held at once, a multiple of `ROUND`."""
    held = CHUNK * (GPU_CHUNKS if weight.device.type == "cuda" else 1)
    rows = max(1, held // len(weight) // ROUND) * ROUND
    return (slice(start, start + rows) for start in range(0, tokens, rows))


def _rounded(rows: Tensor) -> Tensor:
    """With zeros up to a multiple of `ROUND`: other kernels take slim products, and their sums differ."""
    return F.pad(rows, (*(0, 0) * (rows.ndim - 1), 0, -len(rows) % ROUND))
