"""Batch norm in eval mode keeps its input for the backward, which needs it for the gradient of its weights alone.

An attack asks for no such gradient: kept is what every call has anyway, and the results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastsal.fold import BATCH_NORMS, Lean, own_forward, without_statistics


class _FrozenNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, norm: nn.Module) -> Any:
        return type(norm).forward(norm, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, weight, mean, var, norm = inputs
        ctx.save_for_backward(weight, mean, var)
        ctx.eps = norm.eps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, mean, var = ctx.saved_tensors
        # the gradient stands for the input, which goes into the gradients that nobody asks for
        of_batch = mean.new_empty(0)  # in eval mode there are no statistics of the batch
        pulled, _, _ = torch.ops.aten.native_batch_norm_backward(
            grad, grad, weight, mean, var, of_batch, of_batch, False, ctx.eps, [True, False, False]
        )
        return pulled, None, None, None, None


class LeanNorm(Lean):
    """The forward of one batch norm."""

    def __init__(self, norm: nn.Module) -> None:
        self._norm = norm

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        norm = self._norm
        x = args[0] if len(args) == 1 and not kwargs else None
        by_batch = norm.training or without_statistics(norm)
        if x is None or by_batch or not isinstance(x, Tensor) or not (torch.is_grad_enabled() and x.requires_grad):
            return type(norm).forward(norm, *args, **kwargs)
        return _FrozenNorm.apply(x, norm.weight, norm.running_mean, norm.running_var, norm)


def lean_norms(modules: Iterable[nn.Module], taken_back: ExitStack) -> int:
    """Exchanges the forwards of batch norms until `taken_back` closes; how many."""
    count = 0
    for module in modules:
        if type(module) not in BATCH_NORMS or without_statistics(module):
            continue
        if "forward" not in module.__dict__:
            taken_back.enter_context(own_forward(module, LeanNorm(module)))
            count += 1
    return count
