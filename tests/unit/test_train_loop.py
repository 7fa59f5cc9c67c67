"""The trainer against a plain loop over transformers' model, peft, torch's AdamW and transformers' schedules."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from reference_loop import reference_losses, with_adapter
from training_study import EOS, PAD, VOCABULARY, execution, make_spec, random_examples, tiny_llama
from understudy.hyperparameters import SCHEDULES
from understudy.settings import TrainingSettings
from understudy.train.adapters import trainable
from understudy.train.history import History
from understudy.train.loop import DivergedError, Examples, train
from understudy.train.ranks import Ranks
from understudy.trial import TrialSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

EXAMPLES = Examples(random_examples(26, seed=1), random_examples(9, seed=2), PAD)
EVERYTHING = {
    "learning_rate": 2e-2,
    "batch_size": 6,
    "num_train_epochs": 2,
    "weight_decay": 0.5,
    "warmup_ratio": 0.3,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 0.5,
    "adam_beta1": 0.85,
    "adam_beta2": 0.97,
    "adam_epsilon": 1e-6,
    "label_smoothing_factor": 0.1,
}


def run(spec: TrialSpec, evaluations: int = 9, base: Any = None, **changes: Any) -> History:
    """Train on a fresh tiny model and return what happened."""
    settings, history = TrainingSettings(evaluations=evaluations), History()
    with trainable(base or tiny_llama(), spec, execution(**changes)) as model:
        train(model, spec, EXAMPLES, execution(**changes), settings, Ranks(), history)
    return history


def losses(history: History) -> list[float]:
    found = [value for point in history.curve for value in (point.train_loss, point.eval_loss)]
    assert None not in found
    return found


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("lora", EVERYTHING),
        ("lora", {**EVERYTHING, "use_rslora": True}),
        ("full", {**EVERYTHING, "learning_rate": 2e-3}),
    ],
)
def test_loss_curve_is_that_of_a_plain_loop(method: Any, values: dict[str, Any]) -> None:
    spec = make_spec(method=method, **values)
    history = run(spec)
    assert history.steps == 9
    model = with_adapter(tiny_llama(), spec)
    expected = reference_losses(model, spec, EXAMPLES.train, EXAMPLES.validation, 9)
    assert losses(history) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_all_warm_up(name: str) -> None:
    history = run(make_spec(lr_scheduler_type=name, warmup_ratio=1.0, batch_size=13))
    assert [point.learning_rate for point in history.curve] == pytest.approx(
        [5e-3, 5e-3] if name == "constant" else [0.0, 2.5e-3]
    )


def test_the_loss_falls() -> None:
    found = losses(run(make_spec(learning_rate=2e-2, num_train_epochs=6, warmup_ratio=0.1)))
    assert found[-2] < 0.8 * found[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_micro_batches_do_not_change_the_numbers(method: Any) -> None:
    spec = make_spec(method=method, **{**EVERYTHING, "learning_rate": 2e-3})
    whole = losses(run(spec))
    for rows in (1, 4):
        assert losses(run(spec, micro_batch_size=rows)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"micro_batch_size": 4}])
def test_rows_without_padding_do_not_change_the_numbers(changes: dict[str, Any]) -> None:
    spec = make_spec(**EVERYTHING)
    padded, free = run(spec), run(spec, padding_free=True, **changes)
    assert losses(free) == pytest.approx(losses(padded), rel=1e-5)
    assert free.tokens == padded.tokens


def test_gradient_checkpointing_does_not_change_the_numbers() -> None:
    base, spec = tiny_llama(), make_spec(**EVERYTHING, lora_dropout=0.2)
    plain = losses(run(spec))
    calls = count_calls(base.model.layers[0])
    assert losses(run(spec, base=base, gradient_checkpointing=True)) == pytest.approx(plain, rel=1e-5)
    assert len(calls) == 9 * 2 + 9  # each training step ran the layer a second time; evaluations once
    assert not base.is_activation_checkpointing
    assert not base.get_input_embeddings()._forward_hooks


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.self_attn.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-2),
        ("batch_size", 5),
        ("weight_decay", 0.0),
        ("warmup_ratio", 0.0),
        ("lr_scheduler_type", "linear"),
        ("max_grad_norm", 100.0),
        ("adam_beta1", 0.5),
        ("adam_beta2", 0.5),
        ("adam_epsilon", 1e-2),
        ("label_smoothing_factor", 0.0),
        ("attention_dropout", 0.3),
        ("lora_r", 5),
        ("lora_alpha", 9.0),
        ("lora_dropout", 0.3),
        ("use_rslora", True),
        ("lora_target_modules", "q_proj,v_proj"),
    ],
)
def test_every_hyperparameter_matters(name: str, value: Any) -> None:
    spec = make_spec(**EVERYTHING)
    changed = spec.model_copy(update={"hyperparameters": {**spec.hyperparameters, name: value}})
    assert losses(run(changed, evaluations=1)) != pytest.approx(losses(run(spec, evaluations=1)), rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_attention_dropout_is_the_hyperparameters_and_not_the_checkpoints(method: Any) -> None:
    values = {**EVERYTHING, "learning_rate": 2e-3}
    without, some = (make_spec(method=method, **values, attention_dropout=rate) for rate in (0.0, 0.3))
    plain, dropped = losses(run(without)), losses(run(some))
    assert losses(run(without, base=tiny_llama(attention_dropout=0.1))) == plain
    assert losses(run(some, base=tiny_llama(attention_dropout=0.1))) == dropped
    assert dropped != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("changes", [{"num_train_epochs": 1}, {"fidelity": 0.5}])
def test_epochs_and_fidelity_shorten_the_run(changes: dict[str, Any]) -> None:
    assert run(make_spec(**{**EVERYTHING, **changes}), evaluations=1).steps in (4, 5)


def test_the_seed_fixes_everything_whatever_was_drawn_before() -> None:
    spec = make_spec(**EVERYTHING, lora_dropout=0.3)
    first = losses(run(spec))
    torch.manual_seed(99)
    torch.rand(5)
    assert losses(run(spec)) == first
    assert losses(run(spec.model_copy(update={"seed": 8}))) != first


def test_the_seed_fixes_the_bases_own_dropout() -> None:
    def trained_after(draws: int) -> list[float]:
        torch.manual_seed(0)
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
        base = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=EOS, eos_token_id=EOS))  # drops a tenth
        torch.rand(draws)
        return losses(run(make_spec(method="full", learning_rate=1e-3), base=base, evaluations=1))

    assert trained_after(5) == trained_after(0)


def test_the_base_comes_back_to_the_bit() -> None:
    base = tiny_llama()
    before = copy.deepcopy(base.state_dict())
    names = [type(module).__name__ for module in base.modules()]
    spec = make_spec(**EVERYTHING, lora_dropout=0.3)
    first = losses(run(spec, base=base))
    assert [type(module).__name__ for module in base.modules()] == names
    assert before.keys() == base.state_dict().keys()
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    run(make_spec(lora_r=2, learning_rate=1.0), base=base)
    assert losses(run(spec, base=base)) == first


def test_history_counts_tokens() -> None:
    history = run(make_spec(batch_size=13, num_train_epochs=1), evaluations=2)
    assert history.steps == 2
    assert history.tokens == sum(len(example.input_ids) for example in EXAMPLES.train)
    assert history.completion_tokens == sum(len(e.input_ids) - e.completion_start for e in EXAMPLES.train)
    assert history.evaluated_tokens == 2 * sum(len(example.input_ids) for example in EXAMPLES.validation)
    assert [point.step for point in history.curve] == [1, 2]
    assert history.curve[-1].tokens == history.completion_tokens
    bytes_ = sum(example.completion_bytes for example in EXAMPLES.validation)
    tokens = sum(len(e.input_ids) - e.completion_start for e in EXAMPLES.validation)
    per_byte = history.metrics["eval_loss"] * tokens / bytes_
    assert history.metrics["eval_nats_per_byte"] == pytest.approx(per_byte)


def test_an_infinite_rate_diverges_at_once_and_keeps_the_finite_curve() -> None:
    history = History()
    spec, settings = (
        make_spec(learning_rate=1e30, warmup_ratio=0.0, num_train_epochs=4),
        TrainingSettings(evaluations=13),
    )
    with (
        trainable(tiny_llama(), spec, execution()) as model,
        pytest.raises(DivergedError, match=r"in step|after step"),
    ):
        train(model, spec, EXAMPLES, execution(), settings, Ranks(), history)
    assert history.steps < 5
    assert all(math.isfinite(value) for value in losses(history))
