"""What is trained: peft meets bitsandbytes only where a base needs it, the layers named, the base's dropout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

from tiny_models import configs
from training_study import execution, make_spec, tiny_llama
from understudy.errors import ConfigError
from understudy.train.adapters import attention_dropout, target_layers, trainable

CODE = """
import sys
from pathlib import Path
from tiny_models import card, llama_config, save
from understudy.models.loading import load_base
from understudy.train.adapters import trainable
from understudy.trial import ResolvedExecution, TrialSpec
from understudy.hyperparameters import complete

execution = ResolvedExecution(
    device="cpu", threads=1, processes=1, micro_batch_size=8, dtype="float32", gradient_checkpointing=False
)
spec = TrialSpec(id="x", stage="proxy", origin="random", hyperparameters=complete({}, {}, "lora"), seed=1)
folder = save(Path(sys.argv[1]), llama_config())
for quantization in ("none", "nf4"):
    base = load_base(card(folder, quantization), execution, "lora")
    with trainable(base, spec, execution) as model:
        kinds = {type(module).__module__ for module in model.modules() if hasattr(module, "lora_A")}
    print(quantization, "bitsandbytes" in sys.modules, *kinds)
"""


@pytest.mark.long
def test_an_unquantized_base_spares_bitsandbytes_and_a_later_quantized_one_gets_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "none False peft.tuners.lora.layer",
        "nf4 True peft.tuners.lora.bnb",
    ]


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft on GPT-2, and mends it
@pytest.mark.parametrize(
    ("architecture", "modules"),
    [
        ("llama", "all-linear"),
        ("llama", "q_proj,v_proj"),
        ("llama", "layers.1.self_attn.o_proj,down_proj"),
        ("llama", "lm_head"),
        ("llama", "model.layers.0.mlp.up_proj"),
        ("gpt2", "all-linear"),
        ("gpt2", "c_attn"),
    ],
)
def test_the_layers_are_those_that_peft_adapts(architecture: str, modules: str) -> None:
    base = model_of(configs()[architecture])
    base.config.tie_word_embeddings = False  # peft warns of an adapter on a tied layer
    named = list(target_layers(base, modules))
    with trainable(base, make_spec(lora_target_modules=modules), execution()) as model:
        adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
        assert [name.removeprefix("base_model.model.") for name in adapted] == named
    assert named
    assert not any(hasattr(module, "lora_A") for module in base.modules())


@pytest.mark.parametrize("modules", ["query", "q_proj,query", "mlp", "embed_tokens", "norm", "proj"])
def test_names_that_no_linear_layer_has_are_refused(modules: str) -> None:
    expected = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    wrong = modules.removeprefix("q_proj,")
    with (
        pytest.raises(ConfigError, match=f"no linear layer named {wrong}; its linear layers are {expected}"),
        trainable(tiny_llama(), make_spec(lora_target_modules=modules), execution()),
    ):
        pass


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_OTHER = {"hidden_dropout": 0.0}


def dropping(architecture: str, rate: float) -> Any:
    """A model whose checkpoint says that it drops this share of its attention weights, in training mode."""
    kind, more = {
        "llama": (LlamaConfig, {"intermediate_size": 64}),
        "qwen2": (Qwen2Config, {"intermediate_size": 64, "num_key_value_heads": 2}),
        "gpt_neox": (GPTNeoXConfig, {"intermediate_size": 64, **NO_OTHER}),
    }[architecture]
    return model_of(kind(**SIZES, **more, attention_dropout=rate)).train()


def output(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)
    return model(input_ids=torch.arange(2, 34)[None], use_cache=False).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen2"])
def test_attention_dropout_acts_as_the_checkpoints_own_and_is_put_back(architecture: str) -> None:
    plain, with_some = dropping(architecture, 0.0), dropping(architecture, 0.3)
    none, some = output(plain), output(with_some)
    assert not torch.allclose(none, some)
    with attention_dropout(plain, 0.3), attention_dropout(with_some, 0.0):
        assert torch.equal(output(plain), some)
        assert torch.equal(output(with_some), none)
        assert torch.equal(output(plain.eval()), none)
    assert torch.equal(output(plain.train()), none)
    assert torch.equal(output(with_some), some)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_attention_dropout_is_set_while_a_trial_is_trained(method: Any) -> None:
    base = tiny_llama(attention_dropout=0.1)
    layers = [layer.self_attn for layer in base.model.layers]
    for rate in (0.0, 0.4):
        with trainable(base, make_spec(method=method, attention_dropout=rate), execution()):
            assert {layer.attention_dropout for layer in layers} == {rate}
        assert {layer.attention_dropout for layer in layers} == {0.1}
    with pytest.raises(KeyError), trainable(base, make_spec(method=method, attention_dropout=0.4), execution()):
        raise KeyError
    assert {layer.attention_dropout for layer in layers} == {0.1}


def test_a_model_with_dropout_modules_of_its_own_is_refused_unless_the_rate_is_0() -> None:
    base = model_of(configs()["gpt2"])
    with attention_dropout(base, 0.0):
        assert base.transformer.h[0].attn.attn_dropout.p == 0.1
    message = r"type gpt2 have none to set, but got 0\.2; its own dropout modules \(attn_dropout, .*\) keep .* at 0"
    with pytest.raises(ConfigError, match=message), attention_dropout(base, 0.2):
        pass


@pytest.mark.parametrize(
    ("device", "dtype", "casting"), [("cuda", "bfloat16", False), ("cuda", "float32", True), ("cpu", "bfloat16", True)]
)
def test_inputs_of_adapters_are_cast_but_under_autocast_on_gpus(device: str, dtype: str, casting: bool) -> None:
    base = tiny_llama()
    with trainable(base, make_spec(), execution(device=device, dtype=dtype)) as model:
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        assert layers
        assert {layer.cast_input_dtype_enabled for layer in layers} == {casting}
