"""PGD and SENSE as one would write them by hand: full batch, fp32, contiguous, ``loss.backward()``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pgd(model: nn.Module, x: Tensor, y: Tensor, x_0: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    """The loop that is in most repositories: seven full-size operations a step."""
    x_k = x_0.clone()
    for _ in range(steps):
        x_k.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_k), y), x_k)
        x_k = x_k.detach() + alpha * gradient.sign()
        x_k = torch.clamp(x + torch.clamp(x_k - x, -eps, eps), 0, 1)
    return x_k


def sense(
    model: nn.Module, x: Tensor, y: Tensor, x_0: Tensor, eps: float, alpha: float, steps: int, cut: float
) -> Tensor:
    """Every row through every forward; masks say which still move. Weight gradients are computed and thrown away."""
    x_k, result = x_0.clone(), x.clone()
    live = torch.ones_like(y, dtype=torch.bool)
    for k in range(steps + 1):
        x_k.requires_grad_()
        z = model(x_k)
        losses = F.cross_entropy(z, y, reduction="none")
        live = live & (losses <= cut) if k else (losses <= cut) & (z.argmax(1) == y)
        mask = live.view(-1, *[1] * (x.dim() - 1))
        result = torch.where(mask, x_k.detach(), result)
        if k == steps:
            break
        losses.sum().backward()
        step = x_k.detach() + alpha * x_k.grad.sign()
        step = torch.minimum(torch.maximum(step, x - eps), x + eps).clamp(0, 1)
        x_k = torch.where(mask, step, x_k.detach())
    model.zero_grad()
    return result
