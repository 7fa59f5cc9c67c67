"""Compiled decoder layers, and models that don't say what theirs are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn

from rank_study import curve
from training_study import make_job, make_spec, tiny_llama
from understudy.errors import ModelError
from understudy.train.engine import Engine
from understudy.train.layers import compiled, decoder_layers

# peft asks transformers for an attribute by its old name; torch looks at gradients while it traces
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of torch.compile but the C++ compiler at its end, which takes a minute."""
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend="aot_eager", **options))


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.nightly  # the compiler takes its time
def test_a_compiled_trial_learns_what_it_learns_otherwise(tmp_path: Path) -> None:
    spec = make_spec(batch_size=5, learning_rate=2e-3, num_train_epochs=0.4)
    plain = Engine(make_job(tmp_path / "plain", micro_batch_size=2)).train(spec)
    torch._dynamo.utils.counters.clear()
    found = Engine(make_job(tmp_path / "compiled", micro_batch_size=2, torch_compile=True)).train(spec)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert curve(found) == pytest.approx(curve(plain), rel=1e-5)


@pytest.mark.usefixtures("without_compiler")
def test_layers_are_as_before_afterwards() -> None:
    model = tiny_llama()
    with compiled(model, wanted=False):
        assert all(layer._compiled_call_impl is None for layer in model.model.layers)
    with compiled(model, wanted=True):
        assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
        assert model._compiled_call_impl is None, "the head gets a new hook in each pass"
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


def test_layers_are_those_of_the_model() -> None:
    model = tiny_llama()
    assert decoder_layers(model, "torch_compile") == list(model.model.layers)
    with pytest.raises(ModelError, match=r"`execution.target.torch_compile` works .* but Linear doesn't say"):
        decoder_layers(nn.Linear(2, 2), "torch_compile")
