"""Real processes: 2 and 4 of them learn what one learns, whole or sharded, and leave the same weights."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import training_study
from rank_study import Case, curve, make_case, train_cases
from training_study import load_tiny, make_job, make_spec
from understudy import interruption
from understudy.store import Store
from understudy.train import launch, loop
from understudy.train.engine import Engine
from understudy.train.launch import train_alone
from understudy.train.ranks import Ranks
from understudy.trial import TrialRecord, trial_digest

# peft asks transformers for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

FSDP = {"strategy": "fsdp"}
SHAPES: dict[str, dict[str, Any]] = {  # what is trained; one process is the reference of each
    "lora": {},
    "full": {"method": "full", "max_grad_norm": 1e9},  # never clipped, the others are
    "few": {"method": "full", "batch_size": 3},  # of four ranks, one has no row
    "nf4": {"quantization": "nf4"},
    "from 16 bits": {"method": "full", "in_16_bits": True},
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # shape, and how several processes train it
    **{f"ddp {shape}": (shape, {}) for shape in SHAPES},
    **{f"fsdp {shape}": (shape, FSDP) for shape in SHAPES},
    "offload lora": ("lora", {**FSDP, "cpu_offload": True}),
    "offload full": ("full", {**FSDP, "cpu_offload": True}),
    "checkpointing lora": ("lora", {**FSDP, "gradient_checkpointing": True}),
    "checkpointing nf4": ("nf4", {**FSDP, "gradient_checkpointing": True}),
    "padding-free lora": ("lora", {**FSDP, "padding_free": True, "micro_batch_size": 4}),
}
IN_FOUR = ("ddp lora", "ddp few", "fsdp lora", "fsdp full", "fsdp few", "fsdp nf4")
# Against whole copies on as many processes: LLM.int8() rounds, and so does bfloat16, differently with other sums.
ROUNDED: dict[str, tuple[Any, dict[str, Any]]] = {"int8": ("int8", {}), "bfloat16": ("none", {"dtype": "bfloat16"})}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Case]:
    """One process's trials, trained."""
    cases = {shape: make_case(root / "one" / shape, **values) for shape, values in SHAPES.items()}
    for spec, job in cases.values():
        Engine(job).train(spec)
    return cases


@pytest.fixture(scope="module", params=[2, 4])
def trained(request: pytest.FixtureRequest, root: Path) -> tuple[int, dict[str, Case], dict[str, Any]]:
    """So many processes' trials, and what came of them."""
    number: int = request.param
    ways = WAYS if number == 2 else {name: WAYS[name] for name in IN_FOUR}
    folder = root / str(number)
    cases = {name: make_case(folder / name, how=how, **SHAPES[shape]) for name, (shape, how) in ways.items()}
    if number == 2:
        for name, (base, how) in ROUNDED.items():
            for way in ("ddp", "fsdp"):
                cases[f"{way} {name}"] = make_case(folder / way / name, base, {**how, "strategy": way})
    return number, cases, train_cases(cases, number, root / f"start{number}")


def record_of(case: Case) -> TrialRecord:
    spec, job = case
    found = Store(job.store).find(trial_digest(spec, job.inputs))
    assert found is not None
    return found


def weights_of(case: Case) -> dict[str, torch.Tensor]:
    spec, job = case
    folder = Store(job.store).adapter(trial_digest(spec, job.inputs))
    (file,) = folder.glob("*.safetensors")
    return dict(load_file(file))


def test_many_processes_learn_what_one_learns(alone: dict[str, Case], trained: Any) -> None:
    """Rows, batches and validation examples are shared unevenly; sums are exact all the same."""
    _, cases, records = trained
    for name, (shape, _) in WAYS.items():
        if name in cases:
            expected, record = record_of(alone[shape]), records[name]
            assert record.result.status == "complete", (name, record.result.message)
            assert curve(record) == pytest.approx(curve(expected), rel=1e-5), name
            assert record.result.metrics == pytest.approx(expected.result.metrics, rel=1e-5), name
            assert record.result.cost.tokens == expected.result.cost.tokens


def test_what_is_saved_is_what_one_process_saves(alone: dict[str, Case], trained: Any) -> None:
    _, cases, _ = trained
    for name, (shape, _) in WAYS.items():
        if name in cases:
            expected, found = weights_of(alone[shape]), weights_of(cases[name])
            assert found.keys() == expected.keys(), name
            for key, weight in found.items():
                torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")


def test_peft_and_transformers_load_what_was_sharded(trained: Any) -> None:
    _, cases, records = trained
    ids = torch.arange(2, 12).unsqueeze(0)
    for name in ("fsdp lora", "fsdp full"):
        spec, job = cases[name]
        folder = Store(job.store).adapter(records[name].result.digest)
        with torch.no_grad():
            if spec.method == "lora":
                base = load_tiny(job)
                before = base(input_ids=ids).logits
                model = PeftModel.from_pretrained(base, folder)
            else:
                before = load_tiny(job)(input_ids=ids).logits
                model = AutoModelForCausalLM.from_pretrained(folder)
                assert type(model).__name__ == "LlamaForCausalLM"
            assert not torch.allclose(model(input_ids=ids).logits, before)


def test_shards_are_shares(trained: Any) -> None:
    number, _, records = trained
    told = records["shares"]
    assert sum(share["model"] for share in told) == told[0]["whole"]
    for share in told:
        assert share["moments"] == share["model"]
        assert share["model"] == pytest.approx(told[0]["whole"] / number, rel=0.01)


def test_what_rounds_is_as_with_whole_copies(trained: Any) -> None:
    _, _, records = trained
    for name in ROUNDED:
        if f"fsdp {name}" in records:
            whole, sharded = (curve(records[f"{way} {name}"]) for way in ("ddp", "fsdp"))
            assert sharded == pytest.approx(whole, rel=5e-3 if name == "bfloat16" else 1e-4)


@pytest.fixture
def one_of_one(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group(
        "gloo" if training_study.DEVICE == "cpu" else "nccl", rank=0, world_size=1, store=store
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.usefixtures("one_of_one")
def test_a_sharded_model_runs_its_layers_again_to_go_back(method: str, tmp_path: Path) -> None:
    """With activation checkpointing, which the numbers don't show."""
    calls: dict[bool, int] = {}
    for recomputing in (False, True):
        how = {**FSDP, "gradient_checkpointing": recomputing}
        spec, job = make_case(tmp_path / str(recomputing), how=how, method=method)
        seen: list[int] = []
        with layers_counted(seen):
            Engine(job, Ranks()).train(spec)
        calls[recomputing] = len(seen)
    with layers_counted(evaluated := list[int]()):
        spec, job = make_case(tmp_path / "evaluated", how=FSDP, method=method)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Training, "_backward", lambda *_: None)
            Engine(job, Ranks()).train(spec)
    trained = calls[False] - len(evaluated)
    assert trained > 0
    assert calls[True] == calls[False] + trained


@contextmanager
def layers_counted(calls: list[int]) -> Iterator[None]:
    """Count what the decoder's layers compute, their first computations and later ones."""
    original = LlamaMLP.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", counted)
        yield


def asks_to_stop(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """Let a signal come when training calls one of its functions for the `count`-th time."""
    original, seen = getattr(loop, name), itertools.count(1)

    def counted(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named)
        if next(seen) == count:
            monkeypatch.setattr(interruption, "asked", lambda: signal.SIGTERM)
        return found

    monkeypatch.setattr(loop, name, counted)


@pytest.mark.parametrize(
    ("moment", "how"),
    [
        (("score", 1), {"dtype": "bfloat16"}),  # saved after an evaluation
        (("completion_tokens", 7), {"padding_free": True, "micro_batch_size": 4}),  # resumed after two passes
    ],
    ids=["an evaluation", "padding-free"],
)
@pytest.mark.usefixtures("one_of_one")
def test_a_sharded_model_goes_on_where_it_was(
    moment: tuple[str, int], how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes without a backward one leave what FSDP gathered for them behind, as no step does."""
    same = {"method": "full", "num_train_epochs": 3, "batch_size": 5}
    cases = [make_case(tmp_path / name, how={**FSDP, **how}, **same) for name in ("whole", "cut")]
    whole, cut = (Engine(job, Ranks()) for _, job in cases)
    expected = whole.train(cases[0][0])
    with monkeypatch.context() as patch:
        asks_to_stop(patch, *moment)
        with pytest.raises(interruption.InterruptionError, match="the checkpoint is kept"):
            cut.train(cases[1][0])
    (saved,) = cases[1][1].store.glob("*/checkpoint/step-*/rank-0.pt")
    weights = torch.load(saved, map_location="cpu")["state"]["weights"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    resumed = Engine(cases[1][1], Ranks()).train(cases[1][0])
    assert curve(resumed) == curve(expected)


def test_a_sharded_trial_ends_when_memory_runs_out_on_one_rank(tmp_path: Path, monkeypatch: Any) -> None:
    """Only rank 1 runs out of memory; rank 0 waits for it in a collective."""
    monkeypatch.setattr(launch, "run_rank", training_study.run_rank_short_of_memory)
    job = make_job(tmp_path, processes=2, micro_batch_size=4096, pass_tokens=10**9, strategy="fsdp")
    result = train_alone(make_spec(batch_size=1024, num_train_epochs=21), job).result
    assert (result.status, result.objective) == ("out_of_memory", None)
    assert result.message is not None
    assert result.message.startswith("memory ran out")
