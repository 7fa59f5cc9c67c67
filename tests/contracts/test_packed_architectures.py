"""One packed pass on every architecture that can be packed: losses and gradients are peft's and autograd's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from packed_study import EXAMPLES
from reference_loop import labelled, training_loss, with_adapter
from training_study import EOS, PAD, VOCABULARY, make_spec
from understudy.errors import ModelError
from understudy.packing import PACKABLE
from understudy.train.packed import head
from understudy.train.packed.adapters import Fresh, Stack, Weights
from understudy.train.packed.base import Base, read_base
from understudy.train.packed.decoder import Decoder
from understudy.train.packed.layout import Layout
from understudy.train.packed.rows import Corpus
from understudy.trial import TrialSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

GROUPED = {"num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Rows have up to 40 tokens: windows of 8 are shorter.
VARIANTS: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("llama", {}),
    ("llama", {**GROUPED, "num_hidden_layers": 1}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3}),
    ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, "head_dim": 16}),
    ("llama", {"rope_parameters": YARN, "rms_norm_eps": 1e-2}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh", **GROUPED}),
    ("llama", {"sliding_window": 8}),  # a key that Llama's code doesn't read
    ("mistral", {**GROUPED, "sliding_window": None}),
    ("mistral", {**GROUPED, "sliding_window": 8, "head_dim": 16}),
    ("qwen2", GROUPED),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True}),
    ("qwen3", {**GROUPED, "head_dim": 16}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0, "attention_bias": True}),
    ("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}),
)
SPECS = (
    make_spec("a", lora_r=3, lora_alpha=5, batch_size=3),
    make_spec("b", lora_r=8, use_rslora=True, lora_target_modules="v_proj,down_proj", label_smoothing_factor=0.1),
    make_spec("c", lora_r=1, lora_alpha=2, batch_size=7, lora_target_modules="q_proj,k_proj,o_proj,up_proj"),
)
EXAMPLES_OF = {"a": [0, 5, 3], "b": list(range(6, 14)), "c": list(range(14, 21))}


def tiny(kind: str, **changes: Any) -> Any:
    """A random model of two layers in which no weight is special: neither biases zero nor norms one."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    config = AutoConfig.for_model(kind, **{**sizes, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").requires_grad_(False)
    for weight in model.parameters():
        weight.add_(torch.randn(weight.shape), alpha=0.2)
    model.config.use_cache = False
    return model.eval()


def random_weights(layout: Layout, seed: int) -> Tensor:
    """A flat vector in which B isn't zero either."""
    return 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))


def packed_pass(
    base: Base, layouts: Mapping[str, Layout], values: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Each trial's loss and its adapter's flat gradient."""
    stack = Stack(len(SPECS), max(layout.size for layout in layouts.values()), base.device)
    for slot, spec in enumerate(SPECS):
        own = values[spec.id]
        weights = Weights(own, torch.zeros_like(own), torch.zeros_like(own))
        stack.put(slot, layouts[spec.id], weights, spec.hyperparameters, 0)
    corpus = Corpus(EXAMPLES.train, base.device)
    rows = corpus.rows([(slot, EXAMPLES_OF[spec.id]) for slot, spec in enumerate(SPECS)])
    decoder = Decoder(base, stack, longest=40)
    with torch.no_grad():
        hidden, tape = decoder.forward(rows, {slot: torch.Generator() for slot in range(len(SPECS))})
        per_token = torch.cat([torch.full((count,), 1 / count) for count in rows.counts])
        smoothing = [
            torch.full((n,), spec.hyperparameters["label_smoothing_factor"])
            for n, spec in zip(rows.counts, SPECS, strict=True)
        ]
        losses, gradient = head.losses_and_gradient(
            hidden[rows.answers], base.head, rows.targets, torch.cat(smoothing), per_token
        )
        assert tape is not None
        decoder.backward(tape, torch.zeros_like(hidden).index_copy_(0, rows.answers, gradient))
    shares = torch.split(losses * per_token, list(rows.counts))
    flat = {spec.id: stack._gradients[slot, : layouts[spec.id].size] for slot, spec in enumerate(SPECS)}
    return {spec.id: float(own.sum()) for spec, own in zip(SPECS, shares, strict=True)}, flat


def by_layer(layout: Layout, vector: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, in) and B (out, r) of each adapted layer."""
    found = {}
    for weights, group, sites in zip(layout.views(vector), layout.groups, layout.sites, strict=True):
        for a, b, index in zip(weights.a.chunk(max(len(sites), 1)), weights.b, sites, strict=False):
            found[group.sites[index].name] = (a, b.t())
    return found


def reference_pass(model: Any, spec: TrialSpec, layout: Layout, values: Tensor) -> tuple[float, dict[str, Any]]:
    """The same through peft, and torch's autograd."""
    adapted = with_adapter(model, spec)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    own = by_layer(layout, values)
    assert own.keys() == layers.keys()
    for name, (a, b) in own.items():
        layers[name].lora_A["default"].weight.data.copy_(a)
        layers[name].lora_B["default"].weight.data.copy_(b)
    batch = labelled([EXAMPLES.train[index] for index in EXAMPLES_OF[spec.id]])
    loss = training_loss(adapted.train(), batch, spec.hyperparameters["label_smoothing_factor"])
    loss.backward()
    gradients = {
        name: (layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad)
        for name, layer in layers.items()
    }
    adapted.unload()
    return loss.item(), gradients


@pytest.mark.parametrize(
    ("kind", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_losses_and_gradients_are_autograds(kind: str, changes: Mapping[str, Any]) -> None:
    model = tiny(kind, **changes)
    base = read_base(model, dense=True)
    fresh = Fresh(base)
    layouts = {spec.id: fresh.layout(spec) for spec in SPECS}
    values = {spec.id: random_weights(layouts[spec.id], seed) for seed, spec in enumerate(SPECS)}
    losses, gradients = packed_pass(base, layouts, values)
    for spec in SPECS:
        loss, expected = reference_pass(model, spec, layouts[spec.id], values[spec.id])
        assert losses[spec.id] == pytest.approx(loss, rel=1e-5)
        for name, found in by_layer(layouts[spec.id], gradients[spec.id]).items():
            for own, reference in zip(found, expected[name], strict=True):
                assert reference.abs().max() > 0
                torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


def test_every_packable_architecture_is_tested() -> None:
    assert {kind for kind, _ in VARIANTS} == set(PACKABLE)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma", {}, "of type gemma"),
        ("phi3", {}, "of type phi3"),
        ("olmo2", {}, "of type olmo2"),
        ("granite", {"logits_scaling": 4.0}, "of type granite"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type: dynamic",
        ),
    ],
)
def test_models_that_compute_otherwise_are_refused(kind: str, changes: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"{reason}.*packed: false"):
        read_base(tiny(kind, **changes), dense=True)


def test_models_with_other_weights_are_refused() -> None:
    model = tiny("llama")
    model.model.layers[1].self_attn.gate = torch.nn.Linear(32, 4)
    with pytest.raises(ModelError, match=r"weights .*layers\.1\.self_attn\.gate"):
        read_base(model, dense=True)
    model = tiny("llama")
    model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=True)
    with pytest.raises(ModelError, match="head"):
        read_base(model, dense=True)
