"""What a scheduler is asked for: sizes against transformers, estimates against what they must hold, attempts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from understudy import quantities, resources
from understudy.config import StudyConfig, parse
from understudy.errors import ConfigError, UserError
from understudy.files import write_json
from understudy.settings import ModelSettings
from understudy.trial import ModelCard

ROOT = Path(__file__).parents[2]
NOWHERE = Path("/nowhere/model.json")
SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}


def study(example: str = "config/config.yaml", **changes: Any) -> StudyConfig:
    raw: dict[str, Any] = yaml.safe_load((ROOT / example).read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = raw
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return parse(raw)


def parameters(config: Any) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_a_local_models_size_is_what_transformers_makes_of_its_config(
    tmp_path: Path, tied: bool, key_value_heads: int
) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        **SHAPE, vocab_size=300, num_key_value_heads=key_value_heads, tie_word_embeddings=tied, torch_dtype="bfloat16"
    )
    config.save_pretrained(tmp_path)
    size = resources.model_size(ModelSettings(model_name_or_path=str(tmp_path)), NOWHERE)
    assert size == resources.ModelSize(parameters(config), 64, 3, 300, "config.json")


def test_a_built_in_models_size_is_what_transformers_makes_of_it() -> None:
    from transformers import LlamaConfig

    settings = study().models.target
    assert settings.pretrain is not None
    shape = settings.pretrain.model_dump(include={*SHAPE, "vocab_size"})
    assert resources.model_size(settings, NOWHERE).parameters == parameters(
        LlamaConfig(**shape, tie_word_embeddings=True)
    )


def test_weights_that_are_larger_than_their_config_tells_count(tmp_path: Path) -> None:
    config = {**SHAPE, "vocab_size": 300, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "model-00001-of-00001.safetensors").open("wb") as handle:
        handle.truncate(2 * 10**9)
    assert resources.model_size(ModelSettings(model_name_or_path=str(tmp_path)), NOWHERE).parameters == 10**9


@pytest.mark.parametrize(
    ("kind", "experts"), [("MixtralConfig", True), ("Qwen3MoeConfig", True), ("Qwen3Config", False)]
)
def test_a_mixture_of_experts_is_known_by_its_config(tmp_path: Path, kind: str, experts: bool) -> None:
    import transformers

    getattr(transformers, kind)(**SHAPE, vocab_size=300).save_pretrained(tmp_path)
    assert resources.model_size(ModelSettings(model_name_or_path=str(tmp_path)), NOWHERE).experts == experts


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hidden_size": 3}', '{"hidden_size": "x"}'])
def test_what_cannot_be_read_is_taken_for_the_default(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    settings = ModelSettings(model_name_or_path=str(tmp_path))
    assert resources.model_size(settings, tmp_path / "config.json") == resources.UNKNOWN


def test_a_hub_models_size_is_its_cards_once_it_is_prepared(tmp_path: Path) -> None:
    settings, path = ModelSettings(model_name_or_path="some/model"), tmp_path / "model.json"
    assert resources.model_size(settings, path) == resources.UNKNOWN
    card = {
        "role": "target",
        "source": "hub",
        "path": "/m",
        "sha256": "a",
        "model_type": "llama",
        "quantization": "none",
    }
    card |= {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 9, "parameters": 77}
    write_json(path, ModelCard.model_validate({**card, "name": "some/model"}))
    assert resources.model_size(settings, path) == resources.ModelSize(77, 8, 2, 9, "card")
    write_json(path, ModelCard.model_validate({**card, "name": "another/model"}))
    assert resources.model_size(settings, path) == resources.UNKNOWN


def test_a_run_that_fetches_a_model_asks_for_what_it_turned_out_to_need(tmp_path: Path) -> None:
    """The limits are made when the rules are read, before the model is there."""
    path = tmp_path / "model.json"
    config = study(models__proxy={"model_name_or_path": "some/model"})
    found = resources.job_limits(config, "proxy", path)
    before = [found[name](None, 1) for name in ("mem_mb", "runtime")]  # type: ignore[operator]
    card = {"role": "proxy", "source": "hub", "path": "/m", "sha256": "a", "model_type": "llama", "name": "some/model"}
    card |= {"quantization": "none", "hidden_size": 896, "num_hidden_layers": 24, "vocab_size": 151_936}
    write_json(path, ModelCard.model_validate({**card, "parameters": 494_032_768}))
    after = [found[name](None, 1) for name in ("mem_mb", "runtime")]  # type: ignore[operator]
    size = resources.model_size(config.models.proxy, path)
    assert after == [
        resources.estimated_mem_mb(config, "proxy", size),
        resources.estimated_runtime(config, "proxy", size),
    ]
    assert all(late < early / 4 for late, early in zip(after, before, strict=True))


def test_estimates_hold_what_they_must() -> None:
    seven = resources.ModelSize(7_000_000_000, 3584, 28, 152_064, "card")
    on_gpu = study("config/examples/own-model.yaml")
    gigabytes = resources.estimated_mem_mb(on_gpu, "target", seven) / 1000
    assert 14 < gigabytes < 40, "the weights in 16 bits pass through the host"
    two = study("config/examples/own-model.yaml", execution__target__processes=2)
    eight = {"execution__target__processes": 8}

    def of_eight(**changes: Any) -> float:
        changed = study("config/examples/own-model.yaml", **eight, **changes)
        return resources.estimated_mem_mb(changed, "target", seven) / 1000

    assert of_eight() < 65, "the files' pages are shared"
    quantized = {"models__target__quantization": "nf4"}
    assert of_eight(**quantized) > of_eight() + 8 * 0.5 * 7, "each process may hold the base, to shard it"
    assert of_eight(**quantized, execution__target__strategy="ddp") == of_eight()
    full_tuning = of_eight(target__method="full") - of_eight()
    assert 4 * 7 < full_tuning < 2 * 4 * 7, "one process writes weights in float32, none holds them while it loads"
    experts = dataclasses.replace(seven, experts=True)
    eight_full = study("config/examples/own-model.yaml", **eight, target__method="full")
    held = resources.estimated_mem_mb(eight_full, "target", experts) - 1000 * of_eight(target__method="full")
    assert held > 8 * 2 * 7_000, "experts are stacked, so no pages are shared"
    assert resources.look_limits(two)["gpu"] == 1
    assert resources.look_limits(two)["mem_mb"] < 8000
    assert resources.look_limits(study())["gpu"] == 0
    full = study(target__method="full")
    small = resources.ModelSize(10**9, 2048, 16, 32_000, "card")
    frozen = resources.estimated_mem_mb(study(), "target", small)
    assert frozen > 4_000
    assert resources.estimated_mem_mb(full, "target", small) - frozen > 10_000, "gradients and AdamW's two moments"

    minutes = resources.estimated_runtime(on_gpu, "target", seven)
    tokens = 4000 * 3 * 1024
    assert minutes * 60 > 6 * seven.parameters * tokens / 1e14, "on a GPU that reaches 100 TFLOP/s"
    assert minutes < 24 * 60
    assert resources.estimated_runtime(two, "target", seven) < minutes
    assert resources.estimated_runtime(study(), "target", resources.model_size(study().models.target, NOWHERE)) == 30


BILLION = resources.ModelSize(10**9, 2048, 16, 32_000, "card")


def test_what_is_offloaded_is_shared_by_all_processes() -> None:
    def held(offload: bool, **changes: Any) -> float:
        sharded = {"execution__target__strategy": "fsdp", "execution__target__cpu_offload": offload, **changes}
        return 1e6 * resources.estimated_mem_mb(study("config/examples/own-model.yaml", **sharded), "target", BILLION)

    states = {"lora": 4e9, "full": 16e9}
    for method, processes, nodes in (("lora", 2, 1), ("lora", 8, 1), ("lora", 4, 2), ("full", 2, 1), ("full", 8, 2)):
        how = {"execution__target__processes": processes, "execution__target__nodes": nodes, "target__method": method}
        node = 1.25 * states[method] / nodes
        assert held(True, **how) - held(False, **how) == pytest.approx(node, abs=1e6 * resources.STEP_MB)


SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "lora_r": [4, 32]}


@pytest.mark.parametrize(
    ("role", "changes", "trials", "epochs"),
    [
        ("proxy", {}, 20, 1),
        ("proxy", {"proxy__pack_size": 5}, 5, 1),
        ("target", {}, 1, 1),
        ("target", {"space": SPACE, "defaults": {"num_train_epochs": 4}}, 1, 4),
        ("target", {"space": SPACE, "defaults": {}}, 1, 3),
        ("proxy", {"proxy__grid": {"num_train_epochs": [0.5, 2.5]}}, 20, 2.5),
        ("proxy", {"space__num_train_epochs": {"low": 1, "high": 6}}, 20, 6),
    ],
)
def test_time_is_for_all_trials_of_a_pack_with_the_most_epochs(
    role: str, changes: dict[str, Any], trials: int, epochs: float
) -> None:
    tokens, evaluated = 96 * 960 * epochs, 96 * 256 * 3
    minutes = 2 * trials * 1e9 * (6 * tokens + 2 * evaluated) / 5e9 / 60
    found = resources.estimated_runtime(study(**changes), role, BILLION)  # type: ignore[arg-type]
    assert found == pytest.approx(15 + minutes, abs=1)


def limits(config: StudyConfig, role: str, attempt: int) -> dict[str, Any]:
    found = resources.job_limits(config, role, NOWHERE)  # type: ignore[arg-type]
    return {name: value(None, attempt) if callable(value) else value for name, value in found.items()}


def test_attempts_ask_for_more_up_to_the_limits_and_places_stand_as_given() -> None:
    asked = {"mem_mb": 1000, "max_mem_mb": 2500, "runtime": 60, "partition": "long", "constraint": "ib"}
    config = study(resources={"target": {**asked, "gpu_model": "h100"}, "account": "us"}, execution__device="cuda")
    place = {"slurm_partition": "long", "slurm_account": "us", "constraint": "ib", "gpu_model": "h100", "nodes": 1}
    place |= {"cpus_per_task": 1}
    assert limits(config, "target", 1) == {"mem_mb": 1000, "runtime": 60, **place}
    assert limits(config, "target", 3) == {"mem_mb": 2500, "runtime": 60, **place}
    plain = limits(study(), "proxy", 1)
    assert plain.pop("cpus_per_task") == 1
    assert plain.keys() == {"mem_mb", "runtime"}
    for attempt, times in ((2, 2), (4, 4), (16, 4)):  # so many time-outs say nothing of memory
        expected = {name: times * value for name, value in plain.items()}
        assert limits(study(), "proxy", attempt) == {**expected, "cpus_per_task": 1}


def test_what_the_config_gives_grows_only_where_it_says_how_far() -> None:
    """A time limit that a trial goes on from, three times over, is no reason to ask for four times the memory."""
    config = study(resources={"target": {"mem_mb": 1000, "runtime": 60, "max_runtime": 100}})
    asked = [limits(config, "target", attempt) for attempt in (1, 2, 3)]
    assert [each["mem_mb"] for each in asked] == [1000, 1000, 1000]
    assert [each["runtime"] for each in asked] == [60, 100, 100]


def test_a_trials_cores_are_asked_for_whatever_the_submitting_machine_has() -> None:
    config = study(execution={"proxy": {"threads": 3}, "target": {"threads": 4, "processes": 2}})
    assert limits(config, "proxy", 1)["cpus_per_task"] == 3
    assert limits(config, "target", 1)["cpus_per_task"] == 8


def test_jobs_without_gpus_are_told_where_the_config_leaves_it_open() -> None:
    (line,) = resources.unasked(study(execution__device="auto"))
    assert "no GPU" in line
    assert [
        *resources.unasked(study(execution__device="cpu")),
        *resources.unasked(study(execution__device="cuda")),
    ] == []


def test_several_nodes_need_a_scheduler_or_a_job_of_as_many() -> None:
    config = study(execution__target={"nodes": 2})
    resources.require_scheduler(config, "2")
    resources.require_scheduler(study(), None)
    for allocated in (None, "1"):
        with pytest.raises(UserError, match="is 2, but this run submits no jobs"):
            resources.require_scheduler(config, allocated)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"mem_mb": 10, "max_mem_mb": 5}, "may be at most `max_mem_mb`"),
        ({"runtime": 0}, "`runtime` must be at least 1"),
        ({"mem_mb": True}, "must be a whole number or `auto`"),
        ({"gpu_model": "a b"}, "gpu_model"),
        ({"gpu_model": "a100-sxm4"}, "choose the nodes by `constraint` or `partition`"),
        ({"mem_mb": "200G"}, "mem_mb: must be whole MB or `auto`, but got '200G'; 204800 would be that"),
        (
            {"runtime": "1-12:00:30"},
            "runtime: must be whole minutes or `auto`, but got '1-12:00:30'; 2161 would be that",
        ),
        ({"runtime": "24h"}, "1440 would be that"),
        ({"runtime": "long"}, "but got 'long'$"),
        ({"runtime": 1.5}, "resources.proxy.runtime: must be a whole number or `auto`, but got 1.5$"),
        ({"walltime": 3}, "unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        study(resources={"proxy": asked})


def test_a_trial_that_is_larger_than_the_run_is_told_and_others_are_not() -> None:
    config = study(execution__target={"threads": 2, "processes": 2})
    assert resources.crowded(config, 4) == []
    (line,) = resources.crowded(config, 3)
    assert "`execution.target` keeps 4 cores busy" in line


def test_more_cores_than_a_container_has_are_told() -> None:
    assert resources.throttled(4, 4) == resources.throttled(2, 64) == []
    (line,) = resources.throttled(64, 2)
    assert line.startswith("this run counts on 64 cores, but has 2")


def test_the_graph_is_known_without_torch() -> None:
    code = "import understudy.resources, understudy.cluster, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_trial_over_several_nodes_asks_for_one_task_and_its_gpus_on_each() -> None:
    """As the SLURM plugin reads it: `gpu` would be split among the nodes at will, `mpi` is for commands with `srun`."""
    how = {"nodes": 2, "processes": 4, "threads": 3}
    config = study(
        execution={"device": "cuda", "target": how}, resources={"target": {"gpu_model": "h100", "runtime": 60}}
    )
    found = resources.trial_limits(config, NOWHERE)
    assert {name: value for name, value in found.items() if not callable(value)} == {
        "cpus_per_task": 12,
        "nodes": 2,
        "tasks": 2,
        "mpi": "srun",
        "gres": "gpu:h100:4",
        "tasks_per_gpu": 0,
    }
    alone = study(execution={"device": "cuda", "target": {"processes": 4}})
    assert resources.trial_limits(alone, NOWHERE)["gpu"] == 4
    assert resources.trial_limits(alone, NOWHERE)["nodes"] == 1
    cpus = resources.trial_limits(study(execution={"device": "cpu", "target": how}), NOWHERE)
    assert cpus["nodes"] == 2
    assert "gres" not in cpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", 1440),
        ("2 d", 2880),
        ("90", 90),
        ("90:30", 91),  # minutes:seconds
        ("24:00:00", 1440),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:30:01", 2191),
        ("1:2:3:4", None),
        ("tomorrow", None),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text: str, expected: int | None) -> None:
    assert quantities.minutes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200G", 204800), ("1.5G", None), ("1T", 2**20), ("512M", 512), ("1K", 1), ("64 GiB", 65536), ("much", None)],
)
def test_memory_is_read_as_sbatch_reads_it(text: str, expected: int | None) -> None:
    assert quantities.megabytes(text) == expected
