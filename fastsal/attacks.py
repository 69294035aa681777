"""The attacks by name, and what their arguments mean. All of them are settings of :class:`fastsal.attack.Attack`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsal.attack import Attack
from fastsal.live import AttackInfo


class SENSE(Attack):
    """Sensible adversaries: perturb a row only while the model gives its true class probability c or more.

    ``x_adv = SENSE(model, eps=8/255, c=0.5)(x, y)`` drops into any training loop. The model runs in eval mode with
    frozen parameters and comes back exactly as it was, also after an exception. Threads that attack one model take
    turns; training it meanwhile in another thread is not supported.

    Args:
        model: a module from (N, ...) to logits (N, C), or to an object with ``.logits``. A bound method of a module and
            a functools.partial of one count as that module; any other callable is called as it is, and the modules
            inside it keep the mode they are in. What a forward writes to a parameter is not put back.
        eps: radius in the units of x; a float, or (N,), one per sample.
        alpha: step in the units of x; a float, (N,), or None for 1.875 * eps / steps.
        steps: K >= 0. eps = 0 or steps = 0 returns x, without noise.
        c: confidence threshold in [0, 1]. A row stops at its last iterate with cross-entropy <= -log(c). 0 truncates
            nothing but leaves wrong rows alone; 1 attacks nothing; None is plain PGD.
        norm: "Linf" (or np.inf), "L2" (or 2), "L1" (or 1).
        random_start: begin at a uniform draw from the ball.
        loss: what is ascended: "ce"; "kl", the divergence from the clean prediction (TRADES), which needs a random
            start; "margin" (CW); "dlr"; or a function of (logits (M, C), y (M,)) that returns one loss per row. The cut
            is always on cross-entropy.
        targeted: descend towards y; needs c=None.
        ignored: what a row returns that is never attacked (wrong or over the cut at first sight): "clean", x itself,
            or "start", its noisy start.
        decide_at: where that is decided: at the noisy "start", or at "clean" x, with one more forward.
        truncate: False keeps ignored rows ignored and truncates nothing (the paper's warm-up epochs).
        momentum: steps follow a sum of gradients, each divided by its L1 norm, that fades by this factor; 0 is none
            (Dong et al. 2018).
        tau: needs c=None; a row stops tau steps after the model first misclassifies it (see :class:`FAT`).
        step_rule: "fixed", or "apgd" with c=None (see :class:`APGD`, also for rho).
        l1_sparsity: share in (0, 1] of the elements of a row that an L1 step moves, those with the largest gradient.
        clip_min, clip_max: the box; a float, (C,) for one value per channel (dimension 1), or None.
        normalize: (mean, std) that the model expects to be taken off its input, numbers or one per channel; x, eps and
            alpha stay in the units of pixels.
        precision: in which the model runs: "fp32", "bf16" (under autocast, with weights in bf16; x, losses and the
            projection stay in fp32), or "auto": bf16 where this hardware is faster at it, by a measurement of some
            milliseconds, once. A model in float64 or 16 bits, or inside an autocast of yours, stays there. The
            cut holds in the precision in use: in fp32 the loss of a row that stopped in bf16 may lie a little over it.
        compile: True runs the model's forward and backward through torch.compile, each batch size when it first comes
            (the live rows then go in buckets, so that there are few); or the name of a backend of torch.compile. The
            first attacks take minutes; where compiling fails the model runs as it is, and a warning says so.
        fast: True, or :class:`fastsal.Levers` to choose which; False is the plain eager path in fp32. A model that
            takes batches of one size alone wants ``Levers(live_rows="off")``.
        check_inputs: False skips the look at the values of the arguments, the one wait for an accelerator before the
            first forward (and, until a model has shown a negative logit, at its first outputs).

    Source: Kim & Wang, "Robust Sensible Adversarial Learning of Deep Neural Networks for Image Classification",
    arXiv 2205.10457.
    """


class PGD(Attack):
    """Projected gradient descent: the engine of :class:`SENSE` with nothing truncated (c=None).

    ``PGD(model, loss="kl")`` is the inner attack of TRADES, ``PGD(model, momentum=1.0)`` MI-FGSM.

    Args:
        model, eps, alpha, steps, norm, random_start: as in :class:`SENSE`.
        options: the other options of :class:`SENSE` but c, by name.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
    """

    def __init__(
        self,
        model: Any,
        eps: float | Tensor = 8 / 255,
        alpha: float | Tensor | None = None,
        steps: int = 10,
        norm: object = "Linf",
        random_start: bool = True,
        **options: Any,
    ) -> None:
        if options.pop("c", None) is not None:
            raise ValueError("c: expected None with PGD, which truncates nothing; SENSE has a c")
        super().__init__(model, eps, alpha, steps, None, norm, random_start, **options)


class FAT(PGD):
    """Friendly adversaries: PGD that stops a row `tau` steps after the model first misclassifies it.

    Args:
        model, eps, alpha, steps: as in :class:`SENSE`.
        tau: further steps of a row that is misclassified, >= 0. Each iterate that is misclassified uses one up.
        norm, random_start: as in :class:`SENSE`.
        options: the other options of :class:`SENSE` but c, targeted and step_rule, by name.

    Source: Zhang et al., "Attacks Which Do Not Kill Training Make Adversarial Learning Stronger", 2020.
    """

    def __init__(
        self,
        model: Any,
        eps: float | Tensor = 8 / 255,
        alpha: float | Tensor | None = None,
        steps: int = 10,
        tau: int = 0,
        norm: object = "Linf",
        random_start: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, eps, alpha, steps, norm, random_start, tau=tau, **options)


class APGD(PGD):
    """PGD whose steps begin at 2 eps and halve themselves, row by row, where they no longer pay; with momentum.

    It returns the misclassified point with the largest loss that a row has visited, or, where there is none, the
    point with the largest loss. One restart on one loss: a part of AutoAttack, not AutoAttack.

    Args:
        model, eps, steps, norm, random_start: as in :class:`SENSE`.
        rho: in [0, 1]; a row whose loss rose in fewer than this share of the steps since the last checkpoint halves
            its step and goes back to its best point.
        options: the other options of :class:`SENSE` but c, alpha, momentum, tau and step_rule, by name.

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", 2020.
    """

    def __init__(
        self,
        model: Any,
        eps: float | Tensor = 8 / 255,
        steps: int = 10,
        norm: object = "Linf",
        random_start: bool = True,
        *,
        rho: float = 0.75,
        **options: Any,
    ) -> None:
        super().__init__(model, eps, None, steps, norm, random_start, step_rule="apgd", rho=rho, **options)


def perturb(
    model: Any,
    x: Tensor,
    y: Tensor | None = None,
    eps: float | Tensor = 8 / 255,
    alpha: float | Tensor | None = None,
    steps: int = 10,
    c: float | None = 0.5,
    norm: object = "Linf",
    *,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_info: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, AttackInfo]:
    """``SENSE(model, eps, alpha, steps, c, norm, **options)(x, y, ...)`` in one call; c=None is PGD."""
    attack = Attack(model, eps, alpha, steps, c, norm, **options)
    if return_info:
        return attack(x, y, seed=seed, sample_ids=sample_ids, generator=generator, return_info=True)
    return attack(x, y, seed=seed, sample_ids=sample_ids, generator=generator)
