"""How trials run: every `auto` decided, and more than there is refused."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tiny_models import card
from understudy.errors import UserError
from understudy.models import hardware
from understudy.models.estimates import (
    CPU_PACK_TOKENS,
    GPU_CHUNKS,
    HEAD_BYTES,
    estimate,
    frozen_bytes,
    packed_token_bytes,
    token_bytes,
    trial_bytes,
)
from understudy.models.execution import resolve
from understudy.models.hardware import GIB, Hardware
from understudy.models.quantization import peft_for
from understudy.settings import ExecutionSettings
from understudy.trial import CPU_PASS_TOKENS, ModelCard, Packing

CPU = Hardware(host_bytes=16 * GIB, cores=4)
H100 = Hardware(gpus=2, memory_bytes=80 * GIB, bfloat16=True, host_bytes=256 * GIB, cores=32)
V100 = Hardware(gpus=1, memory_bytes=16 * GIB, bfloat16=False, host_bytes=64 * GIB, cores=8)


def llama(
    billions: float, hidden_size: int, layers: int, quantization: str = "none", role: str = "target"
) -> ModelCard:
    return card(Path("model"), quantization).model_copy(
        update={
            "role": role,
            "parameters": int(billions * 1e9),
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "vocab_size": 128_000,
        }
    )


SMALL = llama(0.002, 192, 4)
EIGHT = llama(8, 4096, 32)
ROUND = llama(1, 1000, 10)  # a layer of 87.2 h², and 256 million parameters in embeddings and head


def settings(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.model_validate(values)


def test_on_a_cpu() -> None:
    made = resolve(settings(target={"threads": 3}), SMALL, 96, CPU)
    assert made.role == "target"
    assert made.resolved.model_dump() == {
        "device": "cpu",
        "threads": 3,
        "processes": 1,
        "micro_batch_size": 32,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "packing": None,
    }
    assert [note.split(":")[0] for note in made.notes] == ["device", "target.dtype", "target.micro_batch_size"]
    assert made.gpu_bytes is None
    assert resolve(settings(), SMALL, 96, H100).gpu_bytes == 80 * GIB


def test_what_is_given_is_kept_and_needs_no_note() -> None:
    stage = {"micro_batch_size": 3, "dtype": "bfloat16", "gradient_checkpointing": True, "processes": 2}
    made = resolve(settings(device="cpu", target=stage), SMALL, 96, H100)
    assert made.notes == ()
    assert (made.resolved.device, made.resolved.micro_batch_size, made.resolved.dtype) == ("cpu", 3, "bfloat16")
    assert (made.resolved.processes, made.resolved.gradient_checkpointing) == (2, True)


def test_on_gpus() -> None:
    made = resolve(settings(target={"processes": 2}), SMALL, 96, H100)
    assert (made.resolved.device, made.resolved.dtype, made.resolved.processes) == ("cuda", "bfloat16", 2)
    assert resolve(settings(), SMALL, 96, V100).resolved.dtype == "float32"


def test_more_than_there_is_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"`execution.device: cuda` was given, but torch sees no GPU"):
        resolve(settings(device="cuda"), SMALL, 96, CPU)
    with pytest.raises(UserError, match=r"`execution.target.processes` is 4, one GPU each, but torch sees 2 GPUs"):
        resolve(settings(target={"processes": 4}), SMALL, 96, H100)
    one_for_looking = dataclasses.replace(H100, gpus=1, own_job=True)
    assert resolve(settings(target={"processes": 4}), SMALL, 96, one_for_looking).resolved.processes == 4


SHAPES = {  # with as many bytes per token, layer and hidden unit as the shape in full
    "Llama 2 7B": (LlamaConfig, 256, 688, 8, 8),
    "Llama 3 8B": (LlamaConfig, 256, 896, 8, 2),
    "Qwen2.5 7B": (Qwen2Config, 224, 1184, 7, 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_what_autograd_keeps(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mask of bytes that dropout keeps on GPUs. Tensors as large as a weight are autocast's copies of it."""
    kind, hidden, width, heads, key_value_heads = SHAPES[shape]
    layers, rows, length, dtype = 2, 2, 256, torch.bfloat16
    config = kind(
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        num_hidden_layers=layers,
        vocab_size=100,
    )
    monkeypatch.setattr(
        torch.nn.functional, "dropout", lambda x, p, training, _=False: torch.native_dropout(x, p, training)[0]
    )
    base = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    parameters = sum(each.numel() for each in base.parameters())
    with peft_for(base):
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=8, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, adapters).train()
    sizes = {each.shape for each in model.parameters()} | {
        each.T.shape for each in model.parameters() if each.dim() == 2
    }
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in sizes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", dtype):
        alive = model(input_ids=torch.randint(0, 100, (rows, length)), use_cache=False)
    card = llama(0, hidden, layers).model_copy(update={"parameters": parameters, "vocab_size": 0})
    assert sum(kept.values()) / (rows * length) == pytest.approx(token_bytes(card, "bfloat16"), rel=0.12)
    assert alive is not None


def test_the_estimate_is_a_power_of_two_that_follows_what_it_depends_on() -> None:
    def rows(
        model: ModelCard, length: int = 1024, memory: int = 80, dtype: str = "bfloat16", check: bool = False
    ) -> int:
        found, reason = estimate(model, length, memory * GIB, dtype, check)
        assert 1 <= found <= 64
        assert found & (found - 1) == 0
        assert "GiB usable" in reason
        return found

    assert rows(EIGHT) == 4  # of 64 GiB: 15 for the weights, and per row 6 for activations and 2 for logits
    assert rows(EIGHT, memory=40) < rows(EIGHT) < rows(EIGHT, check=True)
    assert rows(EIGHT, length=4096) <= rows(EIGHT, length=512)
    assert rows(EIGHT, memory=24) <= rows(llama(8, 4096, 32, "nf4"), memory=24)
    assert rows(EIGHT, dtype="float32") <= rows(EIGHT)
    assert rows(EIGHT, memory=1) == 1
    assert rows(SMALL, length=96) == 64


def packing(model: ModelCard, machine: Hardware, length: int = 96, **proxy: Any) -> tuple[Packing, list[str]]:
    made = resolve(settings(proxy=proxy), model.model_copy(update={"role": "proxy"}), length, machine)
    assert made.resolved.packing is not None
    notes = [note.removeprefix("proxy.") for note in made.notes if note.startswith(("proxy.pack", "proxy.dense"))]
    return made.resolved.packing, notes


DENSE = "dense weights beside the quantized ones"
TINY = llama(0.0002, 64, 2, "nf4")
HALF = llama(0.5, 896, 24, "nf4")


def test_the_target_and_a_proxy_without_packs_have_no_packing() -> None:
    assert resolve(settings(), SMALL, 96, H100).resolved.packing is None
    off = resolve(settings(proxy={"packed": False}), TINY.model_copy(update={"role": "proxy"}), 96, CPU)
    assert off.resolved.packing is None
    assert not any("pack" in note for note in off.notes)


def test_packs_on_a_cpu() -> None:
    found, notes = packing(TINY, CPU)
    assert found == Packing(trials=64, tokens=CPU_PACK_TOKENS, dense=True)
    assert [note.split(":")[0] for note in notes] == [
        DENSE,
        "pack_tokens",
        "pack_trials",
    ]
    assert "4 jobs of one core each" in notes[2]
    assert packing(TINY, CPU, length=8192)[0].tokens == 8192
    assert packing(llama(0.5, 896, 24), CPU)[0].dense is False


def on_host(size: float, **proxy: Any) -> Packing:
    return packing(HALF, Hardware(host_bytes=int(size * GIB), cores=4), **proxy)[0]


def test_packs_hold_less_where_there_is_less_memory() -> None:
    trials = [on_host(size).trials for size in (1, 16, 64, 200, 4000)]
    assert trials == sorted(trials)
    assert (trials[0], trials[-1]) == (1, 64)
    assert all(count & (count - 1) == 0 for count in trials)
    assert len(set(trials)) >= 3
    assert on_host(64, threads=4).trials > on_host(64).trials
    assert on_host(63.5) == on_host(64)


@pytest.mark.parametrize("model", [TINY, HALF, llama(1.5, 1536, 28, "nf4")])
@pytest.mark.parametrize("machine", [H100, V100])
def test_packs_on_a_gpu_fit_by_their_own_estimate(model: ModelCard, machine: Hardware) -> None:
    found, notes = packing(model, machine, length=512)
    dtype = "bfloat16" if machine.bfloat16 else "float32"
    dense = model.parameters * (2 if machine.bfloat16 else 4) if found.dense else 0
    states, tokens = found.trials * trial_bytes(model), found.tokens * packed_token_bytes(model, dtype, "cuda")
    taken = frozen_bytes(model, dtype) + dense + GPU_CHUNKS * HEAD_BYTES + states + tokens
    usable = 0.8 * machine.memory_bytes
    assert taken <= usable
    assert found.tokens == 65_536 or taken + tokens > usable, "twice the tokens would have fitted"
    assert found.trials == 64 or 4 * states > usable - taken + tokens + states
    assert 512 <= found.tokens <= 65_536
    assert any("MiB per token" in note for note in notes)


def test_a_base_that_does_not_fit_gets_the_least() -> None:
    found, _ = packing(EIGHT, V100, length=500)
    assert found == Packing(trials=1, tokens=500, dense=False)


def test_dense_weights_are_held_where_they_are_small() -> None:
    assert packing(TINY, H100)[0].dense
    assert packing(HALF, H100)[0].dense
    assert not packing(llama(3, 2048, 36, "nf4"), H100)[0].dense
    assert not packing(HALF, CPU)[0].dense
    assert not packing(llama(0.0002, 64, 2), H100)[0].dense


def test_what_is_given_for_packs_is_kept() -> None:
    found, notes = packing(TINY, H100, pack_trials=5, pack_tokens=700)
    assert (found.trials, found.tokens) == (5, 700)
    assert [note.split(":")[0] for note in notes] == [DENSE]
    assert on_host(128, pack_tokens=8000).trials < on_host(128, pack_tokens=100).trials


def test_an_adapter_of_rank_64_is_no_larger_than_estimated() -> None:
    """Against PEFT, on a real Llama of a usual shape."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        hidden_size=64, intermediate_size=224, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    )
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # peft reads what transformers deprecates
        model = get_peft_model(LlamaForCausalLM(shape), LoraConfig(r=64, target_modules="all-linear"))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    estimated = trial_bytes(llama(0.0002, 64, 2)) / 16
    assert trained <= estimated <= 1.3 * trained


def group_files(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text + "\n")
    (folder / "own").write_text(own)
    monkeypatch.setattr(hardware, "CGROUPS", folder / "groups")
    monkeypatch.setattr(hardware, "OWN_GROUPS", folder / "own")


def test_a_control_groups_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    new = {"job/step/memory.max": "max", "job/memory.max": str(GIB), "job/step/cpu.max": "150000 100000"}
    group_files(tmp_path / "2", monkeypatch, "0::/job/step\n", new)
    found = hardware.detect("cpu")
    assert (found.gpus, found.host_bytes, found.cores) == (0, GIB, 2)
    old = {"memory/a/memory.limit_in_bytes": str(2 * GIB), "memory/memory.limit_in_bytes": str(2**62)}
    old |= {"cpu,cpuacct/a/other": "", "cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}
    group_files(tmp_path / "1", monkeypatch, "5:memory:/a\n4:cpu,cpuacct:/a\n", old)
    assert (hardware.host_bytes(), hardware.cores()) == (2 * GIB, 3)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([(80, 9), (24, 8)], (2, 24 * GIB, True)),
        ([(24, 8), (80, 9)], (2, 24 * GIB, True)),
        ([(24, 8), (80, 7)], (2, 24 * GIB, False)),
        ([(16, 7)], (1, 16 * GIB, False)),
    ],
)
def test_the_least_of_all_gpus_counts(
    gpus: list[tuple[int, int]], expected: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = [SimpleNamespace(total_memory=size * GIB, major=major, name="H100") for size, major in gpus]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(properties))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    found = hardware.detect("auto")
    assert (found.gpus, found.memory_bytes, found.bfloat16) == expected
    assert found.kinds == ("H100",)


def test_without_limits_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group_files(tmp_path, monkeypatch, "0::/\n", {})
    machine = hardware.os.sysconf("SC_PHYS_PAGES") * hardware.os.sysconf("SC_PAGE_SIZE")
    assert hardware.host_bytes() == machine
    monkeypatch.setattr(hardware, "OWN_GROUPS", tmp_path / "none")
    assert (hardware.host_bytes(), hardware.cores() >= 1) == (machine, True)


def test_a_job_of_a_cluster_counts_its_limits_where_the_whole_study_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_files(tmp_path, monkeypatch, "0::/job\n", {"job/memory.max": str(GIB)})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert hardware.host_bytes() > GIB
    monkeypatch.setenv(hardware.STUDY_JOB, "6")
    assert hardware.host_bytes() > GIB
    monkeypatch.setenv(hardware.STUDY_JOB, "7")
    assert hardware.host_bytes() == GIB


def test_what_a_pass_is_worth_is_asked_where_batches_are_cut_by_it() -> None:
    """Elsewhere digests don't depend on the kind of GPU."""
    known = dataclasses.replace(H100, kinds=("NVIDIA H100 80GB HBM3",))
    mixed = dataclasses.replace(H100, kinds=("NVIDIA H100 80GB HBM3", "NVIDIA T4"))

    def worth(machine: Hardware, card: ModelCard = HALF, **stage: Any) -> int:
        return resolve(settings(**{card.role: stage}), card, 96, machine).resolved.pass_tokens

    target = HALF.model_copy(update={"role": "target"})
    proxy = HALF.model_copy(update={"role": "proxy"})
    assert worth(known, target) > CPU_PASS_TOKENS
    assert worth(known, target, pass_tokens=77) == worth(CPU, target, pass_tokens=77) == 77
    assert worth(mixed, target) == worth(CPU, target) == CPU_PASS_TOKENS
    assert worth(known, target, micro_batch_size=1) == worth(known, target, padding_free=True) == CPU_PASS_TOKENS
    assert worth(known, proxy) == CPU_PASS_TOKENS
    assert worth(known, proxy, packed=False) > CPU_PASS_TOKENS


def test_packs_on_a_cpu_stay_as_large_as_they_were() -> None:
    found, _ = packing(HALF, Hardware(host_bytes=32 * GIB, cores=2))
    assert (found.trials, found.tokens) == (8, 2048)


def test_a_gpu_holds_no_second_copy_of_an_int8_base() -> None:
    """Its own kernel takes the way there, so that only a cast would be spared on the way back."""
    bases = [llama(0.2, 1024, 8, quantization) for quantization in ("nf4", "int8")]
    assert [packing(base, H100)[0].dense for base in bases] == [True, False]
