"""The spec of a finalist's repeat. Nothing in this module imports torch."""

from __future__ import annotations

from understudy.artifacts import Selection
from understudy.errors import UserError
from understudy.trial import TrialSpec, finalist_seed


def finalist_spec(selection: Selection, rank: int, study_seed: int, seed_index: int) -> TrialSpec:
    """The configuration of finalist `rank` with its repeat's fresh seed.

    Whether it is LoRA or full fine-tuning shows in the hyperparameters: only LoRA has a rank. Raises `UserError`
    where nobody has this rank.
    """
    by_rank = {finalist.rank: finalist for finalist in selection.finalists}
    if rank not in by_rank:
        ranks = ", ".join(str(number) for number in sorted(by_rank))
        raise UserError(f"there is no finalist {rank}; the selection has {ranks}. Give one of these as --rank")
    finalist = by_rank[rank]
    return TrialSpec.model_validate(
        {
            "id": f"f{rank}s{seed_index}",
            "stage": "finalist",
            "origin": finalist.origin,
            "hyperparameters": finalist.hyperparameters,
            "method": "lora" if "lora_r" in finalist.hyperparameters else "full",
            "seed": finalist_seed(study_seed, seed_index),
            "parents": () if finalist.trial is None else (finalist.trial,),
        }
    )
