"""Trained models out of the store: a base with an adapter, or all of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from understudy import watchdog
from understudy.checksums import require_unaltered
from understudy.errors import CorruptFileError
from understudy.models.loading import Place, load_base
from understudy.models.quantization import peft_for
from understudy.train import memory
from understudy.trial import ModelCard, ResolvedExecution


def trained_models(card: ModelCard, execution: ResolvedExecution, folders: Sequence[Path]) -> Iterator[Any]:
    """Yield each trained model in turn, in evaluation mode; the base is loaded once.

    Raises `CorruptFileError` where a file isn't what it was when it was written.
    A model is only whole until the next one is asked for: adapters are taken off again.
    """
    base: Any = None
    model: Any = None
    spread: Place = "spread" if is_spread(execution) else "device"
    for folder in folders:
        if not folder.exists():
            raise CorruptFileError(
                f"the trained weights {folder} are gone; run the workflow again, which trains them anew"
            )
        require_unaltered(folder, "the trial's trained weights")
        if (folder / "adapter_config.json").exists():
            with watchdog.input_output():
                base = load_base(card, execution, "lora", spread) if base is None else base
                model = _with_adapter(base, folder)
            yield model.eval()
            base = model.unload()
        elif (folder / "config.json").exists():
            model = None  # two of them may not fit
            memory.release()
            with watchdog.input_output():
                model = load_base(card.model_copy(update={"path": str(folder)}), execution, "full", spread)
            yield model.eval()
        else:
            raise CorruptFileError(
                f"{folder} holds neither an adapter nor weights; delete {folder.parent} and run the workflow again"
            )


def is_spread(execution: ResolvedExecution) -> bool:
    """Whether a trained model is spread over all GPUs and, where they are too small, the host: it was sharded."""
    return execution.strategy == "fsdp" and execution.device == "cuda"


def _with_adapter(base: Any, folder: Path) -> Any:
    with peft_for(base):
        from peft import PeftModel

        return PeftModel.from_pretrained(base, str(folder))
