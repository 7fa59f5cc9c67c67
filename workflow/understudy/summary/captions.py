"""What each figure shows, under it in the report."""

from __future__ import annotations

from collections.abc import Mapping

FIXED = " A dashed green line: what is negligible has that value in proposals guided into the region."
CAPTIONS: Mapping[str, tuple[str, str]] = {
    "progress": (
        "Progress against cost",
        "The best validation loss so far against everything spent so far; the shaded span is the proxy's search. The "
        "dashed line is the default configuration, which one target trial buys.",
    ),
    "agreement": (
        "Agreement",
        "The same configurations on both models, each rescaled to the model that ran it: first losses, then ranks. A "
        "proxy that ranks as the target does lies on the dashed line. Beside them, where there are predictions: every "
        "target trial's loss against what the surface fitted to the proxy's search had for it before any of them ran.",
    ),
    "importance": (
        "Importance",
        "How much of the variance of the loss's rank each hyperparameter explains within its range (functional ANOVA). "
        "It says where to look, not which way to turn, and from a dozen trials or fewer it is mostly noise.",
    ),
    "slices": (
        "Slices",
        "The loss of every search trial that ran in full, above the best of its own stage, against one hyperparameter "
        "at a time; the target's configurations run back on the proxy are among the proxy's. Values are as used: where "
        "a rule rescales them, the proxy's lie apart from the target's. Shaded: the regions that the transfer found, "
        "in target values.",
    ),
    "curves": (
        "Learning curves",
        "Validation loss during training. Curves end where their configuration's epochs end, or where a trial was "
        "stopped early; one evaluation alone is a dot.",
    ),
}


def captions(guided: bool) -> dict[str, tuple[str, str]]:
    """Title and text of each figure. `guided` says whether the regions guide proposals, and fix what is negligible."""
    title, text = CAPTIONS["slices"]
    return {**CAPTIONS, "slices": (title, text + FIXED if guided else text)}
