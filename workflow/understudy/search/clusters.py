"""Groups among the best trials.

Notation: n trials, d coordinates after embedding. Distances are Euclidean, each hyperparameter's weighted by its
importance, so that what doesn't matter can't split a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.hyperparameters import Value
from understudy.space import Choices, Space

CLEAR = 0.5  # mean silhouette from which a structure is "reasonable" (Kaufman & Rousseeuw 1990, table 2.4)


@dataclass(frozen=True)
class Grouping:
    """The groups as indices of trials, ascending, and why there are as many as there are."""

    groups: tuple[tuple[int, ...], ...]
    reason: str


def embed(
    space: Space, configurations: Sequence[Mapping[str, Value]], weights: Mapping[str, float]
) -> NDArray[np.float64]:
    """Points (n, d) whose squared distance is the sum of weight · (difference in unit coordinates)².

    Choices without an order get an axis per choice, scaled so that two different ones are 1 apart.
    """
    columns: list[NDArray[np.float64]] = []
    for name, parameter in space.items():
        weight = np.sqrt(weights.get(name, 0.0))
        column = [values[name] for values in configurations]
        if isinstance(parameter, Choices) and not parameter.ordered:
            columns.extend(
                weight / np.sqrt(2) * np.array([float(value == choice) for value in column])
                for choice in parameter.choices
            )
        else:
            columns.append(weight * np.array(parameter.places(column)))
    return np.stack(columns, axis=1)


def group(points: NDArray[np.float64], most: int) -> Grouping:
    """Split points (n, d) into 1 to `most` groups of at least two.

    Ward's hierarchical clustering by scipy, cut at the number of groups with the largest mean silhouette; one group
    unless that reaches 0.5. A cut that leaves a point alone doesn't count: one trial is no region.
    """
    everything = Grouping((tuple(range(len(points))),), "one group: the top trials show no clear split")
    if most < 2 or len(points) < 4 or np.ptp(points, axis=0).max() == 0:
        return everything
    from scipy.cluster.hierarchy import fcluster, ward
    from sklearn.metrics import silhouette_score

    tree = ward(points)
    best, best_score = everything, CLEAR
    for count in range(2, most + 1):
        labels = fcluster(tree, count, criterion="maxclust")
        groups = tuple(sorted(tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)))
        if len(groups) != count or min(map(len, groups)) < 2:
            continue
        score = float(silhouette_score(points, labels))
        if score >= best_score:
            best, best_score = Grouping(groups, f"{count} groups, mean silhouette {score:.2f}"), score
    return best
