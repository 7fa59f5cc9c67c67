"""Trials of a pack that wait at a rung for a score from elsewhere."""

from __future__ import annotations

import pytest

from packed_study import Outcome, make_pack
from training_study import make_spec, tiny_llama
from understudy.errors import UnderstudyError
from understudy.train.packed.base import read_base
from understudy.trial import Halving

RUNGS = (0.25, 0.5)
SPECS = tuple(
    make_spec(f"r{number:04d}", learning_rate=rate, batch_size=8 - number, lora_r=1 + number, warmup_ratio=0.0)
    for number, rate in enumerate((1e-4, 3e-2))
)


def test_nobody_waits_for_ever() -> None:
    bracket = ("r0000", "r0001", "elsewhere")
    halving = Halving(rungs=RUNGS, reduction_factor=3, metric="eval_loss", brackets=(bracket,))
    pack = make_pack(SPECS, read_base(tiny_llama(), dense=True), {}, halving=halving)
    with pytest.raises(UnderstudyError, match="r0000, r0001 wait at a rung"):
        pack.run()


def test_who_waits_goes_on_when_the_last_score_comes_from_elsewhere() -> None:
    bracket, outcomes = ("r0000", "r0001", "elsewhere"), dict[str, Outcome]()
    halving = Halving(rungs=RUNGS, reduction_factor=3, metric="eval_loss", brackets=(bracket,))
    pack = make_pack(SPECS, read_base(tiny_llama(), dense=True), outcomes, halving=halving)

    def tell() -> None:
        if len(pack.paused) == 2:
            for rung in range(len(RUNGS)):
                pack.rungs.brackets.report("elsewhere", rung, None)

    pack.run(tell)
    assert sorted(outcome.status for outcome in outcomes.values()) == ["complete", "stopped"]
