"""The config's sections that say how the two stages search: proxy, transfer, target."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from understudy.hyperparameters import Value
from understudy.settings import HalvingMetric, Method, Sampler, Section

FEWEST_WITH_STOP = 4  # target trials that run before any is skipped; one of them is the default configuration


def _no_switch(name: str, value: Any) -> Any:
    """The value of a section that `{}` switches on, unless it is true or false."""
    if isinstance(value, bool):
        way = f"write `{name}: {{}}` to switch it on" if value else f"leave `{name}` out to switch it off"
        raise ValueError(f"is a section; {way}, but got {str(value).lower()}")
    return value


class HalvingSettings(Section):
    """Successive halving: after a part of their steps, only the best trials of a bracket go on."""

    rungs: int = Field(
        default=2,
        ge=1,
        le=10,
        description="how often trials are stopped; the last time after 1/reduction_factor of the steps",
    )
    reduction_factor: int = Field(
        default=3,
        ge=2,
        description="at a rung one trial in this many goes on; the next rung comes after this many times the steps",
    )
    metric: HalvingMetric = Field(default="eval_loss", description="what trials are compared by")
    bracket: int | None = Field(
        default=None,
        ge=2,
        description="trials that are compared with each other, a divisor of `pack_size`; by default the one nearest "
        "to reduction_factor^rungs",
    )

    def bracket_in(self, pack_size: int) -> int:
        """The bracket's size; by default the divisor of `pack_size` that is nearest, in ratio, to the ideal one.

        reduction_factor^rungs trials leave exactly one after the last rung.
        """
        if self.bracket is not None:
            return self.bracket
        ideal = self.reduction_factor**self.rungs
        divisors = (size for size in range(1, pack_size + 1) if pack_size % size == 0)
        return min(divisors, key=lambda size: (max(size / ideal, ideal / size), -size))


class ProxySettings(Section):
    """The proxy stage: how many trials of which origin, and how many of them share a process."""

    random: int = Field(default=16, ge=0, description="independent uniform trials")
    sobol: int = Field(default=24, ge=0, description="quasi-random trials: a scrambled Sobol sequence")
    grid: dict[str, tuple[Value, ...]] = Field(
        default_factory=dict, description="axes and their values; all else at the known default"
    )
    defaults: bool = Field(default=True, description="try the known-good defaults as well")
    fidelity: float = Field(
        default=1.0, gt=0, le=1, description="share of its steps that a trial runs: less makes the proxy cheaper"
    )
    pack_size: int = Field(default=16, ge=1, description="trials that one job trains on one copy of the base")
    echo: bool = Field(
        default=True, description="run the target's configurations back on the proxy, to measure their agreement"
    )
    halving: HalvingSettings | None = Field(
        default=None,
        description="stop bad trials early; `{}` switches it on, nothing leaves it off. Defaults and echoes always run "
        "in full",
    )

    @field_validator("halving", mode="before")
    @classmethod
    def _halving_is_a_section(cls, value: Any) -> Any:
        return _no_switch("halving", value)

    @model_validator(mode="after")
    def _something_to_try(self) -> ProxySettings:
        if not (self.random or self.sobol or self.grid or self.defaults):
            raise ValueError("at least one of `random`, `sobol`, `grid` and `defaults` must give a trial")
        return self

    @model_validator(mode="after")
    def _halving_can_happen(self) -> ProxySettings:
        if self.halving is None:
            return self
        bracket, factor, rungs = self.bracket, self.halving.reduction_factor, self.halving.rungs
        if self.pack_size % bracket:
            below, above = self.pack_size // bracket * bracket, -(-self.pack_size // bracket) * bracket
            ways = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"`pack_size` must be a multiple of `halving.bracket`, since a bracket is trained by one job, but got "
                f"{self.pack_size} and {bracket}; set `pack_size: {ways}`, or leave `bracket` out"
            )
        if bracket <= factor ** (rungs - 1):
            enough = factor ** (rungs - 1) + 1
            raise ValueError(
                f"with `halving.reduction_factor: {factor}` a bracket of {bracket} trials is down to one before the "
                f"last of {rungs} rungs; lower `halving.rungs`, or make brackets of at least {enough} trials "
                f"(`pack_size` is {self.pack_size})"
            )
        counts = {"random": self.random, "sobol": self.sobol, "grid": self.grid_size}
        if max(counts.values()) < bracket:
            given = ", ".join(f"`{name}` {count}" for name, count in counts.items())
            raise ValueError(
                f"`halving` would stop nothing: brackets of {bracket} trials of one origin are compared, but there are "
                f"only {given}; ask for more of one, lower `halving.bracket`, or leave `halving` out"
            )
        return self

    @property
    def bracket(self) -> int:
        """Trials that are compared with each other; 0 without halving."""
        return self.halving.bracket_in(self.pack_size) if self.halving else 0

    @property
    def grid_size(self) -> int:
        """How many trials the grid has."""
        return math.prod(len(values) for values in self.grid.values()) if self.grid else 0


class TransferSettings(Section):
    """How the proxy's results become regions and first configurations of the target."""

    top_fraction: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="share of the proxy's trials that counts as top: they are starts and make regions",
    )
    max_regions: int = Field(default=3, ge=1, description="the most clusters that the top trials are split into")
    padding: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="margin of a region, in units of a parameter's range; with `two_fidelity` for the report alone",
    )
    fix_below: float = Field(
        default=0.01,
        ge=0,
        le=0.05,
        description="what explains a smaller share of the proxy's variance is fixed at a region's best trial's value "
        "in proposals guided there; 0 fixes nothing; with `two_fidelity` for the report alone",
    )
    learning_rate_exponent: float | Literal["auto"] = Field(
        default="auto",
        description="p in the rate's scale (proxy width / target width)^p; `auto` takes the family's published one",
    )
    learning_rate_tokens_exponent: float = Field(
        default=0.1,
        description="the rate grows like the training tokens to this power, where the target has more of them",
    )
    batch_size_exponent: float = Field(
        default=0.5,
        description="the best batch grows like the training tokens to this power, likewise",
    )


class StopSettings(Section):
    """When more target trials aren't worth their price; `{}` takes the defaults. With `two_fidelity` alone.

    A trial is skipped where neither what was run of late nor the model promises a gain, and then all after it, until a
    gain shows that was still in the making. Small steps add up: a gain is measured from the last loss that was one.
    """

    gain: float = Field(
        default=0.001, gt=0, lt=1, description="what would be worth a trial, as a share of the best loss"
    )
    patience: int = Field(
        default=6, ge=0, description="trials are skipped once the last so many that a proposal sees brought no gain"
    )
    chance: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="and the model gives a gain less than this, whatever is tried next",
    )

    def first_to_skip(self, window: int) -> int:
        """The number of the first trial that can be skipped. The first trial of all counts as a gain."""
        return max(FEWEST_WITH_STOP, self.patience + window)


class TruncatedSettings(Section):
    """Short runs of the target itself before its trials: a fidelity between proxy and target; `{}` turns them on."""

    trials: int = Field(default=8, ge=1, description="configurations that get a short run first")
    fidelity: float = Field(default=0.25, gt=0, lt=1, description="share of a trial's steps that they last")


class EarlyStoppingSettings(Section):
    """When a target trial is stopped before its end, by the learning curves that its proposal sees; `{}`: defaults."""

    rule: Literal["reach", "median"] = Field(
        default="reach",
        description="`reach` stops a trial that wouldn't reach the best loss even if its own fell from here on as much "
        "as any trial's did; `median` one that is worse than the median (Optuna's `MedianPruner`)",
    )
    visible: int = Field(
        default=2, ge=1, description="complete trials that a proposal has to see before it may stop one"
    )
    margin: float | None = Field(
        default=None,
        ge=0,
        description="of `reach`: share by which the largest fall counts for more; 0.25 if absent",
    )

    @model_validator(mode="after")
    def _margin_goes_with_reach(self) -> EarlyStoppingSettings:
        if self.rule != "reach" and self.margin is not None:
            raise ValueError(f"`margin` goes with `rule: reach`, but the rule is `{self.rule}`; leave `margin` out")
        return self


class TargetSettings(Section):
    """The target stage."""

    trials: int = Field(default=16, ge=1, description="full-size trials")
    window: int = Field(
        default=4,
        ge=1,
        description="proposal n sees the results of trials 0 to n - window, so that as many trials can run side by "
        "side; at most a quarter of `trials`",
    )
    starts: int = Field(
        default=6,
        ge=1,
        description="first trials that come from the transfer; not with `two_fidelity`",
    )
    sampler: Sampler = Field(
        default="two_fidelity", description="who proposes: the model of proxy and target, or one of Optuna's samplers"
    )
    explore: float = Field(
        default=0.2, ge=0, le=1, description="share of proposals that may leave the regions; not with `two_fidelity`"
    )
    prior_strength: float = Field(
        default=10,
        gt=0,
        allow_inf_nan=False,
        description="results of the target up to which the regions keep their shares of the proposals; with more of "
        "them these fade towards their shares of the space; not with `two_fidelity`",
    )
    stop: StopSettings | None = Field(
        default=None, description="skip trials that are hardly worth it; `{}` turns it on"
    )
    truncated: TruncatedSettings | None = Field(
        default=None, description="first try configurations in short runs of the target; with `two_fidelity` alone"
    )
    early_stopping: EarlyStoppingSettings | None = Field(
        default=None,
        description="stop trials by their learning curves; `{}` turns it on. The default configuration and finalists "
        "always run in full",
    )
    method: Method = Field(default="lora", description="LoRA, or all of the model's weights")

    @field_validator("early_stopping", "stop", "truncated", mode="before")
    @classmethod
    def _optional_sections(cls, value: Any, info: ValidationInfo) -> Any:
        return _no_switch(str(info.field_name), value)

    @model_validator(mode="after")
    def _fits(self) -> TargetSettings:
        if self.window > max(1, self.trials // 4):
            raise ValueError(
                f"`window` may be at most a quarter of `trials` ({max(1, self.trials // 4)} for {self.trials} trials), "
                f"but got {self.window}"
            )
        if self.stop is not None and self.sampler != "two_fidelity":
            raise ValueError(f"`stop` asks the model of `sampler: two_fidelity`, but the sampler is `{self.sampler}`")
        if self.truncated is not None and self.sampler != "two_fidelity":
            raise ValueError(
                f"`truncated` runs speak to the model of `sampler: two_fidelity`, but the sampler is `{self.sampler}`"
            )
        if self.sampler == "two_fidelity":
            self._suits_the_model()
        elif self.starts > self.trials and self.starts != type(self).model_fields["starts"].default:
            raise ValueError(f"`starts` may be at most `trials` ({self.trials}), but got {self.starts}")
        seen = self.trials - self.window  # by the last proposal
        if self.early_stopping is not None and self.early_stopping.visible > seen:
            raise ValueError(
                f"`early_stopping` would stop nothing: it waits for {self.early_stopping.visible} complete trials, and "
                f"with `trials: {self.trials}` and `window: {self.window}` the last proposal sees {seen}; ask for more "
                "trials, lower `early_stopping.visible`, or leave `early_stopping` out"
            )
        return self

    def _suits_the_model(self) -> None:
        """Refuse what would have no effect with `two_fidelity`."""
        for name in ("starts", "explore", "prior_strength"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"`{name}` guides Optuna's samplers; `sampler: two_fidelity` decides by its model which starts to "
                    f"run, and where. Leave `{name}` out, or set `sampler` to `tpe`, `gp` or `random`"
                )
        certain = self.stop.first_to_skip(self.window) if self.stop is not None else 0
        if self.stop is not None and self.trials <= certain:
            raise ValueError(
                f"`stop` would skip nothing: with `stop.patience: {self.stop.patience}` and `window: {self.window}` "
                f"the first {certain} trials always run ({FEWEST_WITH_STOP} at least), but `trials` is {self.trials}; "
                "ask for more, lower `stop.patience` or `window` where that helps, or leave `stop` out"
            )
        if self.truncated is not None and self.truncated.trials <= self.window:
            raise ValueError(
                f"`truncated.trials` must be more than `window`, or none of them would see a result of another, but "
                f"got {self.truncated.trials} and {self.window}"
            )
