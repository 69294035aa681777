"""PGD and SENSE as one would write them by hand: full batch, fp32, contiguous."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SENSE_OPERATIONS = 15  # full-size tensor operations in a step of `sense`; tests/test_attack_benchmarks.py counts them


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    x_0: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    weight_gradients: bool = False,
) -> Tensor:
    """The loop that is in most repositories: seven full-size operations a step."""
    x_k = x_0.clone()
    for _ in range(steps):
        x_k.requires_grad_()
        loss = F.cross_entropy(model(x_k), y)
        if weight_gradients:
            loss.backward()
            gradient = x_k.grad
        else:
            (gradient,) = torch.autograd.grad(loss, x_k)
        x_k = x_k.detach() + alpha * gradient.sign()
        x_k = torch.clamp(x + torch.clamp(x_k - x, -eps, eps), 0, 1)
    if weight_gradients:
        model.zero_grad()
    return x_k


def sense(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    x_0: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    cut: float,
    last_graph: bool = True,
) -> tuple[Tensor, Tensor]:
    """Every row through every forward; masks, as numbers, say which still move. Result and stop steps.

    As the loop of the paper's authors goes, in other words: 15 full-size operations a step, one wait for the device,
    and ``loss.backward()``, whose weight gradients are thrown away.
    """
    x_k, result = x_0, x
    live = torch.ones_like(y, dtype=torch.bool)
    stop = torch.full_like(y, -1)
    for k in range(steps + 1):
        x_k = x_k.clone().requires_grad_()
        with torch.set_grad_enabled(last_graph or k < steps):
            z = model(x_k)
            losses = F.cross_entropy(z, y, reduction="none")
        live = live & (losses <= cut) if k else (losses <= cut) & (z.argmax(1) == y)
        stop = torch.where(live, k, stop)
        moving = live.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        point = x_k.detach()
        result = moving * point + (1 - moving) * result
        if k == steps or not live.any():
            break
        losses.sum().backward()
        step = point + alpha * x_k.grad.sign()
        step = torch.minimum(torch.maximum(step, x - eps), x + eps).clamp(0, 1)
        x_k = moving * step + (1 - moving) * point
    model.zero_grad()
    return result, stop
