"""A step of a pack asks for no number that it has computed: on a GPU the host would wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packed_study import make_pack, varied
from training_study import tiny_llama
from understudy.train.packed.base import read_base
from understudy.train.packed.trials import choose

# Operators whose result, or whose result's shape, the host has to know.
WAITING = {
    "aten::_local_scalar_dense",  # item, tolist, bool, float
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
}


class Waits(TorchDispatchMode):
    """Collects what waits. On CPUs `tolist` and `numpy` read memory without an operator, so they are replaced."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        for name in ("tolist", "numpy"):
            patch.setattr(torch.Tensor, name, self._noted(name, getattr(torch.Tensor, name)))

    def _noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.found.append(name)
            return method(*args, **kwargs)

        return noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name.startswith("aten::index") and any(_is_mask(value) for value in args)
        sized = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or by_mask or sized:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _is_mask(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: x.repeat_interleave(x.long() + 1),
    ],
)
def test_what_waits_is_seen(waiting: Callable[[torch.Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with Waits(monkeypatch) as waits:
        waiting(torch.arange(4.0))
    assert waits.found


def test_a_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = make_pack(varied(lora_dropout=0.1), read_base(tiny_llama(), dense=True), {}, batched=True)
    with torch.no_grad():
        pack._round()
        chosen = choose(list(pack.active.values()), pack.tokens)
        assert len(chosen) == len(varied())
        with Waits(monkeypatch) as waits:
            pack._step(chosen)
    assert waits.found == []
