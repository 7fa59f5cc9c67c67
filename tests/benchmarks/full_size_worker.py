"""One measurement of `full_size.py`: `python full_size_worker.py {understudy|compiled|trainer|trl} {order as JSON}`.

Prints a line of JSON: tokens per second (padding doesn't count), MFU, peak bytes, mean loss, and of the program's own
loop the passes of a step. The base comes from the program's own loader for all, so that they train the same weights.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from packs.tasks import EXAMPLES, Shape, Task, random_examples, spec_of
from understudy.data.encoding import Encoded
from understudy.models.estimates import pass_tokens
from understudy.models.execution import has_flash_attention
from understudy.models.loading import load_base
from understudy.models.peak_flops import peak_flops
from understudy.settings import Quantization, TrainingSettings
from understudy.train import loop, memory
from understudy.train.adapters import fresh_adapter, trainable
from understudy.train.batches import batches, micro_batches
from understudy.train.engine import prepare_torch
from understudy.train.history import History
from understudy.train.layers import compiled
from understudy.train.ranks import Ranks
from understudy.trial import CPU_PASS_TOKENS, ModelCard, ResolvedExecution, TrialSpec

IGNORED = -100  # a label that has no loss
Contender = Callable[[int], AbstractContextManager[Callable[[], float]]]  # of so many steps, ready to train


def main() -> None:
    """Train once to warm up, once by the clock, and tell."""
    name, order = sys.argv[1], json.loads(sys.argv[2])
    shape, on_gpu = Shape(**order["shape"]), order["device"] == "cuda"
    checkpoint = order["checkpoint"]
    card = card_of(shape, checkpoint, order["base"], parameters(checkpoint))
    flash = name != "trainer" and on_gpu and has_flash_attention()  # the Trainer pads its rows
    execution = ResolvedExecution(
        device=order["device"],
        threads=1,
        processes=1,
        micro_batch_size=order["rows"],
        dtype="bfloat16" if on_gpu else "float32",
        gradient_checkpointing=False,
        attention="flash_attention_2" if flash else None,
        padding_free=flash,
        torch_compile=name == "compiled",
        pass_tokens=pass_tokens(card, "bfloat16", [torch.cuda.get_device_name()], "lora")[0]
        if on_gpu
        else CPU_PASS_TOKENS,
    )
    if name in ("understudy", "compiled"):
        prepare_torch(execution)
    else:  # the peers' fastest settings don't ask for deterministic kernels
        torch.set_num_threads(execution.threads)
    base = load_base(card, execution, "lora")
    examples = random_examples(shape, ragged=True)
    contender: Contender = {"trainer": theirs, "trl": trl}.get(name, ours)(base, examples, execution)

    with contender(2) as train:
        train()
    memory.reset_peak()
    with contender(EXAMPLES // shape.rows) as train:
        started = time.perf_counter()
        loss = train()
        seconds = time.perf_counter() - started

    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    tokens = sum(len(example.input_ids) for example in examples.train)
    peak = peak_flops(torch.cuda.get_device_name() if on_gpu else None, execution.dtype)
    flops = 4 * card.parameters * tokens  # as in `trial.Cost`
    answer = {
        "rate": tokens / seconds,
        "mfu": flops / (seconds * peak) if peak else None,
        "peak_bytes": memory.peak_bytes(),
        "loss": loss,
    }
    if name in ("understudy", "compiled"):
        steps = EXAMPLES // shape.rows
        every = batches(examples.train, shape.rows, steps, spec_for(steps, shape.rows).seed)
        answer["passes"] = sum(len(micro_batches(batch, execution, 0, 1)) for batch in every) / steps
    print(json.dumps(answer))


def card_of(shape: Shape, checkpoint: str, base: Quantization, parameters: int) -> ModelCard:
    """The checkpoint as `prepare_model` would describe it."""
    return ModelCard(
        role="target",
        source="local",
        name="random",
        path=checkpoint,
        sha256="",
        model_type=shape.architecture,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        vocab_size=shape.vocabulary,
        parameters=parameters,
        quantization=base,
    )


def parameters(checkpoint: str) -> int:
    """The model's, counted without its weights: a quantized one hides their number."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    return sum(each.numel() for each in model.parameters())


def spec_for(steps: int, batch_size: int) -> TrialSpec:
    task = Task("solo", 1, batch_size, steps, 0, ragged=True, rank=16, dropout=0.0)
    return spec_of(task, 0)


def ours(base: Any, examples: loop.Examples, execution: ResolvedExecution) -> Contender:
    """The program's own loop, with one evaluation on one example at its end."""
    batch_size = Shape(**json.loads(sys.argv[2])["shape"]).rows

    @contextmanager
    def ready(steps: int) -> Iterator[Callable[[], float]]:
        spec, history = spec_for(steps, batch_size), History()

        def train() -> float:
            loop.train(model, spec, examples, execution, TrainingSettings(evaluations=1), Ranks(), history)
            return float(history.metrics["train_loss"])

        with trainable(base, spec, execution) as model, compiled(model, execution.torch_compile):
            yield train

    return ready


def theirs(base: Any, examples: loop.Examples, execution: ResolvedExecution) -> Contender:
    """transformers' Trainer on peft's model: fused AdamW, rows sorted by length, rows padded to the longest."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": each.input_ids, "labels": labels_of(each)} for each in examples.train]

    @contextmanager
    def ready(steps: int) -> Iterator[Callable[[], float]]:
        with tempfile.TemporaryDirectory() as folder, fresh_adapter(base, spec_for(steps, 1)) as model:
            settings = TrainingArguments(
                **common(folder, steps, execution),
                train_sampling_strategy="group_by_length",
                remove_unused_columns=False,
            )
            trainer = Trainer(model=model, args=settings, train_dataset=rows, data_collator=Padded(execution.device))
            yield lambda: float(trainer.train().training_loss)

    return ready


def trl(base: Any, examples: loop.Examples, execution: ResolvedExecution) -> Contender:
    """TRL's SFTTrainer: rows packed to the full length, its fused kernels and FlashAttention where they are installed.

    An epoch is as many packs as the examples fill, so it takes fewer steps; the tokens are the same. Rows are packed
    before the clock starts.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    longest = max(len(each.input_ids) for each in examples.train)
    data = Dataset.from_list(
        [{"input_ids": each.input_ids, "completion_mask": completion_mask(each)} for each in examples.train]
    )
    packing = has_flash_attention()  # else packed rows would see each other

    @contextmanager
    def ready(steps: int) -> Iterator[Callable[[], float]]:
        with tempfile.TemporaryDirectory() as folder, fresh_adapter(base, spec_for(steps, 1)) as model:
            limits = common(folder, steps, execution)
            if steps > 2:
                limits |= {"max_steps": -1, "num_train_epochs": 1}
            settings = SFTConfig(
                **limits,
                packing=packing,
                max_length=longest,
                completion_only_loss=True,
                use_liger_kernel=find_spec("liger_kernel") is not None,
            )
            trainer = SFTTrainer(model=model, args=settings, train_dataset=data)
            yield lambda: float(trainer.train().training_loss)

    return ready


def common(folder: str, steps: int, execution: ResolvedExecution) -> dict[str, Any]:
    """Settings that both peers share."""
    batch_size = Shape(**json.loads(sys.argv[2])["shape"]).rows
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": execution.micro_batch_size,
        "gradient_accumulation_steps": batch_size // execution.micro_batch_size,
        "learning_rate": 5e-3,
        "optim": "adamw_torch_fused",
        "bf16": execution.dtype == "bfloat16",
        "use_cpu": execution.device == "cpu",
        "dataloader_pin_memory": execution.device == "cuda",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def completion_mask(example: Encoded) -> list[int]:
    """1 where the loss counts."""
    start = max(example.completion_start, 1)
    return [0] * start + [1] * (len(example.input_ids) - start)


def labels_of(example: Encoded) -> list[int]:
    """The tokens that count, as the Trainer wants them."""
    return [
        token if counts else IGNORED for token, counts in zip(example.input_ids, completion_mask(example), strict=True)
    ]


class Padded:
    """Rows padded on the right to the longest, on GPUs to a multiple of 8, as the program's own."""

    def __init__(self, device: str) -> None:
        self.multiple = 8 if device == "cuda" else 1

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.multiple) * self.multiple
        fill = {"input_ids": 0, "labels": IGNORED}
        return {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
            for name, value in fill.items()
        }


if __name__ == "__main__":
    main()
