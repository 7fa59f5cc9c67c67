"""The contracts of what comes after the trials: regions, starts, proposals, finalists, test, decoding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from understudy.frozen import Frozen
from understudy.hyperparameters import Value
from understudy.space import SearchSpace
from understudy.trial import FORMAT_VERSION, TrialSpec


class ScaleRule(Frozen):
    """How one hyperparameter's value changes from the proxy to the target: multiply by `factor`."""

    factor: float
    rule: str = Field(description="in words and symbols, with the numbers put in")
    source: str = Field(description="the paper, or the setting that it comes from")


class Box(Frozen):
    """A region's extent along one hyperparameter, in target values: an interval, or a subset of the choices."""

    low: float | None = None
    high: float | None = None
    choices: tuple[Value, ...] | None = None
    proxy_low: Value | None = Field(default=None, description="smallest value among the region's trials, on the proxy")
    proxy_high: Value | None = Field(default=None, description="largest, likewise")
    fixed: Value | None = Field(
        default=None, description="what guided proposals take, in target values; the side still holds the whole range"
    )
    importance: float = Field(description="share of the proxy's variance that this hyperparameter explains")
    reason: str


class Region(Frozen):
    """A padded box around a cluster of the proxy's top trials."""

    id: int
    trials: tuple[str, ...] = Field(description="ids of its proxy trials, best first")
    best_objective: float
    mean_objective: float
    share: float = Field(description="part of the guided proposals that go here; the shares sum to 1")
    volume: float = Field(description="share of the whole space's unit volume")
    boxes: dict[str, Box]
    reason: str


class Surface(Frozen):
    """The proxy's response surface over the target's space: a Gaussian process, by its kernel and its points.

    Losses are in units: centre 0, the proxy's best at -1 (see `search/two_fidelity.py`).
    """

    centre: float = Field(description="the proxy's median loss, in nats")
    spread: float = Field(description="from its best loss to that, in nats")
    lengths: tuple[float, ...] = Field(description="the kernel's length along each coordinate")
    variance: float
    noise: float
    points: tuple[tuple[float, ...], ...] = Field(description="the trials' images in unit coordinates")
    values: tuple[float, ...] = Field(description="their losses in units")
    directions: tuple[tuple[int, ...], ...] = Field(
        default=(), description="Sobol's direction numbers, a row per hyperparameter: a proposal's candidates"
    )


class Explained(Frozen):
    """How well the proxy's losses follow its hyperparameters (see `search/explained.py`)."""

    value: float = Field(description="cross-validated R² of the losses' normal scores: 0 is as good as no surface")
    trials: int = Field(description="how many were predicted")


class Regions(Frozen):
    """What `transfer` found: `results/transfer/regions.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    trials: int = Field(description="proxy trials seen")
    complete: int = Field(description="of them with an objective")
    stopped: int = Field(default=0, description="of them stopped by halving")
    top: int = Field(description="of them counted as top")
    threshold: float = Field(description="largest objective among the top trials")
    median_objective: float
    default_objective: float | None = Field(description="of the proxy's default configuration, d00")
    scale: dict[str, ScaleRule]
    space: SearchSpace = Field(description="the target's one global space, widened to hold every start")
    regions: tuple[Region, ...] = Field(min_length=1)
    surface: Surface | None = Field(default=None, description="`transfer` always fits one")
    explained: Explained | None = Field(default=None, description="None where there are too few losses to tell")


class Start(Frozen):
    """A first configuration of the target stage."""

    hyperparameters: dict[str, Value]
    origin: Literal["transferred", "default"]
    parents: tuple[str, ...] = Field(description="the proxy trial that it is the rescaled image of")
    expected_rank: int | None = Field(description="rank of the parent among the proxy's complete trials, from 1")
    reason: str


class Starts(Frozen):
    """The first configurations in order: `results/transfer/starts.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    default: dict[str, Value] = Field(description="the default configuration that the winner has to beat")
    starts: tuple[Start, ...]


class Outlook(Frozen):
    """What the two-fidelity model expected when it made a proposal."""

    trust: float = Field(description="probability that the target falls where the proxy does")
    chance: float | None = Field(description="probability that the proposal beats the best so far; None without one")
    worth: float | None = Field(default=None, description="probability to beat it by `target.stop.gain`")
    rate_shift: float = Field(description="expected factor of the learning rate beyond the scale rule")


class Proposal(Frozen):
    """One target trial before it runs: `results/target/trials/{n}/proposal.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    number: int
    spec: TrialSpec
    kind: Literal["start", "guided", "explore"]
    region: int | None = None
    sampler: str = Field(description="what made it: `transfer` for a start, else the sampler's class")
    redrawn: tuple[str, ...] = Field(default=(), description="hyperparameters drawn anew to bring it into its region")
    fixed: tuple[str, ...] = Field(default=(), description="hyperparameters at the value that its region fixes")
    visible: tuple[str, ...] = Field(description="trials whose results it was made from")
    pending: tuple[str, ...] = Field(description="trials that counted as running")
    predicted: float | None = Field(
        default=None, description="loss in nats that the proxy's surface, which no target result changes, has for it"
    )
    outlook: Outlook | None = Field(default=None, description="of two_fidelity")
    stop_above: tuple[float | None, ...] = Field(
        default=(),
        description="best losses, in nats, above which the trial is stopped: one per evaluation before the last, None "
        "where there is no limit; empty where the trial runs in full whatever comes",
    )
    skip: str | None = Field(default=None, description="why the trial isn't worth its price, so that it isn't run")


class Finalist(Frozen):
    """A configuration that is trained again with several seeds. Rank 0 is the default configuration."""

    rank: int
    trial: str | None = Field(description="id of the search trial; None for the default if it was not searched")
    origin: str
    objective: float | None = Field(description="its validation loss in the search, where it ran in full")
    hyperparameters: dict[str, Value]


class Selection(Frozen):
    """Who goes on: `results/finalists/selection.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    finalists: tuple[Finalist, ...]


class Score(Frozen):
    """One finalist's validation losses over its seeds; None where a seed has no objective."""

    rank: int
    objectives: tuple[float | None, ...]
    mean: float | None
    standard_deviation: float | None = Field(description="of a sample; None below two seeds")


class Winner(Frozen):
    """The finalist with the best mean on validation: `results/finalists/winner.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    rank: int
    hyperparameters: dict[str, Value]
    digests: tuple[str, ...] = Field(description="store entries of its seeds, best first")
    default_digests: tuple[str, ...] = Field(description="store entries of the default's seeds, likewise")
    scores: tuple[Score, ...]


class Interval(Frozen):
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float
    confidence: float


class TestResult(Frozen):
    """The one evaluation on the test split: `results/test.json`. Losses in mean nats per completion token."""

    format_version: Literal[1] = FORMAT_VERSION
    looks: int = Field(description="how often this study has evaluated anything on the test split, this time included")
    examples: int
    seeds: int
    winner_loss: Interval
    default_loss: Interval | None = Field(description="None where the default configuration failed with every seed")
    gain: Interval | None = Field(description="default minus winner: positive is better; None likewise")
    validation_gain: Interval | None = Field(description="the same on the validation subset of the search")


class DecodeTrial(Frozen):
    """One decoding configuration and its score."""

    id: str
    generation: dict[str, Value] = Field(description="arguments of transformers' `generate`")
    chrf: float = Field(description="chrF of sacrebleu against the validation completions, 0 to 100")
    exact_match: float = Field(description="share of completions that are exactly the reference")
    mean_new_tokens: float
    wall_seconds: float


class DecodeResults(Frozen):
    """The decoding search, best first: `results/decode/trials.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    examples: int
    trials: tuple[DecodeTrial, ...]
