"""Adapters in a fresh process: peft leaves bitsandbytes alone until a base needs it, and finds it then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from tiny_models import card, llama_config, save
from understudy.models.loading import load_base
from understudy.settings import TrainingSettings
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
    with trainable(base, spec, TrainingSettings(), execution) as model:
        kinds = {type(module).__module__ for module in model.modules() if hasattr(module, "lora_A")}
    print(quantization, "bitsandbytes" in sys.modules, *kinds)
"""


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
