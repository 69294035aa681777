"""What the operators are held against: the same steps of an attack as plain torch statements.

Two fixed statements of the Linf step, the same arithmetic up to rounding (fastsal rounds the bounds of the ball
inwards, these do not). Row passes count each full-size operand that a statement reads or writes:

- ``linf_with_temporaries``: one new tensor per operation, as attack libraries write it; 17 row passes.
- ``linf_in_place``: one buffer that is there already, and nothing else; 15 row passes.

A fused step needs 4: read x, x_adv and grad, write the next point.
"""

from __future__ import annotations

import torch
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


def cross_entropy(logits: Tensor, target: Tensor, cut: float) -> tuple[Tensor, ...]:
    """Loss per row, its gradient, and which rows are right and which over the cut."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    loss = -log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    hot = torch.nn.functional.one_hot(target, logits.shape[1])
    return loss, (log_p.exp() - hot).to(logits.dtype), logits.argmax(1) == target, loss > cut


def margin(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    hot = torch.nn.functional.one_hot(target, logits.shape[1])
    best = logits.masked_fill(hot.bool(), -torch.inf).argmax(1)
    loss = (logits.gather(1, best.unsqueeze(1)) - logits.gather(1, target.unsqueeze(1))).squeeze(1)
    return loss.float(), (torch.nn.functional.one_hot(best, logits.shape[1]) - hot).to(logits.dtype)


def retire(previous: Tensor, current: Tensor, over: Tensor, ids: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean indexing: two searches for the rows that are set, each waiting for their number."""
    result[ids[over]] = previous[over]
    kept = torch.nonzero(~over).squeeze(1)
    return kept, ids[kept]
