"""Arguments for every operator, and a way to run one body of it behind the contract's own checks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastsal.backends import EXTENSION, body_of, implementation
from fastsal.checks import FLOATS, GRADIENTS, NORMS
from fastsal.operators import OPERATORS

INF = math.inf
LAYOUTS = ("contiguous", "channels_last", "strided")
BODIES = ("reference",) if EXTENSION is None else ("reference", "cpp")
BOXES = ("none", "unit", "per channel", "half open")

IMPLEMENTATIONS = {
    (name, body): implementation(OPERATORS[name], body_of(name, body), check_values=body == "reference")
    for name in OPERATORS
    for body in BODIES
}


def run(body: str, name: str, *args: Any) -> tuple[Tensor, ...]:
    """What `name` returns when its `body` computes it; always a tuple."""
    out = IMPLEMENTATIONS[name, body](*args)
    return out if isinstance(out, tuple) else (out,)


def bits(value: Tensor) -> Tensor:
    """The bits of each element; every NaN counts as the same one."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return torch.where(value.isnan(), math.nan, value).contiguous().view(kind)


def same_bits(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and got.dtype == expected.dtype and torch.equal(bits(got), bits(expected))


def laid_out(value: Tensor, layout: str) -> Tensor:
    """The same values row-major, channels last (where there are channels), or as every second element of NaNs."""
    if layout == "strided":
        wide = torch.full((*value.shape, 2), math.nan).to(value.dtype)
        wide[..., 0] = value
        return wide[..., 0]
    if layout == "channels_last" and value.dim() in (4, 5):
        last = torch.channels_last if value.dim() == 4 else torch.channels_last_3d
        return value.contiguous(memory_format=last)
    return value.contiguous()


# --------------------------------------------------------------------------- numbers that make bodies differ


def box(kind: str, channels: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """clip_min and clip_max: no box, [0, 1], another interval per channel, or a lower bound alone."""
    low = torch.linspace(-1, 0.25, channels, dtype=dtype)
    high = torch.linspace(0.5, 2, channels, dtype=dtype)
    return {
        "none": (None, None),
        "unit": (torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)),
        "per channel": (low, high),
        "half open": (low, None),
    }[kind]


def clean(count: int, shape: tuple[int, ...], dtype: torch.dtype, kind: str = "unit") -> Tensor:
    """Points of the box: corners, signed zeros, tiny numbers, neighbours of 1/2, and random ones."""
    info = torch.finfo(dtype)
    special = torch.tensor([0, -0.0, 1, 0.5, info.tiny, info.tiny / 4, 1 / 3, 8 / 255, 1 - 8 / 255], dtype=dtype)
    special = torch.cat((special, special.nextafter(torch.tensor(0.5, dtype=dtype))))
    x = torch.rand(count, *shape, dtype=dtype)
    picked = special[torch.randint(len(special), x.shape)]
    x = torch.where(torch.rand(x.shape) < 0.4, picked, x)
    low, high = box(kind, shape[0] if shape else 1, dtype)
    per_channel = [1, -1, *[1] * (len(shape) - 1)][: x.dim()]
    if low is not None:
        x = torch.maximum(x, low.view(per_channel))
    if high is not None:
        x = torch.minimum(x, high.view(per_channel))
    return x


def around(x: Tensor, eps: Tensor, finite: bool = False) -> Tensor:
    """Current points: on the projection edge, one float to either side of it, inside, outside, not finite."""
    eps = eps.view(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    edge = x + torch.where(torch.rand(x.shape) < 0.5, -eps, eps)
    far = x + eps * 6 * (torch.rand_like(x) - 0.5)
    odd = [torch.full_like(x, number) for number in (-0.0, *((2, 2) if finite else (INF, math.nan)))]
    choices = torch.stack((x, edge, edge.nextafter(x), edge.nextafter(far), far, *odd))
    weights = torch.tensor([2, 3, 1, 1, 3, 0.3, 0.01, 0.005])
    pick = torch.multinomial(weights, max(x.numel(), 1), replacement=True)[: x.numel()].view(x.shape)
    return choices.gather(0, pick.unsqueeze(0)).squeeze(0)


def gradients(count: int, shape: tuple[int, ...], dtype: torch.dtype, finite: bool = False) -> Tensor:
    """Both zeros, the smallest and the largest numbers, and what is not finite."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal * info.eps, -info.smallest_normal * info.eps]
    special += [info.max, info.min] + ([] if finite else [INF, -INF, math.nan])
    grad = torch.randn(count, *shape, dtype=torch.float64).to(dtype)
    picked = torch.tensor(special, dtype=dtype)[torch.randint(len(special), grad.shape)]
    return torch.where(torch.rand(grad.shape) < 0.4, picked, grad)


def scores(count: int, classes: int, dtype: torch.dtype, ties: bool = True) -> Tensor:
    """Logits at several scales, with ties for the largest."""
    logits = torch.randn(count, classes, dtype=torch.float64) * 10.0 ** torch.randint(-2, 3, (count, 1))
    if ties:
        logits[::3] = logits[::3].round()
    return logits.to(dtype)


# ------------------------------------------------------------------------------- one call of each operator


def dtypes(name: str) -> list[tuple[torch.dtype, torch.dtype]]:
    """(dtype of x, dtype of the gradient) or (dtype of the logits, the same), all that the contract accepts."""
    if name == "pgd_step":
        return [(x, grad) for x in FLOATS for grad in GRADIENTS]
    return [(dtype, dtype) for dtype in (FLOATS if name in ("random_start", "retire") else GRADIENTS)]


# What else an operator can be asked to compute: its norm p, DLR instead of the margin, both gradients.
VARIANTS = {"random_start": NORMS, "pgd_step": NORMS, "margin_loss": (False, True), "kl_divergence": (True, False)}


def variants(name: str) -> tuple[Any, ...]:
    return VARIANTS.get(name, (None,))


def arguments(
    name: str,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    variant: Any = None,
    requires_grad: bool = False,
    padding: int = -1,
) -> list[Any]:
    """A valid call with gathers, padding (or a fourth sample), per-channel bounds and per-sample radii."""
    shape, samples, classes = (3, 4, 5), 6, 7
    variant = variants(name)[0] if variant is None else variant
    ids, rows = torch.tensor([4, padding, 0, 5]), torch.tensor([2, 0, 0, 4])
    low, high = box("per channel", shape[0], dtype) if dtype in FLOATS else (None, None)
    if name in ("random_start", "pgd_step"):
        x, eps = clean(samples, shape, dtype, "per channel"), torch.linspace(0, 0.3, samples, dtype=dtype)
        if name == "random_start":
            args = [x, eps, torch.tensor(77), torch.arange(samples) * 3, low, high, ids, variant]
        else:
            points = [x, around(x, eps, finite=variant != INF)[:5], gradients(5, shape, grad_dtype)]
            args = [*points, eps, eps / 4, low, high, rows, ids, variant, 7]
    elif name == "truncated_cross_entropy":
        args = [scores(4, classes, dtype), torch.arange(samples), ids, 0.7]
    elif name == "margin_loss":
        args = [scores(4, classes, dtype), torch.arange(samples), torch.arange(samples).roll(1), ids, variant]
    elif name == "kl_divergence":
        args = [scores(samples, classes, dtype), scores(4, classes, dtype), ids, variant]
    else:
        flags = [torch.tensor([True, False, True, True]), torch.tensor([False, False, True, False])]
        points = [clean(5, shape, dtype), clean(4, shape, dtype)]
        args = [*points, *flags, rows, ids, clean(samples, shape, dtype), torch.full((samples,), -1), 3, False]
    names = OPERATORS[name].argument_names
    for at, (label, value) in enumerate(zip(names, args, strict=True)):
        if isinstance(value, Tensor):
            in_place = label in ("result", "stop")
            value = laid_out(value, "contiguous" if in_place and layout == "strided" else layout).detach()
            args[at] = value.requires_grad_(requires_grad and value.is_floating_point() and not in_place)
    return args
