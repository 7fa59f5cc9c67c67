"""What a pack leaves behind: records, the best trial's adapter in PEFT's format, and the trials that ran alone."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from packed_study import EXAMPLES, varied, without_cost
from reference_loop import labelled
from training_study import make_job, make_spec, tiny_llama
from understudy import devices, lease
from understudy.files import read_model, write_json
from understudy.models.loading import load_base
from understudy.store import Store
from understudy.train.engine import Engine
from understudy.train.launch import train_alone
from understudy.train.pack import train_pack
from understudy.train.packed import adapters
from understudy.train.packed import pack as loop
from understudy.train.packed.adapters import Fresh, Stack, Weights
from understudy.train.packed.base import read_base
from understudy.train.packed.decoder import Decoder
from understudy.train.packed.layout import Layout
from understudy.train.packed.rows import Corpus
from understudy.trial import Halving, Pack, PackResults, TrialSpec, trial_digest

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

SPECS = (
    make_spec("r0001", learning_rate=1e-3, lora_r=9),
    make_spec("r0002", learning_rate=2e-2, use_rslora=True, lora_target_modules="o_proj,v_proj", num_train_epochs=3),
    make_spec("r0003", learning_rate=5e-3, lora_dropout=0.1),
    make_spec("r0004", learning_rate=1e30, warmup_ratio=0.0),
)
SOLO = {
    "s0001": make_spec("s0001", attention_dropout=0.2, num_train_epochs=0.5),
    "s0002": make_spec("s0002", learning_rate=1e30, warmup_ratio=0.0, num_train_epochs=0.7),
}


UNLIKE = {"cost", "provenance"}


def test_the_same_pack_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = Pack(id="random-000", specs=(*SPECS, *varied(lora_dropout=0.1)[:4]))
    first, second = (train_pack(plan, make_job(tmp_path / name)) for name in "ab")
    assert without_cost(first) == without_cost(second)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_best_trials_adapter_is_kept_as_peft_has_it(quantization: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path, quantization)
    records = train_pack(Pack(id="random-000", specs=SPECS), job).records
    best = min((r for r in records if r.result.objective is not None), key=lambda r: r.result.objective or 0.0)
    assert best.spec.id == "r0002"
    folder = Store(job.store).adapter(best.result.digest)
    model = PeftModel.from_pretrained(load_base(job.inputs.model, job.inputs.execution, "lora"), folder).eval()
    config = model.peft_config["default"]
    assert (config.r, config.use_rslora, sorted(config.target_modules)) == (4, True, ["o_proj", "v_proj"])
    batch = labelled(Engine(job).examples.validation)
    with torch.no_grad():
        tolerance = 5e-4 if quantization == "int8" else 1e-5
        assert float(model(**batch).loss) == pytest.approx(best.result.objective, rel=tolerance)


def test_an_adapter_goes_when_a_better_one_is_there(tmp_path: Path) -> None:
    job, late = make_job(tmp_path), make_spec("r0005", learning_rate=1e-5, num_train_epochs=4)
    plan = Pack(id="random-000", specs=(*SPECS, late))
    records = {record.spec.id: record for record in train_pack(plan, job).records}
    ended = [json.loads(line)["id"] for line in job.progress.read_text().splitlines()]
    best, beaten = math.inf, []
    for id in ended:
        objective = records[id].result.objective
        if objective is not None and objective < best:
            best = objective
            beaten.append(id)
    assert len(beaten) > 1
    assert beaten[-1] == "r0002" != ended[-1]
    assert [id for id in ended if Store(job.store).adapter(records[id].result.digest).exists()] == ["r0002"]
    assert not list(job.store.glob("*/.adapter*"))
    assert all(Store(job.store).find(record.result.digest) == record for record in records.values())


def packed_logits(model: Any, spec: TrialSpec, layout: Layout, values: Tensor, examples: list[int]) -> Tensor:
    """At the positions that predict completion tokens, row by row."""
    base = read_base(model, dense=True)
    stack = Stack(1, layout.size, base.device)
    stack.put(0, layout, Weights(values, torch.zeros_like(values), torch.zeros_like(values)), spec.hyperparameters, 0)
    rows = Corpus(EXAMPLES.train, base.device).rows([(0, examples)])
    with torch.no_grad():
        hidden, tape = Decoder(base, stack, longest=40).forward(rows, None)
    assert tape is None
    return hidden[rows.answers] @ base.head.t()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3.5},
        {"lora_target_modules": "down_proj,q_proj", "lora_r": 7},
        {"lora_r": 1, "lora_dropout": 0.5},
    ],
    ids=["plain", "rslora", "subset", "rank 1"],
)
@pytest.mark.parametrize("common", [False, True], ids=["own layout", "padded rank"])
def test_peft_reads_what_is_saved(common: bool, values: Mapping[str, Any], tmp_path: Path) -> None:
    spec, examples = make_spec("x", **values), [3, 0, 11, 7]
    fresh = Fresh(read_base(tiny_llama(), dense=True))
    own = fresh.layout(spec)
    layout = fresh.common_layout([spec, make_spec("y", lora_r=13)]) if common else own
    weights = fresh.weights(spec, layout).values
    moved = random_in(own, layout, weights)
    adapters.save(fresh._base, spec, layout, moved, tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter").eval()
    batch = labelled([EXAMPLES.train[index] for index in examples])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = logits[:, :-1][batch["labels"][:, 1:] != -100]
    found = packed_logits(tiny_llama(), spec, layout, moved, examples)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert float((found - packed_logits(tiny_llama(), spec, layout, weights, examples)).abs().max()) > 0.1


def random_in(own: Layout, layout: Layout, values: Tensor) -> Tensor:
    """Random numbers where the trial's own weights lie in the layout; all else stays zero."""
    moved, generator = values.clone(), torch.Generator().manual_seed(3)
    for weights, group, sites in zip(layout.views(moved), layout.groups, layout.sites, strict=True):
        for a, b, index in zip(weights.a.chunk(max(len(sites), 1)), weights.b, sites, strict=False):
            if group.sites[index].name in own.adapted:
                for matrix in (a[: own.rank], b[: own.rank]):
                    matrix.copy_(0.2 * torch.randn(matrix.shape, generator=generator))
    return moved


@pytest.fixture(scope="module")
def with_solo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PackResults]:
    job = make_job(tmp_path_factory.mktemp("solo"))
    specs = (SOLO["s0001"], *SPECS, SOLO["s0002"])
    solo = {"s0001": "attention masks", "s0002": "some reason"}
    return job, train_pack(Pack(id="random-000", specs=specs, solo=solo), job)


def test_solo_trials_are_trained_as_those_that_are_alone(with_solo: tuple[Any, PackResults], tmp_path: Path) -> None:
    job, results = with_solo
    alone = make_job(tmp_path)
    solo = [record for record in results.records if record.spec.id in SOLO]
    assert [record.result.status for record in solo] == ["complete", "diverged"]
    for record in solo:
        expected = train_alone(record.spec, alone)
        assert record.result.model_dump(exclude=UNLIKE) == expected.result.model_dump(exclude=UNLIKE)
        assert Store(job.store).find(record.result.digest) == record
    engines = {record.spec.id: record.result.provenance["engine"] for record in results.records}
    assert engines == {record.spec.id: "trainer" if record in solo else "packed" for record in results.records}


def test_solo_trials_leave_the_others_alone(with_solo: tuple[Any, PackResults], tmp_path: Path) -> None:
    _, results = with_solo
    without = train_pack(Pack(id="random-000", specs=SPECS), make_job(tmp_path))
    packed = PackResults(id="random-000", records=tuple(r for r in results.records if r.spec.id not in SOLO))
    assert without_cost(packed) == without_cost(without)
    assert any("s0001" in note and "attention masks" in note for note in results.notes)


def test_solo_trials_are_not_trained_again(with_solo: tuple[Any, PackResults], monkeypatch: pytest.MonkeyPatch) -> None:
    job, results = with_solo
    monkeypatch.setattr(Engine, "train", lambda *_: pytest.fail("trained again"))
    plan = Pack(
        id="random-000",
        specs=tuple(record.spec for record in results.records),
        solo={"s0001": "attention masks", "s0002": "some reason"},
    )
    assert train_pack(plan, job) == results


def reshape(job: Any, **changes: Any) -> None:
    """Alter a checkpoint's config."""
    path = Path(job.inputs.model.path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("halved", [False, True])
def test_a_base_that_packs_cannot_train_on(halved: bool, tmp_path: Path) -> None:
    """Its type is known, but it computes something more: the pack's trials are trained by its own code."""
    job, alone = make_job(tmp_path / "pack"), make_job(tmp_path / "alone")
    for each in (job, alone):
        reshape(each, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    ids = tuple(spec.id for spec in SPECS[:2])
    halving = Halving(rungs=(0.3,), reduction_factor=2, metric="eval_loss", brackets=(ids,)) if halved else None
    plan = Pack(id="random-000", specs=SPECS[:2], halving=halving)
    found = train_pack(plan, job)
    for record in found.records:
        expected = train_alone(record.spec, alone)
        assert record.result.model_dump(exclude=UNLIKE) == expected.result.model_dump(exclude=UNLIKE)
    (note,) = found.notes
    assert "`rope_type: dynamic`" in note
    assert ("in spite of `proxy.halving`" in note) == halved
    assert train_pack(plan, job) == found


def test_packs_that_share_a_trial_train_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the other, the first record counts, and both report it."""
    job, step, others = make_job(tmp_path), loop.Pack._round, []
    one = Pack(id="random-000", specs=SPECS[:2])
    other = Pack(id="grid-000", specs=(SPECS[0].model_copy(update={"id": "g0000"}), SPECS[2]))

    def between(self: Any) -> None:
        if not others:
            others.append(None)
            others[0] = train_pack(other, job)
        step(self)

    monkeypatch.setattr(loop.Pack, "_round", between)
    found = train_pack(one, job)
    assert found.records[0].result == others[0].records[0].result
    assert len(list(job.store.glob("*/record.json"))) == 3
    assert (train_pack(one, job), train_pack(other, job)) == (found, others[0])


def in_own_process(plan: Pack, root: Path, results: Path) -> None:
    job = make_job(root / results.stem)
    write_json(results, train_pack(plan, dataclasses.replace(job, store=root / "store")))


def trained_by(log: Path) -> set[str]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["id"] for line in lines if not line["reused"]}


def test_a_pack_is_held_while_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step = make_job(tmp_path), loop.Pack._round
    held: set[tuple[bool, ...]] = set()

    def locks() -> tuple[bool, ...]:
        return tuple(lease.is_held(path) for path in job.store.glob("packs/*.lock"))

    def between(self: Any) -> None:
        held.add(locks())
        step(self)

    monkeypatch.setattr(loop.Pack, "_round", between)
    train_pack(Pack(id="random-000", specs=SPECS[:1]), job)
    assert held == {(True,)}
    assert locks() == (False,)


@pytest.mark.long
def test_two_processes_on_one_store(tmp_path: Path) -> None:
    """The same pack, and one that shares most trials with it."""
    plans = [Pack(id="random-000", specs=specs) for specs in (SPECS[:3], SPECS[:3], SPECS[1:])]
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    context = multiprocessing.get_context("spawn")
    arguments = [(plan, tmp_path, path) for plan, path in zip(plans, paths, strict=True)]
    processes = [context.Process(target=in_own_process, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second, third = (read_model(path, PackResults) for path in paths)
    assert first == second
    assert third.records[:2] == first.records[1:]
    one, other = (trained_by(tmp_path / str(number) / "progress.jsonl") for number in range(2))
    assert one.isdisjoint(other), "one of the two waits until the other is through"
    store = Store(tmp_path / "store")
    assert all(store.find(record.result.digest) == record for record in third.records)


def test_a_pack_of_many_trials_opens_few_files(tmp_path: Path) -> None:
    specs = tuple(make_spec(f"r{n:04d}", learning_rate=1e-3 + n * 1e-5, num_train_epochs=0.1) for n in range(60))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    job = make_job(tmp_path)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 30, before[1]))
    try:
        found = train_pack(Pack(id="random-000", specs=specs), job)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {record.result.status for record in found.records} == {"complete"}


def test_a_device_is_waited_for_before_an_entry_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the last device may want the same trial next: each would wait for the other."""
    job, free = make_job(tmp_path), []
    spec = make_spec("s0001")
    entry = Store(job.store).entry(trial_digest(spec, job.inputs)) / ".lock"
    monkeypatch.setattr(devices, "lease", lambda _: free.append(not lease.is_held(entry)))
    train_pack(Pack(id="random-000", specs=(spec,), solo={"s0001": "some reason"}), job)
    assert free == [True]
