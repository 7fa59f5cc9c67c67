"""From the proxy's trials to the target's regions and first configurations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import numpy as np
import polars as pl

from understudy.artifacts import Regions, ScaleRule, Starts
from understudy.search.clusters import embed, group
from understudy.search.defaults import known_good, learning_rate_rule, published
from understudy.search.explained import cross_validated
from understudy.search.importance import importance_table
from understudy.search.regions import Frame, gather_evidence, make_regions
from understudy.search.scaling import scale_rules, scaled, scaled_space
from understudy.search.starts import Image, make_starts
from understudy.search.surface import make_surface, points
from understudy.search.table import seen_trials
from understudy.sections import TransferSection
from understudy.space import Space, widen
from understudy.trial import ModelCard

FEWEST_TOP = 3
SAME_RATE = 2e-5  # relative; above what rounding two rates to 6 digits can do, far below what matters


def transfer(
    settings: TransferSection,
    table: pl.DataFrame,
    proxy: ModelCard,
    target: ModelCard,
    more_tokens: float = 1.0,
) -> tuple[Regions, Starts]:
    """Regions and starts from the proxy's trial table (echoes in it don't count).

    `more_tokens` says how many times as many tokens a whole trial of the target trains on.

    Raises `UnderstudyError` where no proxy trial is complete.
    """
    options, method = settings.transfer, settings.method
    searched = table.filter(pl.col("origin") != "echo")
    seen = seen_trials(searched)
    complete = seen.complete
    space = widen(settings.space, [trial.values for trial in seen.everyone])
    best = seen.judged[: math.ceil(options.top_fraction * len(seen.judged))]
    top = complete[: max(FEWEST_TOP, sum(trial.objective is not None for trial in best))]
    importance = dict(importance_table(searched, settings.space, settings.seed).rows())
    others = seen.everyone[len(top) :]
    evidence = gather_evidence(space, top, others, importance, settings.seed, options.fix_below)

    more = more_tokens / settings.fidelity
    scale = scale_rules(
        proxy, target, method, options.learning_rate_exponent, more, options.learning_rate_tokens_exponent
    )
    rate = _default_rate(settings, proxy, target, scale)
    known = known_good(settings.space, settings.defaults, rate, method)
    known += published(settings.space, settings.defaults, rate, method)
    image = Image(scale, method, settings.space, known[0].hyperparameters)
    held = [*(item.hyperparameters for item in known), *(image.of(trial) for trial in top)]
    wide = widen(scaled_space(space, scale, method), list(held))

    grouping = group(embed(space, [trial.values for trial in top], importance), options.max_regions)
    regions = make_regions(Frame(space, wide, scale, options.padding), top, grouping, evidence)
    middling = statistics.median(trial.known for trial in seen.judged)
    starts = make_starts(complete, top, regions, known, image, wide, _weights(importance, wide), middling)
    found = Regions(
        trials=searched.height,
        complete=len(complete),
        stopped=len(seen.stopped),
        top=len(top),
        threshold=top[-1].score,
        median_objective=statistics.median(trial.score for trial in complete),
        default_objective=next((trial.objective for trial in complete if trial.id == "d00"), None),
        scale={name: rule for name, rule in scale.items() if name in settings.space},
        space=wide,
        regions=regions,
        surface=make_surface(
            wide,
            [image.of(trial) for trial in (*seen.judged, *seen.bad)],
            [*(trial.known for trial in seen.judged), *[None] * len(seen.bad)],
            more**options.batch_size_exponent,
        ),
        explained=cross_validated(
            points(wide, [image.of(trial) for trial in seen.judged]), np.array([trial.known for trial in seen.judged])
        ),
    )
    return found, starts


def _default_rate(
    settings: TransferSection, proxy: ModelCard, target: ModelCard, scale: Mapping[str, ScaleRule]
) -> float:
    """The published rule's rate on the target.

    Where that is the proxy's rate after scaling, it is so to the last digit: the default and its counterpart's image
    are then one configuration, however either is rounded. They differ where the exponents of the models do.
    """
    rule = learning_rate_rule(
        target.hidden_size, target.model_type, settings.method, settings.transfer.learning_rate_exponent
    )
    on_proxy = learning_rate_rule(proxy.hidden_size, proxy.model_type, "lora")  # as the proxy's trials were planned
    image = scaled(on_proxy, scale["learning_rate"].factor)
    return image if math.isclose(image, rule, rel_tol=SAME_RATE) else rule


def _weights(importance: Mapping[str, float], space: Space) -> dict[str, float]:
    """Importance by name; alike where the proxy says nothing."""
    return dict(importance) if importance else dict.fromkeys(space, 1 / len(space))
