"""What the operators are held against: the same work as plain torch statements, and what a loss costs with autograd.

Two fixed statements of the Linf step, the same arithmetic up to rounding (fastsal rounds the bounds of the ball
inwards, these do not). Row passes count each full-size operand that a statement reads or writes:

- ``linf_with_temporaries``: one new tensor per operation, as attack libraries write it; 17 row passes.
- ``linf_in_place``: one buffer that is there already, and nothing else; 15 row passes.

A fused step needs 4: read x, x_adv and grad, write the next point.

The starts draw from torch's generator, so they make other noise of the same distribution. For the L1 step, which few
libraries have, the statement is fastsal.reference run eagerly.

The losses are the functions of torch that one would take, forward, and backward through autograd. They return the
gradients alone: losses per row and the flags, which the operators return as well, would come on top.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def linf_with_temporaries(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, alpha: float) -> Tensor:
    stepped = x_adv + alpha * grad.sign()
    delta = torch.clamp(stepped - x, -eps, eps)
    return torch.clamp(x + delta, 0, 1)


def linf_in_place(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, alpha: float, out: Tensor) -> Tensor:
    torch.sign(grad, out=out)
    torch.add(x_adv, out, alpha=alpha, out=out)
    return out.sub_(x).clamp_(-eps, eps).add_(x).clamp_(0, 1)


def _per_row(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))


def l2_with_temporaries(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, alpha: float) -> Tensor:
    norm = _per_row(grad.flatten(1).norm(dim=1), x).clamp_min(1e-12)
    delta = x_adv + alpha * grad / norm - x
    length = _per_row(delta.flatten(1).norm(dim=1), x).clamp_min(1e-12)
    return torch.clamp(x + delta * torch.clamp(eps / length, max=1), 0, 1)


def l2_in_place(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, alpha: float, out: Tensor) -> Tensor:
    norm = _per_row(grad.flatten(1).norm(dim=1), x).clamp_min_(1e-12)
    torch.div(grad, norm, out=out)
    torch.add(x_adv, out, alpha=alpha, out=out)
    out.sub_(x)
    length = _per_row(out.flatten(1).norm(dim=1), x).clamp_min_(1e-12)
    return out.mul_((eps / length).clamp_max_(1)).add_(x).clamp_(0, 1)


def linf_start(x: Tensor, eps: float) -> Tensor:
    return torch.clamp(x + torch.empty_like(x).uniform_(-eps, eps), 0, 1)


def l2_start(x: Tensor, eps: float) -> Tensor:
    noise = torch.randn_like(x)
    reach = torch.rand(len(x), device=x.device) ** (1 / x[0].numel()) / noise.flatten(1).norm(dim=1)
    return torch.clamp(x + eps * noise * _per_row(reach, x), 0, 1)


def l1_start(x: Tensor, eps: float) -> Tensor:
    magnitude, sign = torch.empty_like(x).exponential_(), (torch.rand_like(x) - 0.5).sign()
    total = magnitude.flatten(1).sum(dim=1) + torch.empty(len(x), device=x.device).exponential_()
    return torch.clamp(x + eps * sign * magnitude / _per_row(total, x), 0, 1)


def cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor]:
    return torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    label = target.unsqueeze(1)
    rival = logits.scatter(1, label, -math.inf).amax(dim=1)
    return rival - logits.gather(1, label).squeeze(1)


def margin(logits: Tensor, target: Tensor) -> tuple[Tensor]:
    return torch.autograd.grad(_margin(logits, target).sum(), logits)


def dlr(logits: Tensor, target: Tensor) -> tuple[Tensor]:
    top = logits.topk(3, dim=1).values
    loss = _margin(logits, target) / (top[:, 0] - top[:, 2] + 1e-12)
    return torch.autograd.grad(loss.sum(), logits)


def kl_divergence(clean: Tensor, adv: Tensor) -> tuple[Tensor, ...]:
    log_p, log_q = F.log_softmax(clean, dim=1), F.log_softmax(adv, dim=1)
    return torch.autograd.grad(F.kl_div(log_q, log_p, reduction="sum", log_target=True), (adv, clean))


def retire(previous: Tensor, current: Tensor, over: Tensor, ids: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean indexing: two searches for the rows that are set, each waiting for their number."""
    result[ids[over]] = previous[over]
    kept = torch.nonzero(~over).squeeze(1)
    return kept, ids[kept]
