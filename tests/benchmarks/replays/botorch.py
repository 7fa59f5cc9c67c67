"""BoTorch's multi-task Gaussian process (Bonilla et al. 2007, Swersky et al. 2013): the proxy is another task.

Notation: n proxy and target runs together, d coordinates; the last column of X is the task, 0 the proxy, 1 the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models.multitask import MultiTaskGP
from botorch.optim.optimize import optimize_acqf, optimize_acqf_mixed
from gpytorch.mlls import ExactMarginalLogLikelihood
from numpy.typing import NDArray

from replays.replay import Seen, View
from replays.simple import finite, proxy_runs
from replays.tables import Configuration
from replays.units import categories, decode, encoded
from understudy.process import set_threads
from understudy.trial import derive_seed

RESTARTS, RAW, SAMPLES = 8, 256, 128
TUKEY = 1.5  # quartile ranges above the third quartile: where Ax's `Winsorize` cuts losses that are to be minimized


class MultiTask:
    """The default multi-task GP, standardized by task as its documentation asks for, with qLogNEI.

    Losses are winsorized, as Ax does before any GP of its own: one diverged run would flatten all others. The first
    `initial` runs are the proxy's best configurations, since without results of the target nothing relates the tasks.
    Each fit begins where the last one ended, as in BoTorch's closed-loop tutorials.
    """

    def __init__(self, initial: int) -> None:
        self._initial = initial

    def start(self, view: View, seed: int) -> None:
        set_threads(1)
        self._space, self._seed, self._proxy = view.space, seed, view.proxy
        self._fixed = categories(view.space)
        self._state: dict[str, Any] | None = None

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        if len(history) + len(pending) < self._initial or not history:
            order = sorted(self._proxy, key=lambda trial: (trial.loss, trial.id))
            return order[len(history) + len(pending)].configuration
        torch.manual_seed(derive_seed(self._seed, len(history) + len(pending)))
        model = self._fit(history)
        target = torch.tensor(encoded(self._space, [run.configuration for run in history]))
        acquisition = qLogNoisyExpectedImprovement(
            model,
            X_baseline=target,
            X_pending=torch.tensor(encoded(self._space, pending)) if pending else None,
            prune_baseline=True,
        )
        return decode(self._space, self._best(acquisition, target.shape[1]))

    def _fit(self, history: Sequence[Seen]) -> Any:
        parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        for task, runs in enumerate((self._proxy, history)):
            points = encoded(self._space, [run.configuration for run in runs])
            losses = _standardized([run.loss for run in runs])
            parts.append((np.column_stack([points, np.full(len(points), task)]), losses))
        x, y = (torch.tensor(np.concatenate(each)) for each in zip(*parts, strict=True))
        model = MultiTaskGP(x, -y[:, None], task_feature=-1, output_tasks=[1], outcome_transform=None)
        if self._state is not None:
            model.load_state_dict(self._state)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        self._state = model.state_dict()
        return model

    def _best(self, acquisition: Any, width: int) -> list[float]:
        """The acquisition's maximum, shape (d,)."""
        options: dict[str, Any] = {"q": 1, "num_restarts": RESTARTS, "raw_samples": RAW}
        bounds = torch.tensor([[0.0] * width, [1.0] * width], dtype=torch.float64)
        if self._fixed == [{}]:
            candidate, _ = optimize_acqf(acquisition, bounds, **options)
        else:
            candidate, _ = optimize_acqf_mixed(acquisition, bounds, fixed_features_list=self._fixed, **options)
        point: list[float] = candidate[0].tolist()
        return point


class ScaledMultiTask(MultiTask):
    """The same, on the proxy's trials rescaled by the published rule."""

    def start(self, view: View, seed: int) -> None:
        super().start(view, seed)
        self._proxy = proxy_runs(view, scaled=True)


def _standardized(losses: Sequence[float]) -> NDArray[np.float64]:
    """A task's losses, winsorized, with mean 0 and standard deviation 1 (if they differ at all)."""
    values = np.array(finite(losses))
    low, high = np.quantile(values, [0.25, 0.75])
    values = np.minimum(values, high + TUKEY * (high - low))
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return np.asarray((values - values.mean()) / (spread or 1.0))
