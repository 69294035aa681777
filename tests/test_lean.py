"""Batch norm that keeps no input: the same bits as its own forward and backward, and less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastsal
from fastsal.levers import Levers
from fastsal.view import viewed

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "1d, with a length": (lambda: nn.BatchNorm1d(3), (4, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 3, 4)),
    "not affine": (lambda: nn.BatchNorm2d(3, affine=False), (4, 3, 5, 6)),
    "of another eps": (lambda: nn.BatchNorm2d(3, eps=0.3), (4, 3, 5, 6)),
    "by its batch": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 6)),
}
DTYPES = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}


def settled(norm: nn.Module) -> nn.Module:
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.data, 0.5, 1.5)
    return norm.eval()


on_each_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@on_each_device
def test_the_same_bits_forward_and_backward(name: str, dtype: torch.dtype, device: str) -> None:
    make, shape = KINDS[name]
    norm = settled(make()).to(device, DTYPES[dtype]).requires_grad_(False)
    points = torch.rand(shape).to(device, dtype)
    if len(shape) == 4:
        points = points.contiguous(memory_format=torch.channels_last)

    def run() -> tuple[Tensor, Tensor]:
        x = points.clone().requires_grad_()
        z = norm(x)
        return z, torch.autograd.grad(z, x, torch.ones_like(z) / 3 + z.detach())[0]

    expected = run()
    with viewed(norm, points.to(DTYPES[dtype]), Levers(fold_batch_norm=False), "fp32") as view:
        found = run()
        lean = name != "by its batch"
        assert ("forward" in norm.__dict__) == lean
        assert view.notes["lean_batch_norm"] == ("on: 1 keep no input" if lean else "off: no batch norm")
    assert "forward" not in norm.__dict__
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


def test_its_input_is_not_kept() -> None:
    norm, x = settled(nn.BatchNorm2d(3)), torch.rand(4, 3, 5, 5)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    sizes = []
    for lean in (False, True):
        kept.clear()
        with viewed(norm, x, Levers(lean_batch_norm=lean), "fp32"):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                norm(x.clone().requires_grad_())
            sizes.append(max(kept))
    assert sizes == [x.numel(), 3]


def test_a_norm_that_the_forward_puts_in_train_mode_goes_by_its_batch() -> None:
    class Trains(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self[0].training = True
            return super().forward(x)

    model = Trains(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    x, y = torch.rand(8, 6, dtype=torch.float64), torch.arange(8) % 3
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 0}
    expected = fastsal.perturb(model, x, y, fast=False, **how)
    assert torch.equal(fastsal.perturb(model, x, y, **how), expected)


def test_a_wrong_input_is_refused_as_ever() -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 3)), torch.rand(4, 6)
    with pytest.raises(ValueError, match=r"expected 4D input \(got 2D input\)"):
        fastsal.PGD(model)(x, torch.arange(4) % 3)


def test_a_gradient_inside_a_forward_and_a_map_over_rows() -> None:
    """Models that differentiate themselves, twice then; and functorch, which wants its own rules."""

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
            self.mapped = False

        def forward(self, x: Tensor) -> Tensor:
            if self.mapped:
                return torch.func.vmap(lambda row: self.net(row[None])[0])(x)
            with torch.enable_grad():
                x = x if x.requires_grad else x.detach().requires_grad_()
                z = self.net(x)
                (g,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
            return z + g[:, :3]

    model, x, y = settled(Energy()).double(), torch.rand(7, 6, dtype=torch.float64), torch.arange(7) % 3
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 0}
    for model.mapped in (False, True):
        expected = fastsal.perturb(model, x, y, fast=False, **how)
        torch.testing.assert_close(fastsal.perturb(model, x, y, **how), expected, rtol=0, atol=1e-9)


def test_with_compile_it_is_left_to_the_compiler() -> None:
    model, x, y = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), torch.rand(4, 6), torch.arange(4) % 3
    _, info = fastsal.perturb(model, x, y, eps=0.1, steps=1, compile="eager", return_info=True)
    assert info.levers["lean_batch_norm"] == "off: torch.compile decides what is kept"
