"""The stand-in refuses what a GPU refuses, and computes what a CPU computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.skipif(not hasattr(torch.cuda, "stand_in"), reason="`make standin` alone has it")
CPU, GPU = torch.ones(3), torch.ones(3, device="cuda") if torch.cuda.is_available() else None


def test_host_and_device_dont_mix() -> None:
    assert (GPU + GPU).device == torch.device("cuda", 0)
    for wrong in (
        lambda: GPU + CPU,
        lambda: torch.cat([GPU, CPU]),
        lambda: nn.Linear(3, 3)(GPU),
        lambda: torch._foreach_add_([GPU], [CPU]),
        lambda: torch.where(GPU > 0, GPU, CPU),
    ):
        with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
            wrong()
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        GPU.numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    assert torch.equal((GPU + torch.tensor(1.0)).cpu(), CPU + 1)  # a number may come from the host


@pytest.mark.parametrize(
    "waits",
    [
        lambda: GPU.sum().item(),
        lambda: GPU.tolist(),
        lambda: GPU.nonzero(),
        lambda: GPU[GPU > 0],
        lambda: GPU.cpu(),
        lambda: CPU.cuda(),
        lambda: torch.tensor([1.0], device="cuda"),
    ],
)
def test_who_waits_for_the_device_is_caught(waits: object) -> None:
    assert callable(waits)
    torch.cuda.set_sync_debug_mode("error")
    waits()
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.cuda.set_sync_debug_mode("default")


def test_what_goes_on_without_the_host_isnt() -> None:
    torch.cuda.set_sync_debug_mode("error")
    _ = (GPU * 2).softmax(0), CPU.pin_memory().to("cuda", non_blocking=True), torch.zeros(3, device="cuda")
    torch.cuda.set_sync_debug_mode("default")


def test_views_share_their_memory() -> None:
    whole = torch.zeros(2, 3, device="cuda")
    whole.t()[1:].copy_(torch.ones(2, 2))
    assert whole.cpu().tolist() == [[0, 1, 1], [0, 1, 1]]
    again = torch.empty(0, device="cuda")
    torch.mul(whole, 2, out=again.resize_(2, 3))
    assert again.sum().item() == 8


def test_a_model_learns_the_same_as_on_the_cpu() -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)).to(device)
        tokens, optimizer = torch.arange(7, device=device), torch.optim.AdamW(model.parameters(), 0.1, fused=True)
        losses[device] = []
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses[device].append(loss.item())
    assert losses["cuda"] == losses["cpu"]
