"""One call of an attack, from its arguments to what it returns. The algorithm itself is in
:mod:`fastsal.algorithm`, the attacks by name in :mod:`fastsal.attacks`."""

from __future__ import annotations

import math
import numbers
import time
from contextlib import nullcontext
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastsal import heap
from fastsal.algorithm import Rule, sensible_adversaries
from fastsal.checks import FLOATS
from fastsal.facts import Facts
from fastsal.judge import Judge, TargetedMargin, check_range, loss_of
from fastsal.levers import Levers, levers_of
from fastsal.live import AttackInfo, Buckets, Counts, Exact, LiveRows, Sizing, WholeBatch
from fastsal.model_view import RandomState, warn_of_probabilities
from fastsal.normalize import Normalize
from fastsal.operators import memory_format
from fastsal.precision import precision_of
from fastsal.refused import Refused, remember
from fastsal.steps import AutoPGD, Fixed, Momentum, StepRule
from fastsal.threat import (
    Bound,
    Threat,
    cut_of,
    largest_radius,
    norm_name,
    norm_order,
    number_or_tensor,
    seed_of,
    topk_of,
)
from fastsal.view import View, viewed

Ran = tuple[LiveRows, dict[str, str], dict[str, float]]  # with notes on the levers, and seconds


class Attack:
    """The engine behind :class:`SENSE`, :class:`PGD` and their kin; its arguments are documented there."""

    def __init__(
        self,
        model: Any,
        eps: float | Tensor = 8 / 255,
        alpha: float | Tensor | None = None,
        steps: int = 10,
        c: float | None = 0.5,
        norm: object = "Linf",
        random_start: bool = True,
        *,
        loss: object = "ce",
        targeted: bool = False,
        ignored: str = "clean",
        decide_at: str = "start",
        truncate: bool = True,
        momentum: float = 0.0,
        tau: int | None = None,
        step_rule: str = "fixed",
        rho: float = 0.75,
        l1_sparsity: float = 0.05,
        clip_min: Bound = 0.0,
        clip_max: Bound = 1.0,
        normalize: tuple[Any, Any] | None = None,
        precision: str = "auto",
        compile: bool | str = False,
        fast: bool | Levers = True,
        check_inputs: bool = True,
    ) -> None:
        for name, value, allowed in (
            ("ignored", ignored, ("clean", "start")),
            ("decide_at", decide_at, ("start", "clean")),
            ("step_rule", step_rule, ("fixed", "apgd")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected {' or '.join(map(repr, allowed))}, got {value!r}")
        _whole("steps", steps)
        if tau is not None:
            _whole("tau", tau)
        for name, number, most in (("momentum", momentum, math.inf), ("rho", rho, 1.0)):
            real = isinstance(number, numbers.Real) and not isinstance(number, bool)
            if not real or not 0 <= number <= most or math.isinf(number):
                raise ValueError(f"{name}: expected a number in [0, {most:g}], got {number!r}")
        if targeted and c is not None:
            raise ValueError(f"c: expected None when targeted=True (the cut is on the true class), got {c!r}")
        if c is not None and (tau is not None or step_rule == "apgd"):
            other = "tau" if tau is not None else "step_rule='apgd'"
            raise ValueError(f"c: expected None with {other}, which has its own rule of where a row ends, got {c!r}")
        if targeted and tau is not None:
            raise ValueError(f"tau: expected None when targeted=True (it counts misclassified iterates), got {tau!r}")
        if step_rule == "apgd" and (momentum or tau is not None):
            name, given = ("momentum", momentum) if momentum else ("tau", tau)
            raise ValueError(f"{name}: expected none with step_rule='apgd', got {given!r}")
        if targeted and loss == "kl":
            raise ValueError("loss: expected one of the target labels with targeted=True, got 'kl', which has none")
        if loss == "kl" and not random_start:
            raise ValueError("random_start: expected True with loss='kl', whose gradient at x is zero, got False")
        self.model = model
        self.eps = eps
        self.alpha = alpha
        self.c = c
        self.norm = norm_name(norm_order(norm))
        self.loss = loss_of(loss)  # refused here rather than at the first batch
        self.targeted = targeted
        self.momentum, self.step_rule, self.rho = float(momentum), step_rule, float(rho)
        self.l1_sparsity = l1_sparsity
        self.clip_min, self.clip_max = clip_min, clip_max
        self.normalize = None if normalize is None else Normalize.of(normalize)
        self.precision = precision_of(precision)
        self.levers = levers_of(fast)
        self.fast = fast is not False
        self.backend = _backend(compile, self.fast)
        self.check_inputs = check_inputs
        self.rule = Rule(steps, random_start, ignored, decide_at, truncate, tau)
        cut_of(c)
        topk_of(l1_sparsity, 1)

    @property
    def steps(self) -> int:
        return self.rule.steps

    @overload
    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_info: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_info: Literal[True],
    ) -> tuple[Tensor, AttackInfo]: ...

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, AttackInfo]:
        """Perturbs a batch.

        Args:
            x: (N, ...) inputs in [clip_min, clip_max], rank >= 2, fp32 or fp64. An x up to 1e-6 outside is clamped.
            y: (N,) int64 true labels (target labels when `targeted`); None takes the model's own predictions at x.
            seed: an int64 that fixes the noise; the global random state is then not touched.
            sample_ids: (N,) int64, identities that fix each row's noise however batches are cut; None is 0, 1, ...
            generator: a CPU generator to draw the seed from. With neither, exactly one int64 is drawn from the
                global CPU generator, for any device.
            return_info: also return an :class:`AttackInfo`.

        Returns:
            x_adv, detached, of the shape, dtype, device and memory format of x; with `return_info` a pair.

        Raises:
            ValueError, TypeError: an argument out of the contract, naming it. Nothing has changed then.
        """
        if torch.compiler.is_dynamo_compiling():  # an attack exchanges forwards and weights, which a trace would keep
            return torch.compiler.disable(self)(  # type: ignore[no-any-return]
                x, y, seed=seed, sample_ids=sample_ids, generator=generator, return_info=return_info
            )
        begin = time.perf_counter()
        _check_batch(x, y, sample_ids, self.targeted)
        if self.check_inputs and x.device.type == "meta":
            raise ValueError("x: expected a tensor with values, got one on device meta")
        with torch.inference_mode(False), torch.no_grad(), RandomState(x.device, generator) as random_state:
            x = x.detach()
            x = x.contiguous(memory_format=memory_format(x))
            facts = Facts()
            threat = self._threat(x, facts)
            outside = threat.inspect(x, facts) if self.check_inputs else []
            labels = _labels(y, facts) if self.check_inputs else []
            largest = largest_radius(self.eps, threat, facts)
            if self.check_inputs or x.device.type == "cpu":
                facts.read()  # the one wait for the values of the arguments
            x = threat.admitted(x, outside)
            key = seed_of(seed, generator, x.device)
            random_state.keep()
            if len(x) == 0 or self.steps == 0 or largest == [0.0]:
                live = LiveRows(x, self.steps)
                live.finish(x.clone())
                live.stop.fill_(-1)
                levers, seconds = dict[str, str](), {"model": 0.0, "kernels": 0.0}
            else:
                live, levers, seconds = self._run(threat, x, y, labels, key, sample_ids)
            result = live.result.contiguous(memory_format=memory_format(x))
            if not return_info:
                return result
            return result, live.info(levers, {"all": time.perf_counter() - begin, **seconds})

    perturb = __call__

    def _threat(self, x: Tensor, facts: Facts) -> Threat:
        alpha = self.alpha
        if alpha is None:
            number_or_tensor("eps", self.eps)
            alpha = self.eps * (1.875 / max(self.steps, 1))
        return Threat.around(
            x,
            self.norm,
            self.eps,
            alpha,
            self.clip_min,
            self.clip_max,
            descend=self.targeted,
            l1_sparsity=self.l1_sparsity,
            facts=facts,
        )

    def _run(
        self,
        threat: Threat,
        x: Tensor,
        y: Tensor | None,
        labels: list[float],
        seed: Tensor,
        sample_ids: Tensor | None,
    ) -> Ran:
        precision = self.precision if self.fast or self.precision != "auto" else "fp32"
        if precision == "auto" and (self.loss == "kl" or self.rule.tau is not None):
            precision = "fp32"  # what bf16 does to these was not measured
        without = dict[str, str]()  # levers that the model turned out not to take, and why
        memory = heap.kept(x.device.type) if self.levers.kept_memory else nullcontext("off")
        with memory as note:
            while True:
                try:
                    with viewed(self.model, x, self.levers, precision, self.normalize, self.backend, without) as view:
                        live, levers, seconds = self._run_on(view, threat, x, y, labels, seed, sample_ids)
                except Refused as refused:
                    without[refused.lever] = refused.why
                    continue
                remember(self.model, without)  # when it is known that this is all that was in the way
                return live, {**levers, "kept_memory": note}, seconds

    def _run_on(
        self,
        view: View,
        threat: Threat,
        x: Tensor,
        y: Tensor | None,
        labels: list[float],
        seed: Tensor,
        sample_ids: Tensor | None,
    ) -> Ran:
        def at_first_sight(z: Tensor) -> None:
            check_range(labels, z.shape[1])
            if self.check_inputs:
                warn_of_probabilities(self.model, z)

        x = x.contiguous(memory_format=view.format)
        live = LiveRows(x, self.steps, self._sizing(x, view))
        cut = None if self.c is None else cut_of(self.c)
        clean = None
        if y is None or self.loss == "kl" or (cut is not None and self.rule.decides_at_clean):
            clean = view.forward(x.clone(), gradient=False)[1]  # a clone: a model may edit its input in place
            live.forwarded(len(x), iterate=False)
        if y is None:
            assert clean is not None
            y = clean.argmax(dim=1)
        move = self._step_rule(threat, x)
        watched = move.watches or self.rule.tau is not None
        judge = Judge(y, cut, _inside(view, self.loss), clean, watched, at_first_sight)

        def noise(ids: Tensor | None) -> Tensor:
            if self.rule.random_start:
                return threat.start(x, seed, sample_ids, ids, live.padded())
            return x.clone() if ids is None else x[ids]

        begin, before = time.perf_counter(), view.seconds
        sensible_adversaries(view, judge, move, live, x, noise, self.rule)
        outside = time.perf_counter() - begin - (view.seconds - before)
        live.right = judge.right_at_first
        seconds = {"model": view.seconds, "kernels": outside}
        return live, {**view.notes, "live_rows": live.sizing.note}, seconds

    def _sizing(self, x: Tensor, view: View) -> Sizing:
        """How the batch shrinks."""
        chosen = self.levers.live_rows
        if view.goes_by_batch:
            return WholeBatch(len(x), "off: a batch norm without statistics goes by its batch")
        if chosen == "auto":
            chosen = "exact" if x.device.type == "cpu" and self.backend is None else "buckets"
        if chosen == "exact":
            return Exact()
        return WholeBatch(len(x)) if chosen == "off" else Buckets(len(x), Counts())

    def _step_rule(self, threat: Threat, x: Tensor) -> StepRule:
        if self.step_rule == "apgd":
            return AutoPGD(threat, x, self.steps, self.targeted, self.rho)
        return Momentum(threat, x, self.momentum) if self.momentum else Fixed(threat, x)


def _inside(view: View, loss: object) -> object:
    """A function of the user's, in the precision of the model, which it may call."""
    if isinstance(loss, (str, TargetedMargin)) or not callable(loss):
        return loss

    def inside(logits: Tensor, y: Tensor) -> Any:
        with view.context():
            return loss(logits, y)

    return inside


def _backend(compile: object, fast: bool) -> str | None:
    """The backend of torch.compile, or None."""
    if not isinstance(compile, (bool, str)):
        raise TypeError(f"compile: expected True, False or the name of a backend of torch.compile, got {compile!r}")
    if compile and not fast:
        raise ValueError(f"compile: expected False with fast=False, the plain eager path, got {compile!r}")
    return "inductor" if compile is True else compile or None


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{name}: expected an integer >= 0, got {value!r}")


def _check_batch(x: Tensor, y: Tensor | None, sample_ids: Tensor | None, targeted: bool) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"x: expected torch.float32 or torch.float64, got {x.dtype}, whose grid is coarser than the ball: "
            "pass x.float()"
        )
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected torch.float32 or torch.float64, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"x: expected a dense tensor, got {x.layout}")
    if x.dim() < 2:
        raise ValueError(f"x: expected shape (N, ...) of rank >= 2, got {tuple(x.shape)}")
    if y is None and targeted:
        raise ValueError("y: expected target labels when targeted=True, got None")
    for name, vector in (("y", y), ("sample_ids", sample_ids)):
        if vector is None:
            continue
        if not isinstance(vector, Tensor) or vector.dtype != torch.int64:
            got = vector.dtype if isinstance(vector, Tensor) else type(vector).__name__
            raise TypeError(f"{name}: expected a tensor of torch.int64, got {got}")
        if tuple(vector.shape) != (x.shape[0],):
            raise ValueError(f"{name}: expected shape ({x.shape[0]},), one per row of x, got {tuple(vector.shape)}")
        if vector.device != x.device:
            raise ValueError(f"{name}: expected device {x.device}, that of x, got {vector.device}")


def _labels(y: Tensor | None, facts: Facts) -> list[float]:
    """Holds, when the facts were read, the least and the largest label."""
    found: list[float] = []
    if y is not None and y.numel():
        facts.expect([y.amin(), y.amax()], found.extend)
    return found
