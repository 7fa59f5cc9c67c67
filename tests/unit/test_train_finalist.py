"""Finalists: the same configuration with fresh seeds, whose weights are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from test_train_engine import job_words, numbers, refuse
from training_study import make_job, make_spec
from understudy import checksums
from understudy.artifacts import Finalist, Selection
from understudy.cli import main
from understudy.errors import UserError
from understudy.files import read_model
from understudy.sections import FinalistSection
from understudy.store import Store
from understudy.train.engine import Engine
from understudy.train.finalist import finalist_spec
from understudy.train.trial import train_trial
from understudy.trial import TrialRecord, finalist_seed

# peft asks transformers for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def test_only_finalists_keep_weights(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    result = Engine(job).train(make_spec(stage="target")).result
    assert not Store(job.store).adapter(result.digest).exists()


@pytest.mark.parametrize("altered", [False, True], ids=["gone", "altered"])
def test_a_finalist_without_its_adapter_is_trained_again(altered: bool, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    spec, engine = make_spec("f1s0", stage="finalist"), Engine(job)
    first = train_trial(spec, job, engine.train)
    folder = Store(job.store).adapter(first.result.digest)
    train_trial(spec, job, refuse)
    if altered:
        weights = folder / "adapter_model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        shutil.rmtree(folder)
    assert numbers(train_trial(spec, job, engine.train)) == numbers(first)
    assert folder.is_dir()
    assert checksums.altered(folder) == []


def test_a_diverged_finalist_has_no_adapter_and_is_not_trained_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    spec = make_spec("f1s0", stage="finalist", learning_rate=1e30, warmup_ratio=0.0)
    record = train_trial(spec, job, Engine(job).train)
    assert record.result.status == "diverged"
    assert not Store(job.store).adapter(record.result.digest).exists()
    assert train_trial(spec, job, refuse) == record


def test_finalists_repeat_a_configuration_with_fresh_seeds() -> None:
    lora, full = make_spec().hyperparameters, make_spec(method="full").hyperparameters
    selection = Selection(
        finalists=(
            Finalist(rank=0, trial=None, origin="default", objective=None, hyperparameters=full),
            Finalist(rank=1, trial="t0007", origin="refined", objective=1.0, hyperparameters=lora),
        )
    )
    spec = finalist_spec(selection, 1, study_seed=5, seed_index=2)
    assert (spec.id, spec.stage, spec.origin, spec.method) == ("f1s2", "finalist", "refined", "lora")
    assert (spec.seed, spec.parents, spec.hyperparameters) == (finalist_seed(5, 2), ("t0007",), lora)
    default = finalist_spec(selection, 0, study_seed=5, seed_index=2)
    assert (default.method, default.parents, default.seed) == ("full", (), spec.seed)
    with pytest.raises(UserError, match="no finalist 2; the selection has 0, 1"):
        finalist_spec(selection, 2, study_seed=5, seed_index=0)


def test_the_finalists_command(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    finalist = Finalist(
        rank=1, trial="t0007", origin="refined", objective=1.0, hyperparameters=make_spec().hyperparameters
    )
    own = {
        "selection": Selection(finalists=(finalist,)),
        "settings": FinalistSection(seed=5, configurations=1, seeds=2),
    }
    words = ["train-finalist", *job_words(tmp_path, job, own), "--rank", "1", "--seed-index", "1"]
    assert main(words) == 0
    record = read_model(tmp_path / "results.json", TrialRecord)
    assert record.spec == finalist_spec(Selection(finalists=(finalist,)), 1, 5, 1)
    assert Store(job.store).adapter(record.result.digest).is_dir()
    assert main([*words, "--rank", "4"]) == 2
