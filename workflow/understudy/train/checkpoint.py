"""A trial's state in files, so that one that was killed goes on where it was.

    {folder}/step-00000012/rank-0.pt     what one process needs to go on after step 12
    {folder}/step-00000012/whole.json    written last: whose it is, and the digest of each process's file

Only what is trained is saved, never the frozen base. Where every process holds the same weights the first one saves
them, and the others only their random numbers; where weights are sharded each one saves its own shards. A folder
without `whole.json` doesn't count. Whatever can't be used is said in one sentence, and the trial begins anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy import watchdog
from understudy.errors import CorruptFileError, StorageError
from understudy.files import read_json, write_json
from understudy.train import memory
from understudy.train.history import History, MeanLoss
from understudy.train.ranks import Ranks
from understudy.train.saving import Cadence, load_sealed, save_sealed, say_unwritten

FORMAT = 1
MARKER = "whole.json"


@dataclass
class Position:
    """All of a running trial that changes from step to step, apart from random numbers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    history: History
    since_evaluation: MeanLoss
    rate: float = 0.0  # of the newest step


class Checkpoint:
    """The newest checkpoint of one trial, and what earlier attempts took.

    `trial` is the digest of everything that its state depends on. All ranks call `resume` and `save` together.
    """

    def __init__(self, folder: Path, trial: str, ranks: Ranks, device: torch.device, seconds: float) -> None:
        self._folder, self._trial, self._ranks, self._device = folder, trial, ranks, device
        self._cadence = Cadence(seconds)
        self._held: int | None = None  # the step of the checkpoint that stands
        self._began, self._seconds_before, self._peak_before = time.perf_counter(), 0.0, 0

    @property
    def seconds(self) -> float:
        """What the trial has taken so far, in all attempts; of those that were killed, until their last checkpoint."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def peak_bytes(self) -> int:
        """Most memory that this process held at once, in all attempts."""
        return max(self._peak_before, memory.peak_bytes())

    def due(self) -> bool:
        """Whether it is time to save. The first rank decides for all."""
        return self._ranks.index == 0 and self._cadence.due()

    def resume(self, position: Position) -> None:
        """Bring a fresh trial to where it was saved last, if it was and every rank can read its part."""
        own = max(self._whole_steps(), default=0) if self._ranks.index == 0 else 0
        step = self._ranks.largest(own, self._device)
        if step == 0:
            return
        try:
            with watchdog.input_output():
                main, mine = self._read(step)
        except CorruptFileError as error:
            print(f"{error}; the trial begins anew", flush=True)
            mine = None
        with watchdog.patient():  # a rank that hangs ends itself, and then the others
            anew = self._ranks.largest(int(mine is None), self._device)
        if anew:
            if self._ranks.index == 0:
                shutil.rmtree(self._folder, ignore_errors=True)
            return
        assert mine is not None
        _restore(position, main, mine if mine["weights"] is not None else main)
        set_random_state(mine["random"])
        self._held, self._seconds_before, self._peak_before = step, main["seconds"], mine["peak_bytes"]
        if self._ranks.index == 0:
            print(f"goes on after step {step} from {self._path(step)}", flush=True)

    def save(self, position: Position, sound: bool) -> bool:
        """Save all ranks' states of this step; whether that worked. Then older ones go.

        `sound`: this rank's state is what it should be after the step. Where a rank has none, or a disk is full, the
        last checkpoint stays and a sentence says so. One of this step that stands already stays as it is: to write it
        again could only lose it.
        """
        step = position.history.steps
        if step == self._held:
            return True
        with self._cadence.saving():
            own = self._write(position) if sound else bytes(32)
            with watchdog.patient():  # as in `resume`
                found = self._ranks.gather(own, self._device)
            failed = not all(map(any, found))
            if self._ranks.index == 0:
                failed = failed or not self._complete(step, [each.hex() for each in found])
                self._keep_only(max(self._whole_steps(), default=0) if failed else step)
            with watchdog.patient():
                failed = bool(self._ranks.largest(int(failed), self._device))
        if failed:
            return False
        self._held = step
        return True

    def _write(self, position: Position) -> bytes:
        """Write this rank's file; return its digest, or zeros where that failed."""
        sharded = any(map(is_sharded, _trained(position.model).values()))
        state = {
            "random": random_state(),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            **_state(position, with_weights=sharded or self._ranks.index == 0),
        }
        path = self._path(position.history.steps) / f"rank-{self._ranks.index}.pt"
        try:
            return bytes.fromhex(save_sealed(path, state))
        except (OSError, RuntimeError, StorageError) as error:
            say_unwritten(path, error)
            return bytes(32)

    def _complete(self, step: int, seals: list[str]) -> bool:
        """Write the marker."""
        content = {"format": FORMAT, "torch": torch.__version__, "trial": self._trial, "step": step, "seals": seals}
        try:
            write_json(self._path(step) / MARKER, content)
        except (OSError, StorageError) as error:
            say_unwritten(self._path(step) / MARKER, error)
            return False
        return True

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first rank's state and this rank's. Raises `CorruptFileError` where they can't be used."""
        folder, index = self._path(step), self._ranks.index
        try:
            marker = read_json(folder / MARKER)
        except CorruptFileError:
            marker = None
        expected = {"format": FORMAT, "torch": torch.__version__, "trial": self._trial, "step": step}
        if not isinstance(marker, dict) or {name: marker.get(name) for name in expected} != expected:
            raise CorruptFileError(f"the checkpoint {folder} is another trial's, another version's, or altered")
        seals = marker.get("seals")
        if not isinstance(seals, list) or len(seals) != self._ranks.count:
            raise CorruptFileError(f"the checkpoint {folder} isn't one of {self._ranks.count} processes")
        main = _load(folder / "rank-0.pt", seals[0])
        return main, main if index == 0 else _load(folder / f"rank-{index}.pt", seals[index])

    def _whole_steps(self) -> Iterator[int]:
        for path in self._folder.glob(f"step-*/{MARKER}"):
            name = path.parent.name.removeprefix("step-")
            if name.isdigit():
                yield int(name)

    def _keep_only(self, step: int) -> None:
        for path in self._folder.glob("step-*"):
            if path != self._path(step):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"


def _load(path: Path, expected: str) -> dict[str, Any]:
    try:
        found = load_sealed(path, mapped=True)
    except FileNotFoundError:
        found = None
    if found is None or found[0] != expected:
        raise CorruptFileError(f"the checkpoint {path} can't be read, or isn't what was written")
    return found[1]


def _state(position: Position, with_weights: bool) -> dict[str, Any]:
    """Plain values and local tensors: what `_restore` needs."""
    weights = {name: local(tensor) for name, tensor in _trained(position.model).items()} if with_weights else None
    return {
        "weights": weights,
        "optimizer": _local_values(position.optimizer.state_dict()) if with_weights else None,
        "schedule": position.schedule.state_dict(),
        "history": position.history.state(),
        "since_evaluation": asdict(position.since_evaluation),
        "rate": position.rate,
    }


def _restore(position: Position, main: dict[str, Any], holder: dict[str, Any]) -> None:
    """Go on from `main`, with the weights and the optimizer's state of `holder`."""
    trained = _trained(position.model)
    with torch.no_grad():
        for name, saved in holder["weights"].items():
            local(trained[name]).copy_(saved)
    position.optimizer.load_state_dict(_copied(holder["optimizer"]))
    _shard_optimizer(position.optimizer)
    position.schedule.load_state_dict(main["schedule"])
    position.history.restore(main["history"])
    vars(position.since_evaluation).update(main["since_evaluation"])
    position.rate = main["rate"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds only its part of a tensor (torch's DTensor)."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, or all of it where it isn't sharded; the same memory, without gradients."""
    found: Any = tensor.detach()
    return found.to_local() if is_sharded(found) else found  # type: ignore[no-any-return]


def _local_values(value: Any) -> Any:
    """Nested dictionaries and lists with every tensor's local part."""
    if isinstance(value, Tensor):
        return local(value)
    if isinstance(value, dict):
        return {key: _local_values(item) for key, item in value.items()}
    return [_local_values(item) for item in value] if isinstance(value, list) else value


def _copied(value: Any) -> Any:
    """Nested dictionaries and lists with tensors in memory of their own: those of a file may be mapped from it."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _shard_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Make the moments of sharded parameters sharded as these are, out of this rank's parts."""
    for parameter, state in optimizer.state.items():
        if not is_sharded(parameter):
            continue
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() and not is_sharded(value):
                state[name] = torch.zeros_like(parameter)  # where the parameter is, also where that is on the host
                local(state[name]).copy_(value)


def random_state() -> dict[str, Tensor]:
    """The state of this process's random numbers: the CPU's, and the current GPU's where one is in use."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: dict[str, Tensor]) -> None:
    """Go on with the random numbers of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
