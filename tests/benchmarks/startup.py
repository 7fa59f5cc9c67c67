"""How long a training command takes before it trains, by phase.

A process of its own goes the trainer's way through its imports and tells the time at each station. A phase has all that
its package imports for the first time, such as torch what torch needs. `python` is the interpreter's start and end,
`understudy` the program's own modules and what they import beside the others: pydantic, numpy, polars.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import get_args

from understudy.settings import Role

PHASES = ("python", "understudy", "torch", "transformers", "bitsandbytes", "peft")
ROLES: tuple[Role, ...] = get_args(Role)  # the proxy's base is quantized, the target's isn't
STATIONS = """
import json, sys, time
from understudy import process
told, last = {}, time.perf_counter()
def passed(name):
    global last
    now = time.perf_counter()
    told[name], last = told.get(name, 0) + now - last, now
import understudy.cli.train_pack, understudy.cli.train_target
passed("understudy")
import torch
passed("torch")
import understudy.train.engine, understudy.train.packed.train
passed("understudy")
from understudy.models.imports import import_models
from understudy.models.quantization import import_bitsandbytes, peft_for
from transformers import AutoTokenizer
import_models()
from transformers.models.llama import LlamaForCausalLM
from transformers import AutoModelForCausalLM
passed("transformers")
if sys.argv[1] == "proxy":
    import_bitsandbytes()
    from transformers import BitsAndBytesConfig
    passed("bitsandbytes")
with peft_for(torch.nn.Linear(1, 1)):
    from peft import LoraConfig, get_peft_model
passed("peft")
from understudy.models.quantization import bitsandbytes_hidden
with bitsandbytes_hidden():
    from transformers import get_scheduler
passed("transformers")
print(json.dumps(told))
process.leave(0)
"""


def startup(role: Role, repeats: int) -> dict[str, float]:
    """Seconds by phase, and `all` of them, of the shortest of several starts; 0 for a phase that isn't gone through."""
    return min((_start(role) for _ in range(repeats)), key=lambda phases: phases["all"])


def _start(role: Role) -> dict[str, float]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", STATIONS, role], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    told = json.loads(done.stdout.splitlines()[-1])
    known = {name: float(told.get(name, 0.0)) for name in PHASES}
    return known | {"python": seconds - sum(told.values()), "all": seconds}
