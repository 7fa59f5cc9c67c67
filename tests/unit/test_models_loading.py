"""Bases in memory: quantized as the card says, unchanged by an evaluation, the same logits as transformers'."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import EXECUTION, card, configs, llama_config, save
from understudy.errors import ModelError
from understudy.models.loading import load_base, load_tokenizer, repeat_shared_keys
from understudy.models.quantization import import_bitsandbytes, quantizing_on

TOKENS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), llama_config())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def quantized_layers(model: Any) -> dict[str, Any]:
    bitsandbytes = import_bitsandbytes()
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_an_unquantized_base_has_the_logits_of_transformers(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save(tmp_path / "model", configs()[architecture])
    reference = AutoModelForCausalLM.from_pretrained(folder)
    base = load_base(card(folder), EXECUTION, "lora")
    assert torch.equal(logits(base), logits(reference))
    assert base.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert base.config.use_cache is False
    full = load_base(card(folder), EXECUTION, "full")
    assert all(parameter.requires_grad for parameter in full.parameters())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_nf4_quantizes_every_linear_layer_but_the_head(architecture: str, tmp_path: Path) -> None:
    bitsandbytes = import_bitsandbytes()
    folder = save(tmp_path / "model", configs()[architecture])
    original = load_base(card(folder), EXECUTION, "lora")
    layers = quantized_layers(load_base(card(folder, "nf4"), EXECUTION, "lora"))
    assert len(layers) == {"llama": 14, "qwen2": 14, "gpt2": 8}[architecture]
    for name, layer in layers.items():
        state = layer.weight.quant_state
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
        full = original.get_submodule(name).weight
        full = full.T if architecture == "gpt2" else full  # Conv1D is stored the other way round
        assert (state.quant_type, state.nested) == ("nf4", True)
        assert layer.weight.data.nbytes == full.nbytes / 8
        assert state.absmax.nbytes == -(-full.numel() // 64)  # one byte for 64 weights
        assert torch.nn.functional.cosine_similarity(weight.flatten(), full.flatten(), dim=0) > 0.99
        assert (
            weight - full
        ).abs().max() < 0.17 * full.abs().max()  # half of NF4's widest gap, and double quantization


def test_nf4_products_are_those_of_the_dequantized_weights(llama: Path) -> None:
    bitsandbytes = import_bitsandbytes()
    base = load_base(card(llama, "nf4"), EXECUTION, "lora")
    plain = load_base(card(llama), EXECUTION, "lora")
    for name, layer in quantized_layers(base).items():
        weight = _dequantized(layer, bitsandbytes)
        plain.get_submodule(name).weight.data.copy_(weight)
    torch.testing.assert_close(logits(base), logits(plain), rtol=1e-5, atol=1e-6)


def _dequantized(layer: Any, bitsandbytes: Any) -> torch.Tensor:
    """The weights by the textbook: a code and a scale for each run of 64, without the library's fast kernels."""
    state = layer.weight.quant_state
    packed = layer.weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    scales = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    values = state.code[codes].reshape(-1)
    values = values[: state.shape.numel()]
    return (values * scales.repeat_interleave(64)[: values.numel()]).reshape(state.shape)


@pytest.mark.parametrize("shape", [(4, 64), (40, 48), (7, 80), (3, 96), (5, 33), (1, 10)], ids=str)
def test_4_bit_weights_have_the_scales_of_their_own_runs_of_64(shape: tuple[int, int]) -> None:
    bitsandbytes = import_bitsandbytes()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = bitsandbytes.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type="nf4")
    layer.weight.data = weight
    layer = layer.to("cpu")
    found = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(found, _dequantized(layer, bitsandbytes), rtol=1e-6, atol=1e-6)


def test_an_evaluation_leaves_a_4_bit_base_as_it_was(llama: Path) -> None:
    base = load_base(card(llama, "nf4"), EXECUTION, "lora")
    layers = quantized_layers(base)
    before = {name: layer.weight.data.clone() for name, layer in layers.items()}
    scales = {name: copy.deepcopy(layer.weight.quant_state.absmax) for name, layer in layers.items()}
    trained_on = logits(base.train())
    evaluated = logits(base.eval())
    trained_on_again = logits(base.train())
    assert torch.equal(trained_on, evaluated)
    assert torch.equal(trained_on, trained_on_again)
    for name, layer in layers.items():
        assert torch.equal(layer.weight.data, before[name])
        assert torch.equal(layer.weight.quant_state.absmax, scales[name])


def test_the_trap_is_there_without_our_switch() -> None:
    """Where this fails the library has changed, and `keep_weights_unpacked` may go."""
    bitsandbytes = import_bitsandbytes()
    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("this processor has no AVX512-BF16")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    x = torch.randn(4, 64)
    trained_on = layer.train()(x)
    layer.eval()(x)
    assert not torch.equal(layer.train()(x), trained_on)


def test_gradients_pass_through_a_quantized_base(llama: Path) -> None:
    for quantization in ("nf4", "int8"):
        base = load_base(card(llama, quantization), EXECUTION, "lora").train()
        embedded = base.get_input_embeddings()(TOKENS).requires_grad_()
        base(inputs_embeds=embedded).logits.sum().backward()
        assert embedded.grad is not None
        assert embedded.grad.abs().sum() > 0


def test_int8_rows_do_not_change_each_other(llama: Path) -> None:
    base = load_base(card(llama, "int8"), EXECUTION, "lora")
    plain = load_base(card(llama), EXECUTION, "lora")
    layer = base.get_submodule("model.layers.0.mlp.gate_proj")
    assert len(quantized_layers(base)) == 14
    assert layer.weight.dtype == torch.int8
    calm = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    wild = calm.clone()
    wild[8:, 5] = 100.0  # an outlier column, in the other rows only
    with torch.no_grad():
        assert torch.equal(layer(calm)[:8], layer(wild)[:8])
        torch.testing.assert_close(
            layer(calm), plain.get_submodule("model.layers.0.mlp.gate_proj")(calm), rtol=0.1, atol=0.05
        )


def test_full_fine_tuning_of_a_quantized_base_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"models\.proxy\.quantization: none"):
        load_base(card(llama, "nf4"), EXECUTION, "full")


def test_a_checkpoint_that_is_gone_is_named_with_what_to_do(tmp_path: Path) -> None:
    for load in (load_tokenizer, lambda gone: load_base(gone, EXECUTION, "lora")):
        with pytest.raises(ModelError, match=r"nowhere is gone; delete models/proxy/model\.json"):
            load(card(tmp_path / "nowhere"))


def test_a_tokenizer_pads_with_what_it_has(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert load_tokenizer(card(llama)).pad_token == "<|pad|>"
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "no-pad")
    assert load_tokenizer(card(tmp_path / "no-pad")).pad_token == "<|endoftext|>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "no-end")
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_tokenizer(card(tmp_path / "no-end"))


@pytest.mark.parametrize("kind", ["Params4bit", "Int8Params"])
def test_weights_for_the_host_are_quantized_where_it_is_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bitsandbytes' own kernel of that device, with the same outcome; afterwards it is as before."""
    parameter = getattr(import_bitsandbytes().nn, kind)
    own, asked = parameter._quantize, []

    def noted(self: Any, place: torch.device) -> Any:
        asked.append(str(place))
        return own(self, place)

    monkeypatch.setattr(parameter, "_quantize", noted)
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    plain = parameter(weights, requires_grad=False).to("cpu")
    with quantizing_on(torch.device("cpu", 0)):
        moved = parameter(weights, requires_grad=False).to("cpu")
    parameter(weights, requires_grad=False).to("cpu")
    assert asked == ["cpu", "cpu:0", "cpu"]
    assert moved.device == plain.device == torch.device("cpu")
    assert torch.equal(moved.data, plain.data)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_what_waits_on_the_host_to_be_sharded_is_as_its_file_has_it(architecture: str, tmp_path: Path) -> None:
    """Cast afterwards, it is what is loaded in float32: buffers that no file has aren't rounded on the way."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Gemma3TextConfig(vocab_size=99, hidden_size=48, num_hidden_layers=2, intermediate_size=64, **heads)
    folder = save(tmp_path / "model", llama_config() if architecture == "llama" else config)
    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    waiting = load_base(card(folder), EXECUTION, "full", "host")
    assert {parameter.dtype for parameter in waiting.parameters()} == {torch.bfloat16}
    whole = load_base(card(folder), EXECUTION, "full")
    assert whole.dtype == torch.float32
    assert dict(waiting.named_buffers()).keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert torch.equal(dict(waiting.named_buffers())[name], buffer)
        assert dict(waiting.named_buffers())[name].dtype == buffer.dtype
    assert torch.equal(logits(waiting.float()), logits(whole))


@pytest.mark.parametrize(
    ("filed", "said", "found"),
    [
        ("float32", "bfloat16", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
        ("float16", "bfloat16", torch.float16),
        ("mixed", "bfloat16", torch.float32),
    ],
)
def test_weights_are_not_rounded_to_what_a_config_says(filed: str, said: str, found: Any, tmp_path: Path) -> None:
    """As where they were trained in float32 beside a config that still has its base's type."""
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "model", llama_config())
    file, config = folder / "model.safetensors", folder / "config.json"
    weights = load_file(file)
    kinds = [torch.float32, torch.bfloat16] if filed == "mixed" else [getattr(torch, filed)]
    save_file({n: w.to(kinds[i % len(kinds)]) for i, (n, w) in enumerate(weights.items())}, file, {"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": said}))
    waiting = load_base(card(folder), EXECUTION, "full", "host")
    assert {parameter.dtype for parameter in waiting.parameters()} == {found}
    assert torch.equal(logits(waiting.float()), logits(load_base(card(folder), EXECUTION, "full")))


def test_heads_that_share_keys_get_copies_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for float32 on a GPU; what the model says is the same."""
    from transformers.integrations import sdpa_attention

    heads: list[tuple[int, int]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        heads.append((query.shape[1], key.shape[1]))
        return attend(query, key, *rest, **named)

    shared = llama_config()
    shared.num_key_value_heads = 2
    base = load_base(card(save(tmp_path / "model", shared)), EXECUTION, "lora")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)  # put back afterwards
    before = logits(base)
    repeat_shared_keys()
    torch.testing.assert_close(logits(base), before)
    assert heads == [(4, 2)] * 2 + [(4, 4)] * 2
