"""A CUDA device that isn't one, for tests on machines without a GPU.

    EMULATED_GPUS=4 PYTHONPATH=tests/gpu/emulation pytest tests/gpu

`device.cpp` has its memory and its operators; here are the parts of `torch.cuda` that the package and its libraries
call, and NCCL's sums by gloo. There seem to be EMULATED_GPUS devices, which `nvidia-smi` lists, but a process has one.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import warnings
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
MEMORY = 80 * 2**30  # bytes


def built() -> Path:
    """The compiled device, made once for a torch and a source. Raises `CalledProcessError` where g++ fails."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder, source = Path(spec.origin).parent, HERE / "device.cpp"
    made_from = source.read_bytes() + Path(__file__).read_bytes() + version("torch").encode()
    digest = hashlib.sha256(made_from).hexdigest()[:12]
    library = HERE / "__pycache__" / f"device-{digest}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        beside = library.with_suffix(f".{os.getpid()}")
        include, lib = torch_folder / "include", torch_folder / "lib"
        words = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(beside)]
        words += [f"-I{include}/torch/csrc/api/include", f"-L{lib}", f"-Wl,-rpath,{lib}"]
        subprocess.run([*words, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
        beside.rename(library)
    return library


os.environ["PATH"] = os.pathsep.join([str(HERE), os.environ.get("PATH", "")])  # with an nvidia-smi
ctypes.CDLL(str(built()), ctypes.RTLD_GLOBAL)  # before torch asks for a device

import torch  # noqa: E402
from torch import distributed  # noqa: E402
from torch._C._distributed_c10d import AllgatherOptions, ReduceScatterOptions  # noqa: E402

logging.disable()
import bitsandbytes  # noqa: E402, F401  # before there seems to be a GPU: or it would look for its CUDA kernels

logging.disable(logging.NOTSET)


class Stream:
    """Everything on the device is done when its call returns: nothing has to be waited for."""

    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None:
        """One is like another."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_stream(self, _: Stream) -> None: ...

    def wait_event(self, _: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None: ...


class Event:
    """As streams."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """One is like another."""

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


class Waits:
    """`torch.cuda.set_sync_debug_mode`: with "error" it says at the end that the host has waited for the device."""

    watched = False

    def __call__(self, mode: str) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)  # torch says it once
        count = torch.ops.emulated.take_waits()
        watched, self.watched = self.watched, mode == "error"
        if watched and count:
            raise RuntimeError(f"called {count} synchronizing operations")


def _properties(index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(name="emulated", total_memory=MEMORY, major=9, minor=0, uuid=f"emulated-{index}")


def _copy(storage: Any, source: Any, non_blocking: bool = False, own: Any = torch.UntypedStorage.copy_) -> Any:
    """As checkpoints are saved. torch would make tensors of both."""
    if "cuda" not in (storage.device.type, source.device.type):
        return own(storage, source, non_blocking)
    ctypes.memmove(storage.data_ptr(), source.data_ptr(), source.nbytes())
    return storage


def _resize(storage: torch.UntypedStorage, count: int, own: Any = torch.UntypedStorage.resize_) -> Any:
    if storage.device.type != "cuda":
        return own(storage, count)
    torch.ops.emulated.resize_storage(storage, count)
    return storage


def _count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return int(os.environ.get("EMULATED_GPUS", "1")) if visible is None else len(visible.split(","))


generator = torch.ops.emulated.default_generator()
EMULATED = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "is_bf16_supported": lambda **_: True,
    "device_count": _count,
    "current_device": lambda: 0,
    "set_device": lambda _: None,
    "device": lambda *_: nullcontext(),
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda *_: None,
    "max_memory_allocated": lambda *_: 2**20,
    "memory_allocated": lambda *_: 2**20,
    "mem_get_info": lambda *_: (MEMORY, MEMORY),
    "get_device_name": lambda *_: "emulated",
    "get_device_capability": lambda *_: (9, 0),
    "get_device_properties": _properties,
    "default_generators": (generator,),
    "get_rng_state": lambda *_: generator.get_state(),
    "set_rng_state": lambda state, *_: generator.set_state(state),
    "manual_seed": generator.manual_seed,
    "manual_seed_all": generator.manual_seed,
    "is_current_stream_capturing": lambda: False,
    "set_sync_debug_mode": Waits(),
    "Stream": Stream,
    "Event": Event,
    "stream": lambda stream: stream or nullcontext(),
    "current_stream": lambda *_: Stream(),
    "default_stream": lambda *_: Stream(),
    "emulated": True,  # for tests that it can't pass
}
for name, value in EMULATED.items():
    setattr(torch.cuda, name, value)
for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
    if name.startswith("bitsandbytes::") and "." not in name:
        torch.ops.emulated.take_from_host(name)
torch._C._cuda_getCurrentRawStream = lambda _: 0  # what torch's modules import
torch._C._cuda_setDevice = lambda _: None
torch.Stream, torch.Event = Stream, Event
torch.Tensor.record_stream = lambda *_: None
torch.UntypedStorage.resize_ = _resize
torch.UntypedStorage.copy_ = _copy


def _on_host(value: Any) -> Any:
    """The device's tensors as the host's, in lists, too."""
    if isinstance(value, torch.Tensor):
        return torch.ops.emulated.seen_from_host(value)
    return [_on_host(each) for each in value] if isinstance(value, list | tuple) else value


class Nccl(distributed.ProcessGroup):
    """NCCL's sums, by gloo: done when the call returns."""

    group_desc = "emulated"

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._rank, self._size = rank, size
        self._gloo = distributed.ProcessGroupGloo(store, rank, size, timeout)

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:  # noqa: N802
        return "emulated"

    @property
    def group_name(self) -> str:
        return distributed.distributed_c10d._world.pg_names[self]

    def _set_group_name(self, _: str) -> None: ...

    def _set_group_desc(self, _: str) -> None: ...

    def _done(self, name: str, *arguments: Any) -> Any:
        work = getattr(self._gloo, name)(*_on_host(arguments))
        work.wait()
        return work

    def allreduce(self, *arguments: Any) -> Any:
        return self._done("allreduce", *arguments)

    def broadcast(self, *arguments: Any) -> Any:
        return self._done("broadcast", *arguments)

    def allgather(self, *arguments: Any) -> Any:
        return self._done("allgather", *arguments)

    def barrier(self, *arguments: Any) -> Any:
        return self._done("barrier", *arguments)

    def all_gather_single(self, output: Any, given: Any, options: Any = AllgatherOptions()) -> Any:  # noqa: B008
        return self._done("_allgather_base", output, given, options)

    def reduce_scatter_single(self, output: Any, given: Any, options: Any = ReduceScatterOptions()) -> Any:  # noqa: B008
        return self._done("_reduce_scatter_base", output, given, options)

    def all_gather_single_coalesced(self, outputs: Any, given: Any, *_: Any) -> Any:
        return [self.all_gather_single(*pair) for pair in zip(outputs, given, strict=True)][-1]

    _allgather_base, _reduce_scatter_base = all_gather_single, reduce_scatter_single


def _init_process_group(backend: str, *arguments: Any, own: Any = distributed.init_process_group, **named: Any) -> None:
    own(backend.replace("nccl", "emulated"), *arguments, **named)


distributed.Backend.register_backend("emulated", Nccl, devices=["cuda"])
distributed.init_process_group = _init_process_group
