"""Packs of tiny trials, trained without files: what the tests of packed trials have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from training_study import PAD, make_spec, random_examples, tiny_llama
from understudy.train.history import History
from understudy.train.loop import Examples
from understudy.train.packed import adapters
from understudy.train.packed.base import Base, read_base
from understudy.train.packed.halving import Brackets
from understudy.train.packed.layout import Layout
from understudy.train.packed.pack import Pack
from understudy.train.packed.rows import Corpus
from understudy.train.packed.trials import Orders, Trial
from understudy.trial import Halving, Packing, PackResults, Status, TrialSpec

EXAMPLES = Examples(random_examples(26, seed=1), random_examples(9, seed=2), PAD)
ALL_TOKENS = 10**6  # so that no batch is cut into pieces

# Every rank, schedule and so on differs; each line changes what the lines above it don't.
VARIED: Sequence[Mapping[str, Any]] = (
    {"lora_r": 1, "lr_scheduler_type": "constant", "batch_size": 1, "num_train_epochs": 0.3, "max_grad_norm": 1e3},
    {
        "lora_r": 2,
        "lr_scheduler_type": "constant_with_warmup",
        "batch_size": 2,
        "num_train_epochs": 0.4,
        "max_grad_norm": 0.05,
        "seed": 11,
    },
    {
        "lora_r": 4,
        "lr_scheduler_type": "linear",
        "batch_size": 3,
        "num_train_epochs": 0.6,
        "label_smoothing_factor": 0.2,
        "use_rslora": True,
    },
    {"lora_r": 32, "lr_scheduler_type": "cosine", "batch_size": 16, "lora_alpha": 64, "num_train_epochs": 3},
    {"lora_r": 5, "lr_scheduler_type": "inverse_sqrt", "batch_size": 8, "adam_beta1": 0.5, "adam_beta2": 0.9},
    {"lora_r": 16, "lr_scheduler_type": "polynomial", "batch_size": 5, "lora_target_modules": "k_proj,down_proj"},
    {"lora_r": 7, "lr_scheduler_type": "cosine", "label_smoothing_factor": 0.9, "adam_beta1": 0.0, "seed": 3},
    {"lora_r": 3, "batch_size": 4, "num_train_epochs": 1.2, "fidelity": 0.6, "learning_rate": 5e-2},
    {
        "lora_r": 8,
        "batch_size": 12,
        "num_train_epochs": 1.5,
        "weight_decay": 0.0,
        "lora_target_modules": "q_proj,v_proj",
    },
    {"lora_r": 4, "batch_size": 7, "adam_epsilon": 1e-3, "warmup_ratio": 1.0, "lora_alpha": 0.5},
    {"lora_r": 6, "batch_size": 2, "num_train_epochs": 0.5, "use_rslora": True, "lora_target_modules": "o_proj"},
    {
        "lora_r": 12,
        "batch_size": 9,
        "weight_decay": 5.0,
        "warmup_ratio": 0.0,
        "lora_alpha": 100,
        "num_train_epochs": 1.5,
    },
    {"lora_r": 9, "batch_size": 6, "max_grad_norm": 0.3, "lora_target_modules": "gate_proj,up_proj,q_proj", "seed": 4},
)


def varied(**common: Any) -> list[TrialSpec]:
    """Specs in which about everything differs."""
    plain = {"learning_rate": 1e-2, "max_grad_norm": 0.7}
    return [make_spec(f"r{number:04d}", **{**plain, **values, **common}) for number, values in enumerate(VARIED)]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    status: Status
    message: str | None
    history: History
    values: Tensor | None
    layout: Layout

    @property
    def losses(self) -> list[float]:
        """Training and validation losses of the curve, in turn."""
        found = [value for point in self.history.curve for value in (point.train_loss, point.eval_loss)]
        assert None not in found
        return [value for value in found if value is not None]

    def same_bits(self, other: Outcome) -> bool:
        """Whether curve, metrics, tokens and adapter are equal to the bit."""
        assert self.values is not None
        assert other.values is not None
        return (
            self.status == other.status
            and self.history == other.history
            and torch.equal(self.values[: self.layout.size], other.values[: other.layout.size])
        )


def make_pack(
    specs: Sequence[TrialSpec],
    base: Base,
    outcomes: dict[str, Outcome],
    examples: Examples = EXAMPLES,
    slots: int = 64,
    tokens: int = ALL_TOKENS,
    halving: Halving | None = None,
    evaluations: int = 50,
    batched: bool = False,
) -> Pack:
    """A pack that hasn't begun; `outcomes` is filled as its trials end."""
    corpus, fresh = Corpus(examples.train, base.device), adapters.Fresh(base)
    orders = Orders(len(corpus))
    common = fresh.common_layout(specs) if batched else None

    def begin(spec: TrialSpec) -> Trial:
        layout = common or fresh.layout(spec)
        own = fresh.layout(spec) if batched else None
        return Trial(spec, layout, corpus, evaluations, orders, partial(fresh.weights, spec, layout), own)

    def ended(trial: Trial, status: Status, message: str | None, values: Tensor | None) -> None:
        assert trial.spec.id not in outcomes
        outcomes[trial.spec.id] = Outcome(status, message, trial.history, values, trial.layout)

    packing = Packing(trials=slots, tokens=tokens, dense=True)
    brackets = Brackets(halving) if halving is not None else None
    trials = [begin(spec) for spec in specs]
    return Pack(base, trials, examples, corpus, packing, brackets, ended, lambda _: None, batched)


def train_packed(
    specs: Sequence[TrialSpec],
    base: Base | None = None,
    after_round: Callable[[], None] = lambda: None,
    threads: int = 1,
    **changes: Any,
) -> dict[str, Outcome]:
    """Each trial's outcome by id, from one pack on a tiny Llama."""
    outcomes: dict[str, Outcome] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        make_pack(specs, base or read_base(tiny_llama(), dense=True), outcomes, **changes).run(after_round)
    finally:
        torch.set_num_threads(before)
    assert outcomes.keys() == {spec.id for spec in specs}
    return outcomes


def largest_gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def without_cost(results: PackResults, *also: str) -> str:
    """A pack's results as JSON, apart from what may differ between two runs: cost and provenance, and what is named."""
    plain = results.model_dump(mode="json")
    for record in plain["records"]:
        for name in ("cost", "provenance", *also):
            del record["result"][name]
    return json.dumps(plain, indent=1)
