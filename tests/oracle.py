"""The sensible adversary as one full-batch loop: no compaction, no kernels, nothing of fastsal.

Kim & Wang, arXiv 2205.10457. Every row goes through every forward; masks say what counts. Slow on purpose:
this is what the engine is compared with, so it has to be readable next to the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------------------- the adversary


@dataclass
class Outcome:
    """What the loop returned, and what it saw on the way."""

    x_adv: Tensor
    stop_step: Tensor  # (N,) index of the returned iterate, -1 where x (or x_0) was returned unattacked
    ignored: Tensor  # (N,) bool
    tested: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (rows tested, their CE)
    rows: list[int] = field(default_factory=list)  # rows a compacting engine runs, forward by forward
    gradient_rows: list[int] = field(default_factory=list)  # and backward by backward

    def near_cut(self, cut: float, width: float = 1e-12) -> Tensor:
        """Rows whose cross-entropy came within `width` of the cut in any test that counted."""
        near = torch.zeros_like(self.ignored)
        for mask, ce in self.tested:
            near |= mask & ((ce - cut).abs() <= width)
        return near


def cut_of(c: float) -> float:
    return math.inf if c == 0 else -math.log(c)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Carlini & Wagner: the best wrong logit minus the true one."""
    true = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -math.inf).amax(1) - logits[true]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Croce & Hein 2020, equation 6."""
    z = logits.sort(dim=1, descending=True).values
    return margin(logits, y) / (z[:, 0] - z[:, 2] + 1e-12)


def kl_from(clean: Tensor) -> Any:
    """KL(clean || adversarial), for the whole batch in order: TRADES."""

    def kl(logits: Tensor, y: Tensor) -> Tensor:
        return (clean.softmax(1) * (clean.log_softmax(1) - logits.log_softmax(1))).sum(1)

    return kl


LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def right(logits: Tensor, y: Tensor) -> Tensor:
    """The lowest index among the largest logits is y. NaN equals nothing, so it is never right."""
    classes = torch.arange(logits.shape[1])
    largest = logits == logits.amax(1, keepdim=True)
    return torch.where(largest, classes, logits.shape[1]).amin(1) == y


def over(logits: Tensor, y: Tensor, cut: float) -> Tensor:
    """Not (CE <= cut): a tie is inside, a NaN is over."""
    return ~(cross_entropy(logits, y) <= cut)


def rowwise(v: Tensor | float, x: Tensor) -> Tensor:
    """A scalar or (N,) value, shaped to broadcast against x."""
    v = torch.as_tensor(v, dtype=x.dtype)
    return v.reshape(-1, *[1] * (x.dim() - 1)) if v.dim() else v


def pick(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of a where the mask is set, of b elsewhere."""
    return torch.where(mask.reshape(-1, *[1] * (a.dim() - 1)), a, b)


def into_box(z: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    def bound(v: Tensor | float) -> Tensor:
        v = torch.as_tensor(v, dtype=z.dtype)
        return v.reshape(-1, *[1] * (z.dim() - 2)) if v.dim() else v  # (C,) goes along dim 1

    z = z if low is None else torch.maximum(z, bound(low))
    return z if high is None else torch.minimum(z, bound(high))


def length(v: Tensor) -> Tensor:
    return rowwise(v.flatten(1).norm(dim=1), v)


def step(x: Tensor, x_k: Tensor, g: Tensor, eps, alpha, norm: str, low, high) -> Tensor:
    eps, alpha = rowwise(eps, x), rowwise(alpha, x)
    if norm == "Linf":
        z = x_k + alpha * g.sign()
        z = torch.minimum(torch.maximum(z, x - eps), x + eps)
    elif norm == "L1":
        return into_l1_ball_and_box(x, x_k + alpha * sparse(g), eps, low, high)
    else:
        size = length(g)
        delta = x_k + alpha * torch.where(size > 0, g / size, 0.0) - x
        z = x + delta * torch.clamp(eps / length(delta), max=1.0)
    return into_box(z, low, high)


def sparse(g: Tensor, share: float = 0.05) -> Tensor:
    """Signs of the largest 5 % of each row, by magnitude, over their number."""
    flat = g.flatten(1)
    first = flat.abs().argsort(dim=1, descending=True, stable=True)[:, : math.ceil(share * flat.shape[1])]
    signs = torch.zeros_like(flat).scatter_(1, first, flat.gather(1, first).sign())
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).reshape(g.shape)


def into_l1_ball_and_box(x: Tensor, z: Tensor, eps: Tensor, low, high) -> Tensor:
    """The nearest point of both: |z - x| shrunk by one number per row, then cut at the box; the number by bisection."""
    size = (z - x).abs()
    room = (into_box(x + 2 * (z - x).sign() * size.amax().clamp(min=1), low, high) - x).abs()

    def kept(shrink: Tensor) -> Tensor:
        return torch.minimum((size - rowwise(shrink, x)).clamp(min=0), room)

    least, most = torch.zeros(len(x), dtype=x.dtype), size.flatten(1).amax(1)
    radius = eps.reshape(-1) if eps.dim() else eps
    inside = kept(least).flatten(1).sum(1) <= radius
    for _ in range(200):
        middle = (least + most) / 2
        small = kept(middle).flatten(1).sum(1) <= radius
        least, most = torch.where(small, least, middle), torch.where(small, middle, most)
    return x + (z - x).sign() * kept(torch.where(inside, 0.0, most))


def gradient(model, x: Tensor, y: Tensor, loss: Any) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(LOSSES.get(loss, loss)(model(x), y).sum(), x)[0]


def attack(
    model,
    x: Tensor,
    y: Tensor,
    x_0: Tensor,
    *,
    eps,
    alpha,
    steps: int,
    c: float | None,
    norm: str = "Linf",
    loss: Any = "ce",
    targeted: bool = False,
    ignored: str = "clean",
    decide_at: str = "start",
    truncate: bool = True,
    clip_min=0.0,
    clip_max=1.0,
) -> Outcome:
    """SENSE from the start x_0 (PGD when c is None). `model` is in eval mode and returns logits."""

    @torch.no_grad()
    def logits(z: Tensor) -> Tensor:
        return model(z)

    everyone = torch.ones(len(x), dtype=torch.bool)
    seen = Outcome(x, everyone, everyone)

    def crosses(z: Tensor, live: Tensor) -> Tensor:
        out = logits(z)
        seen.tested.append((live, cross_entropy(out, y)))
        return live & over(out, y, cut)

    # Who is attacked at all.
    if c is None:
        truncate, live = False, everyone
    else:
        cut = cut_of(c)
        judged_at = x if decide_at == "clean" else x_0
        live = right(logits(judged_at), y) & ~crosses(judged_at, everyone)
        if c == 1:
            live = ~everyone
        seen.rows.append(len(x))
    seen.ignored = ~live

    # The result so far: the last point inside the cut. Point -1 is x, or whatever stands in for it.
    result = pick(seen.ignored, x_0 if ignored == "start" else x, x)
    stop = torch.full_like(y, -1)

    def accept(live: Tensor, z: Tensor, k: int) -> None:
        result.copy_(pick(live, z, result))
        stop.masked_fill_(live, k)

    judged_x_0 = c is not None and decide_at == "start"
    if live.any() and truncate and not judged_x_0:
        seen.rows.append(int(live.sum()))
        live = live & ~crosses(x_0, live)
        judged_x_0 = True
    accept(live, x_0, 0)

    x_k = x_0
    for k in range(steps):
        if not live.any():
            break
        if not (judged_x_0 if k == 0 else truncate):  # otherwise the test of x_k was this forward
            seen.rows.append(int(live.sum()))
        seen.gradient_rows.append(seen.rows[-1])
        g = gradient(model, x_k, y, loss)
        x_k = step(x, x_k, -g if targeted else g, eps, alpha, norm, clip_min, clip_max)
        if truncate:
            seen.rows.append(int(live.sum()))
            live = live & ~crosses(x_k, live)
        accept(live, x_k, k + 1)

    seen.x_adv, seen.stop_step = result, stop
    return seen


# ---------------------------------------------------------------------------- noise

PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
PHILOX_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox-4x32-10 (Salmon et al., SC'11): counters (..., 4) and keys (..., 2) to words (..., 4)."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = np.moveaxis(key.astype(np.uint64), -1, 0)
    for _ in range(10):
        a, b = PHILOX_MULTIPLIERS[0] * c0, PHILOX_MULTIPLIERS[1] * c2  # 32 x 32 bits fit in 64
        c0, c1, c2, c3 = (b >> HALF) ^ c1 ^ k0, b & LOW, (a >> HALF) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + PHILOX_WEYL[0]) & LOW, (k1 + PHILOX_WEYL[1]) & LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), -1).astype(np.uint32)


def halves(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high 32 bits of int64 values, as two's complement."""
    bits = np.asarray(v, dtype=np.int64).view(np.uint64)
    return bits & LOW, bits >> HALF


def uniform(seed: int, sample_ids: np.ndarray, elements: int) -> np.ndarray:
    """(N, elements) float64 in (0, 1): element e of sample id takes word e % 4 of counter e // 4."""
    blocks = np.arange(-(-elements // 4))
    sample_ids = np.asarray(sample_ids, dtype=np.int64)
    counter = np.empty((len(sample_ids), len(blocks), 4), dtype=np.uint64)
    counter[..., 0], counter[..., 1] = halves(blocks)
    counter[..., 2], counter[..., 3] = (h[:, None] for h in halves(sample_ids))
    key = np.array([int(h) for h in halves(np.int64(seed).reshape(()))], dtype=np.uint64)
    words = philox(counter, key).reshape(len(sample_ids), -1)[:, :elements]
    return ((words >> 9) + 0.5) * 2.0**-23  # exact: 24 bits


def at_most(value: float, dtype) -> np.ndarray:
    """The largest number of dtype that is <= value."""
    v = np.asarray(value, dtype=dtype)
    return v if float(v) <= value else np.nextafter(v, dtype(-np.inf))


def sum_rounded(a: np.ndarray, b: np.ndarray, towards: float) -> np.ndarray:
    """a + b in their own dtype, rounded towards -inf or +inf (Knuth's two-sum finds the error)."""
    s = a + b
    bb = s - a
    error = (a - (s - bb)) + (b - bb)
    wrong_way = error < 0 if towards < 0 else error > 0
    return np.where(wrong_way, np.nextafter(s, s.dtype.type(towards)), s)


def linf_start(
    x: np.ndarray, eps: float, seed: int, sample_ids: np.ndarray, low: float | None, high: float | None
) -> np.ndarray:
    """x + eps * (2u - 1) in the dtype of x, each operation rounded by itself, into ball and box."""
    flat, dtype = x.reshape(len(x), -1), x.dtype.type
    radius = at_most(eps, dtype)
    u = uniform(seed, sample_ids, flat.shape[1]).astype(dtype)
    z = flat + radius * (dtype(2) * u - dtype(1))
    z = np.minimum(z, sum_rounded(flat, np.broadcast_to(radius, flat.shape), -np.inf))
    z = np.maximum(z, sum_rounded(flat, np.broadcast_to(-radius, flat.shape), np.inf))
    if low is not None:
        z = np.maximum(z, dtype(low))
    if high is not None:
        z = np.minimum(z, dtype(high))
    return z.reshape(x.shape)
