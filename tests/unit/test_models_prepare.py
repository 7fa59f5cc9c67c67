"""From a model's settings to its card: built-in models, folders, the hub, and what is wrong with them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_models import EXECUTION, TEXTS, configs, llama_config, save
from understudy import progress
from understudy.errors import ModelError
from understudy.models import cache, checkpoint, hub, pretrain
from understudy.models.loading import load_base, load_tokenizer
from understudy.models.prepare import prepare_model
from understudy.models.tokenizer import train_tokenizer
from understudy.sections import ModelSection
from understudy.settings import ModelSettings, PretrainSettings

TINY = PretrainSettings(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    vocab_size=300,
    steps=30,
    batch_size=4,
    sequence_length=16,
    learning_rate=1e-2,
)
CORPUS = [text * 20 for text in TEXTS]


def section(folder: Path, **settings: Any) -> ModelSection:
    model = ModelSettings.model_validate(settings)
    return ModelSection(seed=1, cache=str(folder), role="proxy", model=model, threads=1)


def no_corpus() -> list[str]:
    raise AssertionError("a given model needs no corpus")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(tmp_path / "my llama", llama_config())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_a_folder_of_any_architecture(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save(tmp_path / "Modell 'ä'", configs()[architecture])
    made = prepare_model(section(tmp_path, model_name_or_path=str(folder), quantization="nf4"), no_corpus, None)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    assert (made.source, made.path, made.model_type, made.quantization) == ("local", str(folder), architecture, "nf4")
    assert (made.hidden_size, made.num_hidden_layers, made.vocab_size) == (48, 2, 320)
    assert made.parameters == reference.num_parameters()
    plain = load_base(made.model_copy(update={"quantization": "none"}), EXECUTION, "lora")
    tokens = torch.tensor([load_tokenizer(made)("def add(a, b):")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(plain(tokens).logits, reference(tokens).logits)


def test_the_digest_follows_every_file_that_is_loaded_and_no_other(llama: Path, tmp_path: Path) -> None:
    def sha256() -> str:
        return prepare_model(section(tmp_path, model_name_or_path=str(llama)), no_corpus, None).sha256

    first = sha256()
    (llama / "README.md").write_text("about it", encoding="utf-8")
    (llama / "optimizer.pt").write_bytes(b"state")
    assert sha256() == first
    seen = {first}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        content = (llama / name).read_bytes()
        (llama / name).write_bytes(content + b"\n" if name.endswith("json") else content[:-1] + b"\x01")
        seen.add(sha256())
        (llama / name).write_bytes(content)
    assert len(seen) == 4
    assert sha256() == first


@pytest.mark.parametrize(
    ("remove", "missing"),
    [
        ("config.json", r"lacks config\.json"),
        ("model.safetensors", r"lacks weights \(model\*\.safetensors or pytorch_model\*\.bin\)"),
        ("tokenizer.json", r"lacks a tokenizer"),
    ],
)
def test_what_a_folder_lacks_is_named(remove: str, missing: str, llama: Path, tmp_path: Path) -> None:
    (llama / remove).unlink()
    with pytest.raises(ModelError, match=f"my llama {missing}"):
        prepare_model(section(tmp_path, model_name_or_path=str(llama)), no_corpus, None)


def test_missing_shards_adapters_and_quantized_checkpoints_are_named(llama: Path, tmp_path: Path) -> None:
    def error() -> str:
        with pytest.raises(ModelError) as raised:
            prepare_model(section(tmp_path, model_name_or_path=str(llama)), no_corpus, None)
        return str(raised.value)

    index = llama / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}), encoding="utf-8")
    assert "the shard model-00002-of-00002.safetensors" in error()
    index.unlink()
    config = json.loads((llama / "config.json").read_text(encoding="utf-8"))
    quantized = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (llama / "config.json").write_text(json.dumps(quantized), encoding="utf-8")
    assert "is quantized already" in error()
    (llama / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}), encoding="utf-8")
    assert "can't be loaded as a causal language model" in error()
    (llama / "config.json").rename(llama / "adapter_config.json")
    assert "this is an adapter; merge it" in error()


def test_shards_without_an_index_and_half_files_are_named(llama: Path, tmp_path: Path) -> None:
    def error() -> str:
        with pytest.raises(ModelError) as raised:
            prepare_model(section(tmp_path, model_name_or_path=str(llama)), no_corpus, None)
        return str(raised.value)

    whole = (llama / "model.safetensors").read_bytes()
    lone = (llama / "model.safetensors").rename(llama / "model-00001-of-00009.safetensors")
    shards = ", ".join(f"model-0000{number}-of-00009.safetensors" for number in range(2, 7))
    assert f"lacks the shards {shards} and 3 more, the index model.safetensors.index.json; is the download" in error()
    lone.rename(llama / "model-00001-of-00001.safetensors")
    assert "lacks the index model.safetensors.index.json; is the download complete?" in error()
    (llama / "model-00001-of-00001.safetensors").rename(llama / "model.safetensors")
    (llama / "model-00002-of-00002.safetensors").write_bytes(whole)  # left over; transformers takes the single file
    prepare_model(section(tmp_path, model_name_or_path=str(llama)), no_corpus, None)
    for length in (0, 100, len(whole) - 1):
        (llama / "model.safetensors").write_bytes(whole[:length])
        assert "model.safetensors isn't a whole file of weights" in (said := error())
        assert f"it has {length:,} bytes); is the download complete?" in said


def test_chat_data_need_a_chat_template(llama: Path, tmp_path: Path) -> None:
    made = section(tmp_path, model_name_or_path=str(llama))
    prepare_model(made, no_corpus, "messages")
    (llama / "chat_template.jinja").unlink()
    prepare_model(made, no_corpus, "alpaca")
    with pytest.raises(ModelError, match="no chat template"):
        prepare_model(made, no_corpus, "messages")


def test_a_folder_that_is_not_there(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        prepare_model(section(tmp_path, model_name_or_path=str(tmp_path / "nothing")), no_corpus, None)
    with pytest.raises(ModelError, match=r"an id on the hub has its owner .*`openai-community/gpt2`.*`OWNER/gpt2`"):
        prepare_model(section(tmp_path, model_name_or_path="gpt2"), no_corpus, None)
    with pytest.raises(ModelError, match="`revision: main` goes with hub models"):
        prepare_model(section(tmp_path, model_name_or_path=str(llama), revision="main"), no_corpus, None)


def test_the_hub_that_cannot_be_reached() -> None:
    code = (
        "from understudy.models import hub; from understudy.errors import ModelError\n"
        "try: hub.fetch('nobody/nothing', None)\n"
        "except ModelError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "PATH": ""}
    shown = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert "the hub can't be reached to fetch `nobody/nothing`" in shown.stdout


def test_who_has_no_access_is_told_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    answer = SimpleNamespace(headers={}, request=None)
    for kind, words in (
        (
            GatedRepoError,
            r"ask for it on https://huggingface\.co/meta/llama, and log in with `hf auth login`, .* HF_TOKEN",
        ),
        (RepositoryNotFoundError, r"no model `meta/llama` on the hub.* for a private one log in with `hf auth login`"),
    ):

        def refuse(*_: object, kind: type[Exception] = kind, **__: object) -> None:
            raise kind("no", response=answer)  # type: ignore[call-arg]

        monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
        with pytest.raises(ModelError, match=words):
            hub.fetch("meta/llama", None)


def test_the_hub_gives_the_files_that_are_needed(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of huggingface_hub as it lies on disk, read without a network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--small"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    llama.rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.fetch("somebody/small", None) == repository / "snapshots" / commit
    made = prepare_model(section(tmp_path, model_name_or_path="somebody/small"), no_corpus, None)
    assert (made.source, made.revision) == ("hub", commit)


def test_what_happens_to_a_model_is_said_before_it_may_take_long(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes to nothing: here each ends for want of a file, a network or a corpus."""
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "_terminal", terminal)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (llama / "model.safetensors").unlink()
    for given in (
        {"model_name_or_path": str(llama)},
        {"model_name_or_path": "./nowhere"},
        {"model_name_or_path": "nobody/nothing"},
        {"pretrain": TINY.model_dump()},
    ):
        with pytest.raises((ModelError, AssertionError)):
            prepare_model(section(tmp_path, **given), no_corpus, None)
    assert terminal.getvalue().splitlines() == [
        f"preparing the proxy: reading {llama}",
        "preparing the proxy: reading ./nowhere",
        "preparing the proxy: fetching nobody/nothing, as far as the hub's cache on this machine lacks it",
        "preparing the proxy: pretraining llama-16x1, unless it is in the cache",
    ]


def test_a_built_in_model_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare_model(section(tmp_path, pretrain=TINY.model_dump()), lambda: CORPUS, None)
    assert made.source == "pretrained"
    assert made.parameters == 300 * 16 + 4 * 16 * 16 + 3 * 16 * 24 + 3 * 16
    base = load_base(made, EXECUTION, "lora")
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    monkeypatch.setattr(pretrain, "pretrain", None)  # a second study must not need it
    assert prepare_model(section(tmp_path, pretrain=TINY.model_dump()), lambda: CORPUS, None) == made
    wider = TINY.model_copy(update={"hidden_size": 32})
    with pytest.raises(TypeError):
        cache.pretrained(tmp_path, wider, CORPUS, 1, 1)
    assert len(list((tmp_path / "tokenizers").glob("[!.]*"))) == 1  # the same for both sizes


@pytest.mark.long
def test_pretraining_is_the_same_in_another_process_and_learns(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from understudy.process import set_threads; set_threads(1)\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_models_prepare import *; cache.pretrained(Path(sys.argv[1]), TINY, CORPUS, 1, 1)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a"), str(Path(__file__).parent)]
    subprocess.run(arguments, check=True, env={"PYTHONHASHSEED": "5", "PATH": "", "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    folder = cache.pretrained(tmp_path / "b", TINY, CORPUS, 1, 1)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "a" / "models" / folder.name / name).read_bytes()
    from transformers import AutoTokenizer

    losses = pretrain.pretrain(TINY, CORPUS, AutoTokenizer.from_pretrained(folder), 1, tmp_path / "c")
    assert losses[0] > 5.0
    assert losses[-1] < 0.6 * losses[0]


def test_the_chunked_loss_is_torch_s() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(600, 12, requires_grad=True)
    weight = torch.randn(50, 12, requires_grad=True)
    labels = torch.randint(0, 50, (600,))
    loss = torch.nn.functional.cross_entropy(hidden @ weight.T, labels)
    expected = torch.autograd.grad(loss, (hidden, weight))
    assert pretrain.backward_in_chunks(hidden, weight, labels) == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close((hidden.grad, weight.grad), expected, rtol=1e-5, atol=1e-7)


def test_the_tokenizer_gives_every_text_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name in ("a", "b"):
        train_tokenizer(CORPUS, 310, tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert len(tokenizer) == 310
    for text in (*TEXTS, "日本\t\n  \x00🎉 tabs"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_folder_of_the_cache_is_made_whole_and_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole", encoding="utf-8")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cache.kept(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    threads = [threading.Thread(target=cache.kept, args=(tmp_path / "x", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["file", "sha256sums.txt"]


def test_experts_that_would_not_be_quantized_are_refused(tmp_path: Path) -> None:
    """What bitsandbytes makes of them is asked, too: if it learns to quantize them, this is no longer needed."""
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=320,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        moe_intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        eos_token_id=0,
        pad_token_id=1,
    )
    folder = save(tmp_path / "moe", config)
    with pytest.raises(ModelError, match=r"`quantization: nf4` would leave 46 % of the weights"):
        prepare_model(section(tmp_path, model_name_or_path=str(folder), quantization="nf4"), no_corpus, None)
    made = prepare_model(section(tmp_path, model_name_or_path=str(folder)), no_corpus, None)
    model = load_base(made.model_copy(update={"quantization": "nf4"}), EXECUTION, "lora")
    kept = sum(each.numel() for each in model.parameters() if each.dim() > 2 and each.dtype == torch.float32)
    assert kept > 0.4 * made.parameters


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("Qwen3MoeConfig", {"num_experts": 16}),
        ("MixtralConfig", {"num_local_experts": 16}),
        ("DeepseekV3Config", {"n_routed_experts": 16, "first_k_dense_replace": 1}),
    ],
)
def test_of_experts_those_count_that_a_token_passes_through(kind: str, sizes: dict[str, int]) -> None:
    """Against torch's own count of the operations of a forward pass."""
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    common = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
    common |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = getattr(transformers, kind)(**common, num_hidden_layers=2, eos_token_id=0, pad_token_id=1, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    active = checkpoint._active_parameters(model, config)
    assert active is not None
    tokens = torch.arange(2, 10).unsqueeze(0)  # few, since scores of attention are counted there
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    embedding = model.get_input_embeddings().weight.numel()
    assert counter.get_total_flops() == pytest.approx(2 * (active - embedding) * tokens.numel(), rel=0.01)
