"""Public functions over the operators, with autograd where a loss has one.

The losses are differentiable once, by ``backward`` and ``torch.autograd.grad``, also under torch.compile; not by
``torch.func`` (``grad``, ``vmap``, ``jvp``, ``hessian``). That ball and box hold exactly supposes that subnormal
numbers are not flushed (``torch.set_flush_denormal(False)``, the default).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsal.threat import Bound, Threat, cut_of, seed_of

_cross_entropy = torch.ops.fastsal.truncated_cross_entropy.default
_margin = torch.ops.fastsal.margin_loss.default
_kl = torch.ops.fastsal.kl_divergence.default
_retire = torch.ops.fastsal.retire.default


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


class _Last(torch.autograd.Function):
    """The identity, for a gradient that has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        raise RuntimeError("fastsal: a loss of fastsal.functional was differentiated twice, expected once")


def _once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """For a backward that cannot be differentiated. torch's own once_differentiable says so only where the gradient
    from above requires grad: under the sum of a loss a gradient penalty would be lost without a word."""

    def run(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *upstream)
        with torch.no_grad():
            grads = backward(ctx, *upstream)
        return tuple([None if grad is None else _Last.apply(grad.detach().requires_grad_()) for grad in grads])

    return run


class _TruncatedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, cut: float) -> tuple[Tensor, Tensor]:
        loss, grad, _, over = _cross_entropy(logits, target, None, cut)
        cut_off = over.logical_and_(loss == loss)  # a NaN is over, and its gradient stays to be seen
        return loss.clamp(max=cut), grad.masked_fill_(cut_off.unsqueeze(1), 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @_once
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return (upstream.unsqueeze(1) * grad).to(grad.dtype), None, None


class _MarginLoss(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, other: Tensor | None, dlr: bool) -> tuple[Tensor, Tensor]:
        loss, grad = _margin(logits, target, other, None, dlr)
        return loss, grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @_once
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return (upstream.unsqueeze(1) * grad).to(grad.dtype), None, None, None


class _KLDivergence(torch.autograd.Function):
    @staticmethod
    def forward(clean: Tensor, adv: Tensor, both: bool) -> tuple[Tensor, Tensor, Tensor]:
        loss, adv_grad, clean_grad = _kl(clean, adv, None, both)
        return loss, adv_grad, clean_grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.both = inputs[2]
        ctx.save_for_backward(output[1], output[2])
        ctx.mark_non_differentiable(output[1], output[2])

    @staticmethod
    @_once
    def backward(ctx: Any, upstream: Tensor, _: Tensor, __: Tensor) -> tuple[Tensor | None, Tensor, None]:
        adv_grad, clean_grad = ctx.saved_tensors
        each = upstream.unsqueeze(1)
        return (
            (each * clean_grad).to(clean_grad.dtype) if ctx.both else None,
            (each * adv_grad).to(adv_grad.dtype),
            None,
        )


def truncated_cross_entropy(logits: Tensor, target: Tensor, c: float | None = 0.5, reduction: str = "mean") -> Tensor:
    """Cross-entropy truncated at -log(c): min(CE, -log c) per row, with no gradient where CE > -log c.

    A row with NaN has a loss and a gradient of NaN.

    Args:
        logits: (N, C) with 2 <= C <= 100,000, in fp32, bf16, fp16 or fp64.
        target: (N,) int64 class indices in [0, C).
        c: confidence threshold in [0, 1]; None or 0 is plain cross-entropy.
        reduction: "mean" (over all N rows, truncated ones included), "sum" or "none".

    Returns:
        A scalar, or (N,) for "none"; fp32, or fp64 for fp64 logits. Differentiable once with respect to logits.

    Raises:
        ValueError, TypeError: a shape, dtype, device or label out of range, naming it.

    Source: the truncated inner loss of Kim & Wang, arXiv 2205.10457.
    """
    return _reduce(_TruncatedCrossEntropy.apply(logits, target, max(cut_of(c), 0.0))[0], reduction)


def margin_loss(logits: Tensor, target: Tensor, other: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """The margin z_other - z_target: negative while the target class wins.

    Args:
        logits: (N, C) with 2 <= C <= 100,000, in fp32, bf16, fp16 or fp64.
        target: (N,) int64 class indices in [0, C).
        other: (N,) int64 classes to hold against the target, each different from it (a *targeted* margin); None
            takes the best class besides the target, the lowest index on ties.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (N,) for "none"; fp32, or fp64 for fp64 logits. Differentiable once with respect to logits.

    Raises:
        ValueError, TypeError: a shape, dtype, device or label out of range, naming it.

    Source: the loss f6 of Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017.
    """
    return _reduce(_MarginLoss.apply(logits, target, other, False)[0], reduction)


def dlr_loss(logits: Tensor, target: Tensor, other: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """The difference of logits ratio: a margin that neither a shift nor a scale of the logits changes.

    Untargeted: (max_{i != y} z_i - z_y) / (z_1 - z_3 + 1e-12), where z_1 >= z_2 >= ... are the sorted logits. With
    `other`: (z_other - z_y) / (z_1 - (z_3 + z_4) / 2 + 1e-12).

    Args:
        logits: (N, C) with 3 <= C <= 100,000 (4 where `other` is given), in fp32, bf16, fp16 or fp64.
        target: (N,) int64 class indices y in [0, C).
        other: (N,) int64 classes to move to, each different from y (*targeted* DLR), or None.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (N,) for "none"; fp32, or fp64 for fp64 logits. Differentiable once with respect to logits.

    Raises:
        ValueError, TypeError: a shape, dtype, device or label out of range, naming it.

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", 2020, equations 6 and 7.
    """
    return _reduce(_MarginLoss.apply(logits, target, other, True)[0], reduction)


def kl_divergence(clean: Tensor, adv: Tensor, reduction: str = "mean") -> Tensor:
    """KL(softmax(clean) || softmax(adv)) per row: the robust term of TRADES.

    Args:
        clean: (N, C) logits of the reference distribution, 2 <= C <= 100,000, in fp32, bf16, fp16 or fp64.
        adv: (N, C) logits in the dtype of `clean`.
        reduction: "mean" (over rows), "sum" or "none".

    Returns:
        A scalar, or (N,) for "none"; fp32, or fp64 for fp64 logits. Differentiable once with respect to both; a
        `clean` that does not require grad costs no gradient.

    Raises:
        ValueError, TypeError: a shape, dtype or device out of the contract, naming it.

    Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019.
    """
    for name, logits in (("clean", clean), ("adv", adv)):
        if not isinstance(logits, Tensor):
            raise TypeError(f"{name}: expected a tensor of logits, got {type(logits).__name__}")
    if clean.shape != adv.shape:
        raise ValueError(f"clean: expected shape {tuple(adv.shape)}, that of adv, got {tuple(clean.shape)}")
    return _reduce(_KLDivergence.apply(clean, adv, clean.requires_grad)[0], reduction)


def random_start(
    x: Tensor,
    eps: float | Tensor,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    norm: object = "Linf",
    clip_min: Bound = 0.0,
    clip_max: Bound = 1.0,
) -> Tensor:
    """A uniform draw from the eps-ball around each sample, cut by the box. Differentiable: no.

    The noise of a sample depends on the seed, its sample id and the element's row-major index, and on nothing else:
    not on the batch, the device or the memory format. It comes from Philox-4x32-10 (Salmon et al. 2011).

    Args:
        x: (N, ...) in [clip_min, clip_max], fp32 or fp64.
        eps: radius >= 0 in the units of x; a float or (N,), one per sample.
        seed: one int64.
        sample_ids: (N,) int64, the identity of each sample; None is 0, 1, 2, ...
        norm: "Linf" (or np.inf), "L2" (or 2), "L1" (or 1).
        clip_min, clip_max: the box; a float, (C,) for one value per channel (dimension 1), or None.

    Returns:
        x_0, like x. The ball and the box hold exactly, in float64.

    Raises:
        ValueError, TypeError: a value, shape, dtype or device out of the contract, naming it.
    """
    threat = Threat.around(x, norm, eps, 0.0, clip_min, clip_max)
    if seed is None:
        raise TypeError("seed: expected an integer or a tensor of one int64, got None")
    return threat.start(x, seed_of(seed, None, x.device), sample_ids)


def pgd_step(
    x: Tensor,
    x_adv: Tensor,
    grad: Tensor,
    eps: float | Tensor,
    alpha: float | Tensor,
    norm: object = "Linf",
    clip_min: Bound = 0.0,
    clip_max: Bound = 1.0,
    rows: Tensor | None = None,
    ids: Tensor | None = None,
    l1_sparsity: float = 0.05,
) -> Tensor:
    """One step of projected gradient ascent: project(x_adv + alpha * direction(grad)). Differentiable: no.

    Linf moves along sign(grad), with sign(0) = 0; L2 along grad / ||grad||, a zero gradient giving a zero step; L1
    shares alpha equally among the elements with the largest |grad| that are not zero. Linf and L2 project into the
    eps-ball around x, then into the box; L1 exactly into the intersection of both. An element (L2, L1: a row) whose
    gradient is not finite does not move.

    Args:
        x: (N, ...) clean samples in [clip_min, clip_max], fp32 or fp64.
        x_adv: (M, ...) current points, dtype of x.
        grad: (M, ...) gradient of the loss at x_adv; fp32, bf16, fp16 or fp64.
        eps, alpha: radius and step >= 0 in the units of x; floats or (N,), one per sample.
        norm: "Linf" (or np.inf), "L2" (or 2), "L1" (or 1).
        clip_min, clip_max: the box; a float, (C,) for one value per channel (dimension 1), or None.
        rows: (R,) int64, the slot in x_adv and grad of each row of the result; None is all M, in order.
        ids: (R,) int64, its sample in x, eps and alpha; None is all N, in order; -1 marks a padding row, whose
            result is unspecified.
        l1_sparsity: share in (0, 1] of the elements of a row that an L1 step moves, rounded up; the lowest index
            first on ties.

    Returns:
        The next points, (R, ...), like x. The ball and the box hold exactly, in float64.

    Raises:
        ValueError, TypeError: a value, shape, dtype or device out of the contract, naming it.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018; L1: Croce & Hein,
    "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers", 2021.
    """
    return Threat.around(x, norm, eps, alpha, clip_min, clip_max, l1_sparsity=l1_sparsity).step(
        x, x_adv, grad, rows, ids
    )[0]


def retire(
    previous: Tensor,
    current: Tensor,
    result: Tensor,
    stop: Tensor,
    step: int,
    *,
    right: Tensor | None = None,
    over: Tensor | None = None,
    rows: Tensor | None = None,
    ids: Tensor | None = None,
    last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the rows that leave the attack to their places in `result` and compacts the survivors, stably.

    A row leaves when it is `over` (or not `right`, where given): its result is its point in `previous`. When `last`,
    every other row leaves too, with its point in `current`.

    Args:
        previous: (P, ...) points one step ago (or what an ignored row returns), fp32 or fp64.
        current: (M, ...) points of the last forward.
        result: (N, ...) written in place; contiguous or channels_last.
        stop: (N,) int64, written in place: `step` for a row that leaves with `current`, step - 1 with `previous`.
        step: number of the current iterate.
        right, over: (M,) bool or None.
        rows: (M,) int64, slot in `previous` of each row of `current`; None is 0, 1, 2, ...
        ids: (M,) int64, its sample in `result`; -1 marks padding.
        last: whether no further step follows.

    Returns:
        rows (M,), the slots in `current` of the survivors, then zeros; ids (M,), their samples, then -1; live (1,),
        their number.

    Raises:
        ValueError, TypeError: a value, shape, dtype or device out of the contract, naming it.
    """
    for name, value in {"previous": previous, "current": current, "result": result, "stop": stop}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    survivors: tuple[Tensor, Tensor, Tensor] = _retire(
        previous, current, right, over, rows, ids, result, stop, step, last
    )
    return survivors


__all__ = [
    "dlr_loss",
    "kl_divergence",
    "margin_loss",
    "pgd_step",
    "random_start",
    "retire",
    "truncated_cross_entropy",
]
