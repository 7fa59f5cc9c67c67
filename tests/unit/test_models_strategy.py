"""Whole copies, shards, or shards in the host's memory: chosen by sizes on made-up machines; peaks of real GPUs."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from test_models_execution import CPU, EIGHT, H100, ROUND, SMALL, llama, settings
from understudy import progress
from understudy.cli import prepare_execution
from understudy.errors import UserError
from understudy.files import read_model, write_json
from understudy.models import execution, hardware
from understudy.models.execution import resolve
from understudy.models.hardware import GIB, Hardware
from understudy.models.peak_flops import peak_flops
from understudy.models.strategy import SAID, Needs
from understudy.sections import ExecutionSection
from understudy.settings import Method
from understudy.trial import DataManifest, Execution, ModelCard, ResolvedExecution

EIGHT_GPUS = dataclasses.replace(H100, gpus=8, host_bytes=1024 * GIB)
SEVENTY = llama(70, 8192, 80)


def chosen(
    model: ModelCard, machine: Hardware = EIGHT_GPUS, method: Method = "lora", length: int = 1024, **target: Any
) -> Execution:
    return resolve(settings(target={"processes": 8, **target}), model, length, machine, method)


def how(made: Execution) -> tuple[str, bool]:
    return made.resolved.strategy, made.resolved.cpu_offload


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        (EIGHT, "lora", ("ddp", False)),  # 15 GiB of weights on each GPU
        (EIGHT, "full", ("fsdp", False)),  # 119 GiB of states, 15 on each of 8
        (llama(3, 2048, 36), "full", ("ddp", False)),  # 45 GiB
        (SEVENTY, "lora", ("fsdp", False)),  # 130 GiB of weights
        (llama(70, 8192, 80, "nf4"), "lora", ("fsdp", False)),  # 49 GiB of weights, 14 of adapters, 32 per row
        (llama(32, 5120, 64, "nf4"), "lora", ("ddp", False)),  # 22, 7 and 18
        (llama(40, 8192, 60), "full", ("fsdp", True)),  # 75 GiB on each of 8; 596 GiB of the host
    ],
)
def test_auto_takes_the_first_that_fits(model: ModelCard, method: Method, expected: tuple[str, bool]) -> None:
    made = chosen(model, method=method)
    assert how(made) == expected
    (note,) = [note for note in made.notes if note.startswith("target.strategy:")]
    assert note.startswith(f"target.strategy: {expected[0]}, estimated: of 64 GiB usable")
    assert "sharded over 8 processes" in note
    assert any(note.startswith("target.cpu_offload") for note in made.notes) == (expected[0] == "fsdp")


def test_several_nodes_share_as_their_processes_do() -> None:
    """Twice eight processes hold what eight can't, and each node's memory half of it."""
    model = llama(40, 8192, 60)
    made = chosen(model, method="full", nodes=2, gradient_checkpointing=True)
    assert how(made) == ("fsdp", False)
    assert (made.resolved.nodes, made.resolved.world_size) == (2, 16)
    assert "sharded over 16 processes" in " ".join(made.notes)


def test_what_does_not_fit_is_said_with_what_helps() -> None:
    poor = dataclasses.replace(EIGHT_GPUS, host_bytes=64 * GIB)
    made = chosen(SEVENTY, poor, "full")
    assert how(made) == ("fsdp", False)
    (note,) = [note for note in made.notes if "may not fit" in note]
    assert "`gradient_checkpointing: true`" in note
    made = chosen(SEVENTY, poor, "full", gradient_checkpointing=True)
    assert "`gradient_checkpointing" not in " ".join(made.notes)
    assert "`models.target.quantization: nf4` with LoRA" in " ".join(made.notes)
    (note,) = [n for n in chosen(llama(400, 16384, 126, "nf4"), poor).notes if "may not fit" in n]
    assert note == "target: may not fit; what helps: `gradient_checkpointing: true`, more `processes`"
    rich = dataclasses.replace(poor, host_bytes=4096 * GIB)
    assert how(chosen(SEVENTY, rich, "full")) == ("fsdp", True)
    assert how(chosen(SEVENTY, rich, "full", cpu_offload=False)) == ("fsdp", False)


def test_embeddings_that_are_not_quantized_are_gathered_as_they_are() -> None:
    """Of Llama 3 8B in NF4 two layers take less than its embeddings and head."""
    model = llama(8.03, 4096, 32, "nf4").model_copy(update={"vocab_size": 128_256})
    assert needs(model, "lora").working == pytest.approx(2 * 2 * 128_256 * 4096 + 2 * 0.52 * 6.98e9 / 32, rel=0.01)


def needs(model: ModelCard, method: Method, dtype: str = "bfloat16", **target: Any) -> Needs:
    return Needs.of(settings(target={"processes": 8, **target}).target, model, 1024, method, dtype)


@pytest.mark.parametrize(
    ("method", "dtype", "whole", "working", "token"),
    [
        ("full", "bfloat16", 16e9, 1619.2e6, 4_620_000),  # 16 bytes of states; weights and gradients in 16 bits
        ("full", "float32", 16e9, 3238.4e6, 7_192_000),
        ("lora", "bfloat16", 2e9 + 235.52e6, 809.6e6, 4_620_000),
        ("lora", "float32", 4e9 + 235.52e6, 1619.2e6, 7_192_000),
    ],
)
def test_needs_are_counted_from_the_models_shape(
    method: Method, dtype: str, whole: float, working: float, token: int
) -> None:
    """Of a billion parameters two of ten layers are gathered at a time, and 256 million of embeddings and head."""
    found = needs(ROUND, method, dtype)
    assert found.whole == pytest.approx(whole)
    in_16_bits = method == "full" and dtype == "bfloat16"
    assert found.taken("ddp", False) - found.whole == (2e9 if in_16_bits else 0), "autocast's copies of all weights"
    assert found.taken("fsdp", True) == found.working
    assert found.working == pytest.approx(working)
    assert found.row == pytest.approx(1024 * token)
    assert found.sharded == pytest.approx(whole / 8 + working)
    assert [needs(ROUND, method, dtype, nodes=nodes).host for nodes in (1, 2)] == pytest.approx([whole, whole / 2])


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_a_row_must_fit_beside_the_states(strategy: str) -> None:
    full, frozen = needs(SEVENTY, "full"), needs(SEVENTY, "lora")

    def on(states: float, row: float, method: Method) -> tuple[str, bool]:
        machine = dataclasses.replace(EIGHT_GPUS, memory_bytes=int((states + row) / 0.8), host_bytes=4096 * GIB)
        return how(chosen(SEVENTY, machine, method, strategy=strategy))

    assert on(full.sharded, 0.9 * full.row, "full") == ("fsdp", True)
    assert on(full.sharded, 1.1 * full.row, "full") == ("fsdp", False)
    if strategy == "auto":
        assert on(frozen.whole, 0.9 * frozen.row, "lora") == ("fsdp", False)
        assert on(frozen.whole, 1.1 * frozen.row, "lora") == ("ddp", False)


def test_a_nodes_memory_must_hold_its_share_of_what_is_offloaded() -> None:
    whole = needs(SEVENTY, "full").whole
    machine = dataclasses.replace(EIGHT_GPUS, memory_bytes=40 * GIB, host_bytes=int(0.6 * whole / 0.8))
    assert [how(chosen(SEVENTY, machine, "full", nodes=nodes)) for nodes in (1, 2)] == [("fsdp", False), ("fsdp", True)]


def test_the_estimate_is_said_where_one_process_has_room() -> None:
    (note,) = [note for note in chosen(EIGHT, processes=1).notes if note.startswith(SAID)]
    assert note.startswith("target: one process has room, estimated: of ")


def test_one_process_that_does_not_fit_offloads() -> None:
    assert how(chosen(EIGHT, method="full", processes=1)) == ("fsdp", True)
    made = chosen(EIGHT, method="lora", processes=1)
    assert how(made) == ("ddp", False)
    assert not any("strategy" in note for note in made.notes)


def test_what_is_given_is_kept_and_said_not_to_fit() -> None:
    made = chosen(SEVENTY, strategy="ddp")
    assert how(made) == ("ddp", False)
    (note,) = [note for note in made.notes if note.startswith("target: may not fit; estimated")]
    assert "`gradient_checkpointing: true`" in note
    assert not any("may not fit" in note for note in chosen(EIGHT, strategy="ddp").notes)
    assert "`strategy: fsdp` over several `processes`" in note
    (note,) = [n for n in chosen(SEVENTY, strategy="fsdp", cpu_offload=False, method="full").notes if "may not" in n]
    assert "`cpu_offload: true`" in note
    assert "strategy" not in note
    assert how(chosen(SMALL, strategy="fsdp")) == ("fsdp", False)
    assert how(chosen(SMALL, strategy="fsdp", cpu_offload=True)) == ("fsdp", True)
    offloaded = chosen(llama(40, 8192, 60), method="full", strategy="fsdp")
    assert how(offloaded) == ("fsdp", True)
    assert any(note.startswith("target.cpu_offload: true, estimated") for note in offloaded.notes)


def test_what_was_estimated_shows_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda _: EIGHT_GPUS)
    said = io.StringIO()
    monkeypatch.setattr(progress, "_terminal", said)
    section = ExecutionSection(execution=settings(device="cuda", target={"processes": 8}), method="full")
    manifest = DataManifest(
        task="files", source={}, counts={}, splits={}, max_length=1024, train_examples=8, validation_examples=8,
        test_examples=8,
    )  # fmt: skip
    files = {"settings": section, "model": SEVENTY, "manifest": manifest}
    for name, content in files.items():
        write_json(tmp_path / f"{name}.json", content)
    given = {name: tmp_path / f"{name}.json" for name in [*files, "output", "progress"]}
    prepare_execution.run(argparse.Namespace(**given))
    made = read_model(given["output"], Execution)
    told = said.getvalue().splitlines()
    assert told == [
        note for note in made.notes if note.startswith(("target.strategy", "target.cpu_offload", "target: "))
    ]
    assert "target.strategy: fsdp, estimated: of 64 GiB usable" in told[0]
    noted = [json.loads(line) for line in given["progress"].read_text().splitlines()]
    assert [line["text"] for line in noted] == told, "for a main process whose jobs run elsewhere"


def test_on_cpus_auto_is_whole_copies() -> None:
    made = chosen(SEVENTY, CPU)
    assert how(made) == ("ddp", False)
    assert how(chosen(SEVENTY, CPU, strategy="fsdp")) == ("fsdp", False)


def test_rows_follow_what_a_shard_leaves() -> None:
    rows = [
        chosen(EIGHT, method="full", processes=processes, strategy="fsdp", cpu_offload=False).resolved.micro_batch_size
        for processes in (2, 4, 8)
    ]
    assert rows == sorted(rows)
    assert rows[0] < rows[-1]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"cpu_offload": True}, "`cpu_offload: true` goes with `strategy: fsdp`, but the strategy is `auto`"),
        ({"strategy": "fsdp"}, "`nodes` and `processes` are 1; raise `processes`"),
        ({"strategy": "fsdp", "processes": 2, "torch_compile": True}, "`torch_compile` isn't tested with"),
    ],
)
def test_what_can_not_work_is_refused(target: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(target=target)


def test_compiled_trials_are_not_sharded_by_auto() -> None:
    made = chosen(EIGHT, method="full", torch_compile=True)
    assert how(made) == ("ddp", False)
    assert any("may not fit" in note and "without `torch_compile` it would be sharded" in note for note in made.notes)


def test_flash_attention_where_it_is_not_installed() -> None:
    with pytest.raises(UserError, match=r"attention: flash_attention_2` was given, but the package `flash-attn` isn't"):
        chosen(EIGHT, attention="flash_attention_2")
    assert chosen(EIGHT, attention="eager").resolved.attention == "eager"
    assert chosen(EIGHT).resolved.attention is None


def test_rows_go_without_padding_where_the_kernel_keeps_examples_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "version", lambda name: name)
    flash = chosen(EIGHT, attention="flash_attention_2")
    assert flash.resolved.padding_free
    assert "target.padding_free: true, since FlashAttention keeps examples apart at no cost" in flash.notes
    assert not chosen(EIGHT, attention="flash_attention_2", padding_free=False).resolved.padding_free
    assert not chosen(EIGHT).resolved.padding_free
    assert chosen(EIGHT, padding_free=True).resolved.padding_free


def test_what_came_later_leaves_digests_alone() -> None:
    plain = ResolvedExecution(
        device="cpu", threads=1, processes=2, micro_batch_size=8, dtype="float32", gradient_checkpointing=False
    )
    assert list(plain.model_dump(mode="json")) == [
        "device",
        "threads",
        "processes",
        "micro_batch_size",
        "dtype",
        "gradient_checkpointing",
        "packing",
    ]
    changes = {"strategy": "fsdp", "nodes": 2, "cpu_offload": True, "attention": "eager", "torch_compile": True}
    changes |= {"padding_free": True, "pass_tokens": 1024}
    for name, value in changes.items():
        changed = plain.model_copy(update={name: value})
        assert changed.model_dump(mode="json")[name] == value
        assert ResolvedExecution.model_validate(changed.model_dump(mode="json")) == changed


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H200 NVL", "bfloat16", 835e12),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "float32", None),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("Tesla V100-SXM2-16GB", "float32", 15.7e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("Some other accelerator", "bfloat16", None),
        (None, "float32", None),
    ],
)
def test_peaks_are_found_by_torchs_names(name: str | None, dtype: Any, peak: float | None) -> None:
    assert peak_flops(name, dtype) == peak
