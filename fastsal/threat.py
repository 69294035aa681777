"""What the adversary may do: norm, radius, step, box. Start and step of the attack, as numbers that hold exactly."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsal import backends  # noqa: F401  (binds the operators)
from fastsal.checks import FLOATS, NORMS, channel_view
from fastsal.facts import Check, Facts

_random_start = torch.ops.fastsal.random_start.default
_random_start_out = torch.ops.fastsal.random_start.out
_pgd_step = torch.ops.fastsal.pgd_step.default
_pgd_step_out = torch.ops.fastsal.pgd_step.out

Bound = float | Tensor | None
BOX_TOLERANCE = 1e-6  # an input this far outside the box is clamped; further, it is an error


def norm_order(norm: object) -> float:
    """The order p of a norm given as "Linf", "L2", "L1" (any case), np.inf, 2 or 1."""
    named = {"linf": math.inf, "inf": math.inf, "l2": 2.0, "2": 2.0, "l1": 1.0, "1": 1.0}
    p = named.get(norm.lower()) if isinstance(norm, str) else None
    if isinstance(norm, numbers.Real) and not isinstance(norm, bool):
        p = float(norm)
    if p not in NORMS:
        raise ValueError(f"norm: expected 'Linf', 'L2', 'L1', inf, 2 or 1, got {norm!r}")
    return p


def norm_name(p: float) -> str:
    return "Linf" if p == math.inf else f"L{p:g}"


def cut_of(c: float | None) -> float:
    """The truncation -log(c). None: never (inf, and NaN aside nothing is over); 1: always (nothing can be sure)."""
    if c is None:
        return math.inf
    if isinstance(c, bool) or not isinstance(c, numbers.Real) or not 0 <= c <= 1:
        raise ValueError(f"c: expected None or a probability in [0, 1], got {c!r}")
    if c == 0:
        return math.inf
    return -math.inf if c == 1 else -math.log(c)


def seed_of(seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One int64 on `device`. Drawn on the CPU for every device, so that one manual_seed gives one noise."""
    if seed is not None and generator is not None:
        raise ValueError("generator: expected None when seed is given, got both")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"seed: expected one torch.int64, got {seed.dtype} {tuple(seed.shape)}")
        return seed.detach().reshape(()).to(device)
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed: expected an integer in [-2**63, 2**63), got {seed!r}")
        drawn = torch.tensor(int(seed), dtype=torch.int64, device="cpu")
    else:
        drawn = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    return drawn.to(device, non_blocking=True)  # eight bytes are staged at once: the host does not wait for the device


def topk_of(l1_sparsity: float, size: int) -> int:
    """The share `l1_sparsity` of `size` elements, rounded up, at least one."""
    number = isinstance(l1_sparsity, numbers.Real) and not isinstance(l1_sparsity, bool)
    if not number or not 0 < l1_sparsity <= 1:
        raise ValueError(f"l1_sparsity: expected a share in (0, 1], got {l1_sparsity!r}")
    return max(1, math.ceil(l1_sparsity * size * (1 - 2.0**-50)))  # 0.05 * 140 is a little more than 7


def _round(value: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """float64 values in `dtype`, rounded towards +inf or -inf, so that a bound in `dtype` implies the float64 one."""
    rounded = value.to(dtype)
    beyond = rounded.double() > value if towards < 0 else rounded.double() < value
    return torch.where(beyond, torch.nextafter(rounded, torch.full_like(rounded, towards)), rounded)


def number_or_tensor(name: str, value: object) -> None:
    """Refuses what is neither a number nor a tensor of numbers."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number and not (isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool):
        raise TypeError(f"{name}: expected a number or a tensor of numbers, got {value!r}")


def _values(name: str, value: float | Tensor, count: int, unit: str, x: Tensor) -> Tensor:
    """A float, or one value per sample or channel, as a float64 vector of length 1 or `count`."""
    number_or_tensor(name, value)
    if not isinstance(value, Tensor):
        return torch.full((1,), float(value), dtype=torch.float64, device=x.device)
    if value.device != x.device and (value.dim() > 0 or value.device.type == "meta"):
        raise ValueError(f"{name}: expected device {x.device}, that of x, got {value.device}")
    if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, count)):
        raise ValueError(f"{name}: expected a float or shape ({count},), one per {unit}, got {tuple(value.shape)}")
    return value.detach().to(x.device, torch.float64).reshape(-1)


def radius(name: str, value: float | Tensor, x: Tensor, facts: Facts) -> Tensor:
    """eps or alpha in the dtype of x, never above what was asked for."""
    given = _values(name, value, x.shape[0], "sample", x)

    def check(numbers: list[float]) -> None:
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"{name}: expected finite and >= 0, got {value}")

    _expect(given, value, facts, check)
    return _round(given, x.dtype, -math.inf)


def bound(name: str, value: Bound, x: Tensor, towards: float, facts: Facts) -> Tensor | None:
    if value is None:
        return None
    given = _values(name, value, x.shape[1] if x.dim() > 1 else 1, "channel", x)

    def check(numbers: list[float]) -> None:
        for number in numbers:  # not math.isnan, which torch.compile does not trace; infinite on its own side: no bound
            if number != number or number == towards:
                raise ValueError(
                    f"{name}: expected numbers {'below' if towards > 0 else 'above'} {towards}, got {value}"
                )

    _expect(given, value, facts, check)
    largest = torch.finfo(x.dtype).max
    return _round(given.clamp(-largest, largest), x.dtype, towards)


def _pinned(low: Tensor, high: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds between which there is no number of their dtype, so that rounding inwards crossed them, at the nearest."""
    crossed = torch.nextafter(high, torch.full_like(high, math.inf)) == low
    return torch.where(crossed, nearest, low), torch.where(crossed, nearest, high)


def _expect(given: Tensor, value: float | Tensor, facts: Facts, check: Check) -> None:
    """The extremes of `given`, NaN where one is in it: at once where the host knows them, else with the other facts."""
    if not isinstance(value, Tensor):
        check([float(value)])
    elif given.numel():
        facts.expect([given.amin(), given.amax()], check)


@dataclass(frozen=True)
class Threat:
    """A ball of radius `eps` (norm of order `p`) around each sample, cut by a box.

    eps, alpha: (1,) or (N,); clip_min, clip_max: (1,), (C,) or None; all in the dtype of x. alpha < 0 descends.
    topk: how many elements of a row an L1 step moves.
    """

    p: float
    eps: Tensor
    alpha: Tensor
    clip_min: Tensor | None
    clip_max: Tensor | None
    topk: int = 1

    @classmethod
    def around(
        cls,
        x: Tensor,
        norm: object,
        eps: float | Tensor,
        alpha: float | Tensor,
        clip_min: Bound,
        clip_max: Bound,
        descend: bool = False,
        l1_sparsity: float = 0.05,
        facts: Facts | None = None,
    ) -> Threat:
        """The threat that a user describes. Values are checked here, or, with `facts`, when those are read."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if x.dtype not in FLOATS or x.layout != torch.strided:
            raise TypeError(f"x: expected a dense tensor of torch.float32 or torch.float64, got {x.layout} {x.dtype}")
        if x.dim() < 1:
            raise ValueError(f"x: expected a batch dimension, shape (N, ...), got {tuple(x.shape)}")
        known = Facts() if facts is None else facts
        low = bound("clip_min", clip_min, x, math.inf, known)
        high = bound("clip_max", clip_max, x, -math.inf, known)
        if low is not None and high is not None and clip_min is not None:

            def ordered(numbers: list[float]) -> None:
                if not numbers[0] <= numbers[1]:
                    raise ValueError(f"clip_max: expected at least clip_min ({clip_min}), got {clip_max}")

            if isinstance(clip_min, Tensor) or isinstance(clip_max, Tensor) or clip_min == clip_max:
                low, high = _pinned(low, high, _values("clip_min", clip_min, low.shape[0], "channel", x).to(x.dtype))
            if isinstance(clip_min, Tensor) or isinstance(clip_max, Tensor):
                known.expect([(low - high).amax(), low.new_zeros(())], ordered)
            elif clip_min is not None and clip_max is not None:
                ordered([clip_min, clip_max])
        size, step = radius("eps", eps, x, known), radius("alpha", alpha, x, known)
        if facts is None:
            known.read()
        topk = topk_of(l1_sparsity, math.prod(x.shape[1:]))
        return cls(norm_order(norm), size, -step if descend else step, low, high, topk)

    def start(
        self,
        x: Tensor,
        seed: Tensor,
        sample_ids: Tensor | None,
        ids: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """x_0 = project(x + noise) for the samples `ids` (all of them if None), into `out` where given."""
        operands = (x, self.eps, seed, sample_ids, self.clip_min, self.clip_max, ids, self.p)
        if out is not None:
            _random_start_out(*operands, start_out=out)
            return out
        x_0: Tensor = _random_start(*operands)
        return x_0

    def step(
        self,
        x: Tensor,
        x_k: Tensor,
        grad: Tensor,
        rows: Tensor | None = None,
        ids: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x_{k+1} = project(x_k + alpha * direction(grad)), into `out` where given, and which rows had a gradient that
        is not finite."""
        operands = (x, x_k, grad, self.eps, self.alpha, self.clip_min, self.clip_max, rows, ids, self.p, self.topk)
        if out is None:
            following: tuple[Tensor, Tensor] = _pgd_step(*operands)
            return following
        nonfinite = torch.empty(len(out), dtype=torch.bool, device=out.device)
        _pgd_step_out(*operands, next_out=out, nonfinite_out=nonfinite)
        return out, nonfinite

    def inspect(self, x: Tensor, facts: Facts) -> list[float]:
        """Asks for the range of x: an x that is not finite, or more than 1e-6 outside the box, is an error.

        The list holds, when the facts were read, how far x lies outside the box.
        """
        found: list[float] = []
        if x.numel() == 0:
            return found
        low, high = self.clip_min, self.clip_max
        per_channel = max(0 if edge is None else edge.shape[0] for edge in (low, high)) > 1
        dims = [0, *range(2, x.dim())] if per_channel else list(range(x.dim()))
        least, most = x.amin(dims).view(-1), x.amax(dims).view(-1)
        below = (low - least).amax() if low is not None else least.new_zeros(())
        above = (most - high).amax() if high is not None else least.new_zeros(())

        def check(numbers: list[float]) -> None:
            outside, span, edges = max(numbers[:2]), numbers[2:4], numbers[4:]
            if not all(map(math.isfinite, span)):
                raise ValueError(f"x: expected finite values, got a range of {span[0]} to {span[1]}")
            if outside > BOX_TOLERANCE:
                ends = ["unbounded" if math.isinf(edge) else f"{edge:g}" for edge in edges]
                box = "[clip_min, clip_max]" if per_channel else f"[{', '.join(ends)}]"
                raise ValueError(
                    f"x: expected values in {box}, got a range of {span[0]:.9g} to {span[1]:.9g}, {outside:.3g} "
                    "outside; clip_min and clip_max take a float, one value per channel, or None for no bound"
                )
            found.append(outside)

        edges = [least.new_full((), math.inf) if edge is None else edge[0] for edge in (low, high)]
        facts.expect([below, above, least.amin(), most.amax(), *edges], check)
        return found

    def admitted(self, x: Tensor, outside: list[float]) -> Tensor:
        """x itself where :meth:`inspect` found it in the box, else x clamped into it."""
        low, high = self.clip_min, self.clip_max
        if (low is None and high is None) or (outside and outside[0] <= 0):
            return x
        edges = [None if edge is None else channel_view(edge, x) for edge in (low, high)]
        return x.clamp(*edges)

    def admit(self, x: Tensor) -> Tensor:
        """x as an attack takes it, looked at here and now."""
        facts = Facts()
        outside = self.inspect(x, facts)
        facts.read()
        return self.admitted(x, outside)


def largest_radius(eps: float | Tensor, threat: Threat, facts: Facts) -> list[float]:
    """Holds the largest radius in the dtype of x: at once where the host knows it, else when the facts were read."""
    if not isinstance(eps, Tensor):
        limits = torch.finfo(threat.eps.dtype)
        return [float(eps) if float(eps) >= limits.tiny * limits.eps else 0.0]  # radii are rounded down
    found: list[float] = []
    if threat.eps.numel():
        facts.expect([threat.eps.amax()], found.extend)
    return found
