"""What a training process doesn't import, and that what it does import works as ever. In processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hidden_module_is_found_afterwards() -> None:
    code = """
import sys
from understudy.models.imports import hidden
with hidden("colorsys"):
    try:
        import colorsys
    except ImportError:
        print("hidden")
import colorsys
with hidden("colorsys"):  # it is there
    import colorsys
print(colorsys.rgb_to_hsv(1, 1, 1) and sys.modules["colorsys"] is colorsys)
"""
    assert run(code).split() == ["hidden", "True"]


def test_models_come_without_scipy_and_bitsandbytes_without_the_compiler() -> None:
    code = """
import sys
from understudy.models.imports import import_models
from understudy.models.quantization import bitsandbytes_hidden, import_bitsandbytes
import_models()
from transformers import AutoModelForCausalLM
with bitsandbytes_hidden():
    from transformers import get_scheduler
assert "scipy" not in sys.modules and "bitsandbytes" not in sys.modules
import_bitsandbytes()
assert "bitsandbytes" in sys.modules
assert "torch._inductor.compile_fx" not in sys.modules
from transformers.utils import is_scipy_available
from peft.import_utils import is_bnb_available
assert is_scipy_available() and is_bnb_available()
import scipy.optimize
"""
    run(code)


@pytest.mark.parametrize("decorator", ["torch.compile", "torch.compile(backend=backend, dynamic=False)"])
def test_a_function_is_compiled_at_its_first_call(decorator: str) -> None:
    """What is handed to the compiler, and how often; afterwards `torch.compile` is itself again."""
    code = f"""
import torch
from understudy.models.imports import compiled_later
calls = []
def compile_now(function, **options):
    calls.append(options)
    return lambda *values: function(*values) + 1
before, torch.compile = torch.compile, compile_now
backend = "eager"
with compiled_later():
    @{decorator}
    def double(x):
        "Twice."
        return 2 * x
    assert torch.compile is not compile_now
assert torch.compile is compile_now and calls == []
assert double.__doc__ == "Twice."
assert [double(3), double(4)] == [7, 9]
print(len(calls), sorted(calls[0]))
"""
    expected = "1 []" if decorator == "torch.compile" else "1 ['backend', 'dynamic']"
    assert run(code).strip() == expected


LEAVING = """
import atexit, sys
from understudy import process
class Slow:
    def __del__(self):
        print("taken apart")
slow = Slow()
atexit.register(print, "registered")
print("printed", end=" ")
print("and told", file=sys.stderr, end="")
try:
    process.leave(2)
except SystemExit:
    print("slowly")
    raise
"""


def test_a_command_leaves_with_its_code_its_output_and_what_was_registered() -> None:
    done = subprocess.run([sys.executable, "-c", "import torch" + LEAVING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "printed registered\n", "and told")
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "and told")
    assert done.stdout.split() == ["printed", "slowly", "registered", "taken", "apart"]
