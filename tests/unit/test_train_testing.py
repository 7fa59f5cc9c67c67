"""The final test and the decoding search, on trained tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import EXECUTION, card, configs, llama_config, save
from training_study import execution, make_job, make_spec, write_split
from understudy.data.encoding import encode_prompt
from understudy.errors import CorruptFileError, ModelError
from understudy.models.loading import load_base, load_tokenizer
from understudy.settings import DecodeSettings
from understudy.store import Store
from understudy.train import decoding, testing
from understudy.train.engine import Engine
from understudy.train.testing import LookLog, Trained
from understudy.train.trained import trained_models
from understudy.trial import ResolvedExecution, TrialRecord


@pytest.fixture(scope="module")
def finalists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, list[TrialRecord], Path]:
    """Two finalists in the store, one of LoRA and one of full fine-tuning, and a test split."""
    root = tmp_path_factory.mktemp("finalists")
    job = make_job(root)
    records = [
        Engine(job).train(make_spec(id=f"f{number}s0", stage="finalist", method=method))
        for number, method in enumerate(("lora", "full"))
    ]
    write_split(root / "test.parquet", 24, 3)
    trained = Trained(
        digests=tuple(record.result.digest for record in records),
        card=job.inputs.model,
        execution=execution(),
        store=Store(job.store),
        max_length=job.inputs.data.max_length,
    )
    return trained, records, root


def test_stored_models_have_the_losses_that_they_were_trained_to(
    finalists: tuple[Trained, list[TrialRecord], Path],
) -> None:
    trained, records, root = finalists
    found = trained.losses(root / "validation.parquet", None)
    for record in records:
        mean = sum(found.by_digest[record.result.digest]) / sum(found.tokens)
        assert mean == pytest.approx(record.result.objective, rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "device", "rows"), [("fsdp", "cuda", 1), ("ddp", "cuda", 64), ("fsdp", "cpu", 64)]
)
def test_what_fills_its_gpus_is_asked_row_by_row(
    finalists: tuple[Trained, list[TrialRecord], Path],
    strategy: str,
    device: str,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that was sharded is whole for the test, and rows were counted beside a share of it."""
    trained, _, root = finalists
    asked: list[int] = []

    def losses(_model: Any, examples: Any, _pad: int, how: ResolvedExecution) -> tuple[list[float], list[int]]:
        asked.append(how.micro_batch_size)
        return [0.0] * len(examples), [1] * len(examples)

    monkeypatch.setattr(testing, "trained_models", lambda *_: iter("ab"))
    monkeypatch.setattr(testing, "completion_losses", losses)
    how = trained.execution.model_copy(update={"strategy": strategy, "device": device})
    replace(trained, execution=how).losses(root / "validation.parquet", None)
    assert asked == [rows, rows]


def test_the_test_split_is_read_once_per_question_and_every_question_counts(
    finalists: tuple[Trained, list[TrialRecord], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, _, root = finalists
    split, reads = root / "test.parquet", []
    measure = Trained.losses
    monkeypatch.setattr(Trained, "losses", lambda self, *what: reads.append(what) or measure(self, *what))

    log = LookLog(trained)
    assert log.looks() == 0
    first = log.losses(split, "sha", None)
    assert log.losses(split, "sha", None) == first
    assert (log.looks(), len(reads)) == (1, 1)

    alone = LookLog(replace(trained, digests=trained.digests[:1]))
    assert alone.losses(split, "sha", None).by_digest.keys() == {trained.digests[0]}
    log.losses(split, "another sha", None)
    log.losses(split, "sha", 8)
    assert (log.looks(), len(reads)) == (4, 4)


def test_an_evaluation_that_was_killed_and_repeated_is_one_look(
    finalists: tuple[Trained, list[TrialRecord], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, _, root = finalists
    log, calls = LookLog(replace(trained, store=Store(tmp_path))), []
    measured = trained.losses(root / "test.parquet", None)

    def killed_at_first(_: Trained, *what: Any) -> Any:
        calls.append(what)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return measured

    monkeypatch.setattr(Trained, "losses", killed_at_first)
    with pytest.raises(KeyboardInterrupt):
        log.losses(root / "test.parquet", "sha", None)
    assert log.looks() == 1
    assert log.losses(root / "test.parquet", "sha", None) == measured
    assert (log.looks(), len(calls)) == (1, 2)


def test_a_batch_of_prompts_is_completed_as_each_alone(finalists: tuple[Trained, list[TrialRecord], Path]) -> None:
    trained, _, _ = finalists
    tokenizer = load_tokenizer(trained.card)
    model = load_base(trained.card, trained.execution, "lora").eval()
    prompts = [encode_prompt(text, False, tokenizer, 64) for text in ("open the: ", "of: ", "list of names path: ")]
    greedy = decoding.configuration(1, 0)
    together = decoding.complete(model, tokenizer, prompts, greedy, 12, trained.execution)
    for prompt, completion in zip(prompts, together, strict=True):
        tokens = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                tokens.pop()
                break
        assert completion == tokens[len(prompt) :]


def test_weights_that_are_gone_are_named(finalists: tuple[Trained, list[TrialRecord], Path], tmp_path: Path) -> None:
    trained, _, _ = finalists
    with pytest.raises(CorruptFileError, match=r"trained weights .*nowhere are gone; run the workflow again"):
        next(trained_models(trained.card, trained.execution, [tmp_path / "nowhere"]))


def test_the_decoding_search_is_sorted_reproducible_and_prefix_stable(
    finalists: tuple[Trained, list[TrialRecord], Path],
) -> None:
    trained, _, _ = finalists
    tokenizer = load_tokenizer(trained.card)
    model = next(trained_models(trained.card, trained.execution, [trained.store.adapter(trained.digests[0])]))
    prompts = [encode_prompt(text, False, tokenizer, 64) for text in ("open the: ", "list of names: ")]

    def search(trials: int) -> dict[str, tuple[float, dict[str, Any]]]:
        settings = DecodeSettings(trials=trials, max_new_tokens=8)
        found = decoding.search(model, tokenizer, prompts, ["the open", "a list"], settings, trained.execution, seed=5)
        assert [trial.chrf for trial in found] == sorted((trial.chrf for trial in found), reverse=True)
        return {trial.id: (trial.chrf, trial.generation) for trial in found}

    four = search(4)
    assert search(4) == four
    assert search(3).items() <= four.items()
    assert any(generation["do_sample"] for _, generation in four.values())


def test_prompts_leave_room_for_completions_where_positions_are_learnt(tmp_path: Path) -> None:
    """A GPT-2 with 64 positions; with one token more it would fail."""
    folder = save(tmp_path, configs()["gpt2"])
    model = load_base(card(folder), EXECUTION, "lora").eval()
    tokenizer = load_tokenizer(card(folder))
    room = decoding.room(model, 64, 16)
    assert room == 48
    prompts = [encode_prompt("open the " * 40, False, tokenizer, room)]
    settings = DecodeSettings(trials=2, max_new_tokens=16)
    assert len(decoding.search(model, tokenizer, prompts, ["x"], settings, EXECUTION, seed=5)) == 2
    with pytest.raises(ModelError, match="64 positions for a prompt and its completion together; lower it"):
        decoding.room(model, 64, 64)
    llama = load_base(card(save(tmp_path / "llama", llama_config())), EXECUTION, "lora")
    assert decoding.room(llama, 64, 64) == 64


@pytest.mark.parametrize(
    ("said", "reference", "judged"),
    [
        ("<think>\n\n</think>\n\nyes", "yes", "yes"),
        ("so it is.</think>yes ", "yes", "yes"),
        ("<think>2</think>yes", "<think>1</think>yes", "<think>2</think>yes"),
        (" yes", "yes", "yes"),
    ],
)
def test_thoughts_are_judged_where_the_reference_has_some(said: str, reference: str, judged: str) -> None:
    assert decoding._answer(said, reference) == judged


def test_completions_are_computed_in_the_type_that_trials_were(
    finalists: tuple[Trained, list[TrialRecord], Path],
) -> None:
    """Weights of full fine-tuning are float32; FlashAttention takes nothing but what they are computed in."""
    trained, _, _ = finalists
    how = trained.execution.model_copy(update={"dtype": "bfloat16"})
    model = next(trained_models(trained.card, how, [trained.store.adapter(trained.digests[1])]))
    types = set()

    def look(_: Any, __: Any, output: torch.Tensor) -> None:
        types.add(output.dtype)

    model.get_submodule("model.layers.0.self_attn.q_proj").register_forward_hook(look)
    decoding.complete(model, load_tokenizer(trained.card), [[5, 6]], decoding.configuration(1, 0), 2, how)
    assert types == {torch.bfloat16}
