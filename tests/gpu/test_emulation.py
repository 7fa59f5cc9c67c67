"""The emulated device refuses what a GPU refuses, and computes what a CPU computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from waiting import never_waiting

pytestmark = pytest.mark.skipif(not hasattr(torch.cuda, "emulated"), reason="`make emulated` alone has it")


def on_gpu(*values: float) -> Tensor:
    return torch.tensor(values or (1.0, 1.0, 1.0), device="cuda")


def on_cpu(*values: float) -> Tensor:
    return torch.tensor(values or (1.0, 1.0, 1.0))


FIRST = torch.tensor(0)  # a whole number of the host
MIXED: dict[str, Callable[[], object]] = {
    "sum": lambda: on_gpu() + on_cpu(),
    "cat": lambda: torch.cat([on_gpu(), on_cpu()]),
    "layer": lambda: nn.Linear(3, 3)(on_gpu()),
    "foreach": lambda: torch._foreach_add_([on_gpu()], [on_cpu()]),
    "where": lambda: torch.where(on_gpu() > 0, on_gpu(), on_cpu()),
    "assignment": lambda: on_gpu().__setitem__(torch.tensor([0, 1, 2]), on_cpu()),
    "index_select": lambda: on_gpu().index_select(0, FIRST),
    "scatter": lambda: on_gpu().scatter_(0, FIRST, 2.0),
    "steps of AdamW": lambda: torch._fused_adamw_(
        *([on_gpu()] for _ in range(4)),
        [],
        [torch.tensor(1.0)],
        lr=0.1,
        beta1=0.9,
        beta2=0.9,
        weight_decay=0.0,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_host_and_device_dont_mix(name: str) -> None:
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        MIXED[name]()


def test_what_else_a_gpu_refuses() -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        on_gpu().numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(3, device="cuda:1")
    with pytest.raises(RuntimeError, match="pinned"):
        torch.zeros(3, device="cuda", pin_memory=True)


def test_numbers_and_indices_may_come_from_the_host() -> None:
    assert (on_gpu() + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert on_gpu(1, 2, 3)[torch.tensor([2, 0])].tolist() == [3, 1]


@pytest.mark.parametrize(
    "waits",
    [
        lambda: on_gpu().sum().item(),
        lambda: on_gpu().tolist(),
        lambda: on_gpu().nonzero(),
        lambda: on_gpu()[on_gpu() > 0],
        lambda: on_gpu().__setitem__(on_gpu() > 0, on_gpu()),
        lambda: on_gpu().unique(),
        lambda: on_gpu().cpu(),
        lambda: on_cpu().cuda(),
    ],
)
def test_who_waits_for_the_device_is_caught(waits: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="synchronizing"), never_waiting():
        waits()
    waits()  # nobody looks any more


def test_what_goes_on_without_the_host_isnt() -> None:
    pinned = on_cpu().pin_memory()
    with never_waiting():
        _ = pinned.to("cuda", non_blocking=True).softmax(0) * 2, torch.zeros(3, device="cuda")


def test_views_share_their_memory() -> None:
    whole = torch.zeros(2, 3, device="cuda")
    whole.t()[1:].copy_(torch.ones(2, 2))
    assert whole.tolist() == [[0, 1, 1], [0, 1, 1]]
    base = torch.zeros(2, device="cuda")
    view = base.view(2)
    base.resize_(100)
    base.fill_(3)
    assert view.tolist() == [3, 3]


def test_the_device_draws_from_its_own_generator() -> None:
    def drawn() -> list[float]:
        dropped = F.dropout(torch.ones(64, device="cuda"))
        return [*torch.rand(3, device="cuda").tolist(), *dropped.tolist()]

    torch.manual_seed(0)
    first = drawn()
    device, host = torch.cuda.get_rng_state(), torch.get_rng_state()
    then = drawn()
    torch.set_rng_state(host)
    assert drawn() != then  # the host's state isn't what counts
    torch.cuda.set_rng_state(device)
    assert drawn() == then
    torch.manual_seed(0)
    assert drawn() == first
    assert torch.equal(torch.get_rng_state(), host)


def test_a_model_learns_the_same_as_on_the_cpu() -> None:
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, found in losses.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)).to(device)
        tokens, optimizer = torch.arange(7, device=device), torch.optim.AdamW(model.parameters(), 0.1, fused=True)
        for _ in range(3):
            loss = F.cross_entropy(model(tokens), tokens.roll(1))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    assert losses["cuda"] == losses["cpu"]
