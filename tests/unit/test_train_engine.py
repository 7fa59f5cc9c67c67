"""Trials and packs: the store, the shared base, failure as data, and finalists' weights in other libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from training_study import load_tiny, make_job, make_spec
from understudy import lease
from understudy.errors import ConfigError, UnderstudyError
from understudy.files import read_model, write_json
from understudy.models.loading import load_base
from understudy.settings import Quantization
from understudy.store import Store
from understudy.train.engine import Engine
from understudy.train.evaluation import completion_losses
from understudy.train.loop import train
from understudy.train.pack import train_pack
from understudy.train.trial import Job, train_trial
from understudy.trial import Pack, PackResults, TrialRecord, TrialResult, TrialSpec, trial_digest

HERE = Path(__file__).parent

# peft asks transformers for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def numbers(record: TrialRecord) -> dict[str, Any]:
    """All of a result but what it took and where."""
    return record.result.model_dump(exclude={"cost", "provenance"})


def refuse(spec: TrialSpec) -> TrialRecord:
    raise AssertionError(f"{spec.id} was trained again")


@pytest.mark.parametrize("quantization", ["none", "nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_a_trial_in_a_pack_is_the_trial_alone(tmp_path: Path, quantization: Quantization) -> None:
    """To the bit, whatever was trained on the base before it: other ranks, dropout, a divergence."""
    job = make_job(tmp_path, quantization)
    specs = (
        make_spec("r0001", lora_r=8, lora_dropout=0.2, learning_rate=3e-2),
        make_spec("r0002", learning_rate=1e30, warmup_ratio=0.0),
        make_spec("r0003", lora_r=3, lora_dropout=0.1, use_rslora=True),
    )
    before = weights(load_base(job.inputs.model, job.inputs.execution, "lora"))
    engine = Engine(job)
    packed = [engine.train(spec) for spec in specs]
    assert [record.result.status for record in packed] == ["complete", "diverged", "complete"]
    assert weights(engine.frozen_base) == before
    assert numbers(Engine(job).train(specs[2])) == numbers(packed[2])


def weights(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.contiguous().view(-1).numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_a_stored_trial_is_not_trained_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    first = train_trial(make_spec(), job, Engine(job).train)
    again = make_spec("e0004", origin="echo", parents=("t0001",))
    record = train_trial(again, job, refuse)
    assert record.spec == again
    assert record.result == first.result
    lines = [json.loads(line) for line in job.progress.read_text().splitlines()]
    assert [(line["id"], line["reused"]) for line in lines] == [("r0001", False), ("e0004", True)]


def test_a_record_that_somebody_kept_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who took this process for dead."""
    job, spec = make_job(tmp_path), make_spec()
    store, digest = Store(job.store), trial_digest(spec, job.inputs)
    theirs = TrialRecord(spec=spec, result=TrialResult(digest=digest, status="complete", objective=0.5))

    def overtaken(*arguments: Any) -> None:
        store.save(theirs)
        train(*arguments)

    monkeypatch.setattr("understudy.train.engine.train", overtaken)
    assert Engine(job).train(spec) == theirs
    assert store.find(digest) == theirs


def test_an_entry_is_held_while_its_trial_is_trained(tmp_path: Path) -> None:
    job, spec, held = make_job(tmp_path), make_spec(), []
    digest = trial_digest(spec, job.inputs)
    lock = Store(job.store).entry(digest) / ".lock"

    def trained(spec: TrialSpec) -> TrialRecord:
        held.append(lease.is_held(lock))
        return TrialRecord(spec=spec, result=TrialResult(digest=digest, status="complete", objective=0.5))

    train_trial(spec, job, trained)
    assert [*held, lease.is_held(lock)] == [True, False]


def test_another_seed_is_another_trial(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    engine = Engine(job)
    first = train_trial(make_spec(), job, engine.train)
    other = train_trial(make_spec(seed=8), job, engine.train)
    assert other.result.digest != first.result.digest
    assert other.result.objective != first.result.objective


def test_a_stored_pack_needs_no_torch(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    pack = Pack(id="random-000", specs=(make_spec("r0000"), make_spec("r0001", seed=9)))
    first = train_pack(pack, job)
    command = pack_command(tmp_path, job, pack)
    code = textwrap.dedent(
        f"""
        import sys
        from understudy.cli import main
        status = main({command!r})
        sys.exit(status or ("torch" in sys.modules) * 9)
        """
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert read_model(tmp_path / "results.json", PackResults) == first


def pack_command(root: Path, job: Job, pack: Pack) -> list[str]:
    """The command line that trains a pack, with its files written."""
    return ["train-pack", *job_words(root, job, {"specs": pack})]


def job_words(root: Path, job: Job, own: dict[str, Any]) -> list[str]:
    """The arguments of a training command: the command's own files and a job's, all of them written."""
    files = {
        **own,
        "model": job.inputs.model,
        "manifest": job.inputs.data,
        "execution": {"role": "proxy", "resolved": job.inputs.execution.model_dump()},
        "training": {"training": job.inputs.training.model_dump()},
    }
    for name, content in files.items():
        write_json(root / f"{name}.json", content)
    words = ["--output", str(root / "results.json"), "--store", str(job.store)]
    words += ["--train", str(job.train), "--validation", str(job.validation), "--progress", str(job.progress)]
    return words + [word for name in files for word in (f"--{name}", str(root / f"{name}.json"))]


def test_a_result_says_what_it_took(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    result = Engine(job).train(make_spec()).result
    assert result.digest == trial_digest(make_spec(), job.inputs)
    assert (result.status, result.message, result.steps) == ("complete", None, 6)
    assert result.objective == result.metrics["eval_loss"] == result.curve[-1].eval_loss
    assert set(result.metrics) == {"eval_loss", "eval_nats_per_byte", "eval_accuracy", "train_loss"}
    # one byte is one token, and the end of the completion one more
    bytes_per_token = 1 - 16 / evaluated_completion_tokens(job)
    assert result.metrics["eval_loss"] / result.metrics["eval_nats_per_byte"] == pytest.approx(bytes_per_token)
    evaluated = 2 * sum(len(example.input_ids) for example in Engine(job).examples.validation)
    flops = job.inputs.model.parameters * (4 * result.cost.tokens + 2 * evaluated)
    assert result.cost.flops == pytest.approx(flops)
    assert result.cost.wall_seconds > 0
    assert result.cost.gpu_seconds == 0
    assert result.cost.tokens_per_second == pytest.approx(result.cost.tokens / result.cost.wall_seconds)
    assert result.cost.mfu is None, "no peak is known of a CPU"
    assert result.cost.peak_memory_bytes > 10 * 2**20
    assert result.provenance["torch"] == torch.__version__


def evaluated_completion_tokens(job: Job) -> int:
    return sum(len(e.input_ids) - e.completion_start for e in Engine(job).examples.validation)


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_divergence_is_a_result(tmp_path: Path, when: str) -> None:
    """A rate of 1e6 on a model whose adapters can overflow; with one step only the evaluation can notice."""
    job = make_job(tmp_path, evaluations=1)
    values = {"batch_size": 48} if when == "evaluation" else {"num_train_epochs": 4}
    spec = make_spec(learning_rate=1e20, warmup_ratio=0.0, weight_decay=0.0, **values)
    result = Engine(job).train(spec).result
    assert (result.status, result.objective, result.metrics) == ("diverged", None, {})
    assert result.message is not None
    assert "loss was" in result.message
    assert ("validation" in result.message) == (when == "evaluation")
    assert Store(job.store).find(result.digest) is not None


@pytest.mark.long
def test_running_out_of_memory_is_a_result_and_the_next_trial_goes_on(tmp_path: Path) -> None:
    """A real limit on the process's memory: a batch of 2,048 examples doesn't fit, one of 4 does."""
    job = make_job(tmp_path, micro_batch_size=4096)
    code = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from pathlib import Path
        from training_study import limit_memory, make_job, make_spec
        from understudy.files import write_json
        from understudy.train.engine import Engine
        at_once = dict(micro_batch_size=4096, pass_tokens=10**9)  # a batch's examples
        engine = Engine(make_job(Path({str(tmp_path)!r}), **at_once))
        engine.train(make_spec("r0000", batch_size=4))  # all that is loaded late is loaded
        limit_memory(400)
        for number, (batch_size, epochs) in enumerate([(2048, 42), (4, 1)], start=1):
            spec = make_spec(f"r{{number:04d}}", batch_size=batch_size, num_train_epochs=epochs, seed=3)
            write_json(Path({str(tmp_path)!r}) / f"{{spec.id}}.json", engine.train(spec))
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    first, second = (read_model(tmp_path / f"r{number:04d}.json", TrialRecord).result for number in (1, 2))
    assert (first.status, first.objective) == ("out_of_memory", None)
    assert first.message == "memory ran out in step 1 of 1"
    assert second.status == "complete"
    alone = Engine(job).train(make_spec("r0002", batch_size=4, num_train_epochs=1, seed=3))
    assert second.objective == alone.result.objective


@pytest.mark.parametrize("error", [ValueError("boom"), RuntimeError("shapes cannot be multiplied")])
def test_any_other_error_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    job = make_job(tmp_path)

    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr("understudy.train.engine.train", broken)
    with pytest.raises(type(error), match=str(error)):
        train_trial(make_spec(), job, Engine(job).train)
    assert Store(job.store).find(trial_digest(make_spec(), job.inputs)) is None


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_finalists_adapter_loads_with_peft(tmp_path: Path, quantization: Quantization) -> None:
    job = make_job(tmp_path, quantization)
    engine = Engine(job)
    result = engine.train(make_spec("f0s0", stage="finalist", lora_dropout=0.2)).result
    folder = Store(job.store).adapter(result.digest)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    base = load_base(job.inputs.model, job.inputs.execution, "lora")
    model = PeftModel.from_pretrained(base, str(folder))
    assert validation_loss(model, engine) == pytest.approx(result.objective, rel=1e-6)


def test_a_fully_tuned_finalist_loads_with_transformers(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    engine = Engine(job)
    spec = make_spec("f0s0", "full", stage="finalist", learning_rate=1e-3)
    result = engine.train(spec).result
    folder = Store(job.store).adapter(result.digest)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert validation_loss(model, engine) == pytest.approx(result.objective, rel=1e-6)
    assert validation_loss(load_tiny(job), engine) != pytest.approx(result.objective, rel=1e-3)
    assert (folder / "tokenizer.json").exists()
    # the base on disk and the next trial's copy are untouched
    assert engine.train(spec).result.objective == result.objective
    assert result.cost.flops > Engine(job).train(make_spec()).result.cost.flops


def validation_loss(model: Any, engine: Engine) -> float:
    examples = engine.examples
    losses, tokens = completion_losses(model, examples.validation, examples.pad_token_id, engine.execution)
    return sum(losses) / sum(tokens)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_bfloat16_learns_about_the_same(tmp_path: Path, quantization: Quantization) -> None:
    spec = make_spec(num_train_epochs=3, learning_rate=1e-2)
    exact = Engine(make_job(tmp_path / "exact", quantization)).train(spec).result.objective
    coarse = Engine(make_job(tmp_path / "coarse", quantization, dtype="bfloat16")).train(spec).result.objective
    assert coarse == pytest.approx(exact, rel=0.05)
    assert coarse != pytest.approx(exact, rel=1e-7)


def test_unknown_target_modules_are_the_users_mistake(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    with pytest.raises(ConfigError, match=r"lora_target_modules: .* named query; its linear layers are .*q_proj"):
        Engine(job).train(make_spec(lora_target_modules="q_proj,query"))


def test_results_carry_nothing_infinite(tmp_path: Path) -> None:
    """JSON has no NaN: a result that was written can be read."""
    job = make_job(tmp_path)
    record = Engine(job).train(make_spec(learning_rate=1e30, warmup_ratio=0.0))
    assert TrialResult.model_validate_json(record.result.model_dump_json()) == record.result


def test_an_adapter_that_memory_was_short_for_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of putting it on; the next trial is what it would be alone."""
    from peft.tuners.lora import LoraLayer

    engine, calls = Engine(make_job(tmp_path)), []
    update = LoraLayer.update_layer

    def short(self: Any, *arguments: Any, **named: Any) -> None:
        calls.append(self)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        update(self, *arguments, **named)

    before = weights(engine.frozen_base)
    with monkeypatch.context() as patch:
        patch.setattr(LoraLayer, "update_layer", short)
        lost = engine.train(make_spec("r0000", lora_r=64))
    assert lost.result.status == "out_of_memory"
    assert str(lost.result.message).startswith("memory ran out while the trial was set up: CUDA out of memory")
    assert weights(engine.frozen_base) == before
    spec = make_spec("r0001", lora_target_modules="q_proj,v_proj")
    alone = Engine(make_job(tmp_path / "alone")).train(spec)
    assert numbers(engine.train(spec)) == numbers(alone)


def test_weights_that_memory_is_short_for_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is through; another try saves them."""
    spec, job = make_spec(id="f1s0", stage="finalist"), make_job(tmp_path)

    def short(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_save_weights", short)
        with pytest.raises(UnderstudyError, match=r"weights of f1s0 were saved \(MemoryError\); start again"):
            Engine(job).train(spec)
    digest = trial_digest(spec, job.inputs)
    assert Store(job.store).find(digest) is None
    assert Engine(job).train(spec).result.status == "complete"
