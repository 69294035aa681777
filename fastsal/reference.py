"""The maths of every operator in plain torch: the oracle of all other bodies, and the body for any device.

Each function takes exactly the arguments of its operator and returns its outputs. Nothing here looks at the data to
decide what to do next, so these bodies also run on an accelerator without a copy to the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastsal.operators import channel_view, loss_dtype

MASK32 = 0xFFFFFFFF
RADIUS_BLOCK = -1  # the counter block, 2**64 - 1, whose first word draws the radius of an L2 start


# ------------------------------------------------------------------------------------------- rounding


def _sum_and_error(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """s = fl(a + b) and the exact (a + b) - s (Knuth's two-sum), whose sign tells to which side s fell."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


def round_down_sum(a: Tensor, b: Tensor) -> Tensor:
    """The largest number of the dtype that is not above the exact a + b."""
    s, error = _sum_and_error(a, b)
    return torch.where(error < 0, torch.nextafter(s, torch.full_like(s, -math.inf)), s)


def round_up_sum(a: Tensor, b: Tensor) -> Tensor:
    """The smallest number of the dtype that is not below the exact a + b."""
    s, error = _sum_and_error(a, b)
    return torch.where(error > 0, torch.nextafter(s, torch.full_like(s, math.inf)), s)


def inner_radius(eps: Tensor) -> Tensor:
    """The L2 radius to aim at, in float64: short of eps by a margin, so that rounding in a norm cannot carry a point
    out of the ball. Where eps is too small for float64 to hold the margin, nothing moves."""
    inner = eps.double() * (1 - 2.0**-48 if eps.dtype == torch.float64 else 1 - 2.0**-20)
    return torch.where(inner < 2.0**-960, 0.0, inner)


def add_towards(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta (delta in float64), rounded towards x into the dtype of x: no element moves further than delta."""
    if x.dtype == torch.float64:
        return torch.where(delta > 0, round_down_sum(x, delta), round_up_sum(x, delta))
    exact = x.double() + delta
    rounded = exact.to(x.dtype)
    outward = torch.where(delta > 0, rounded.double() > exact, rounded.double() < exact)
    return torch.where(outward, torch.nextafter(rounded, x), rounded)


# --------------------------------------------------------------------------------------- index vectors


def _take(source: Tensor, index: Tensor | None) -> Tensor:
    """Rows of `source`; a padding slot (-1) reads row 0, and nothing that comes of it is used."""
    return source if index is None else source[index.clamp(min=0)]


def _of_sample(value: Tensor, ids: Tensor | None, like: Tensor) -> Tensor:
    """A (1,) or (N,) value, one per row, shaped to broadcast over rows like `like`."""
    if value.shape[0] != 1:
        value = _take(value, ids)
    return value.view(-1, *[1] * (like.dim() - 1))


def _flat(values: Tensor) -> Tensor:
    """Each row in one dimension, also where there are no rows or no elements."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def _padding(ids: Tensor | None, rows: int, device: torch.device) -> Tensor:
    return torch.zeros(rows, dtype=torch.bool, device=device) if ids is None else ids < 0


def _box(x: Tensor, clip_min: Tensor | None, clip_max: Tensor | None) -> tuple[Tensor, Tensor]:
    """Without a bound, or with an infinite one, the box ends at the largest finite number."""
    largest = torch.finfo(x.dtype).max
    low = x.new_tensor([-largest]) if clip_min is None else clip_min.clamp(min=-largest)
    high = x.new_tensor([largest]) if clip_max is None else clip_max.clamp(max=largest)
    return channel_view(low, x), channel_view(high, x)


def _clamp(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """min(max(value, low), high) that sends NaN to low, as the compiled bodies do."""
    value = torch.where(value > low, value, low)
    return torch.where(value < high, value, high)


def _into_ball_and_box(value: Tensor, clean: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Every element at most `radius` from `clean`, exactly, and in the box. Comparisons, so that signed zeros agree."""
    floor, ceiling = round_up_sum(clean, -radius), round_down_sum(clean, radius)
    return _clamp(value, torch.where(floor > low, floor, low), torch.where(ceiling < high, ceiling, high))


# ---------------------------------------------------------------------------------------------- noise


def philox(seed: Tensor, blocks: Tensor, sample_ids: Tensor) -> Tensor:
    """Philox-4x32-10 (Salmon et al. 2011): words (len(sample_ids), len(blocks), 4) as int64 in [0, 2**32).

    key = (seed lo, seed hi), counter = (block lo, block hi, sample id lo, sample id hi).
    """
    seed = seed.reshape(())
    key0, key1 = seed & MASK32, (seed >> 32) & MASK32
    shape = (sample_ids.shape[0], blocks.shape[0])
    c0 = (blocks & MASK32).expand(shape)
    c1 = ((blocks >> 32) & MASK32).expand(shape)
    c2 = (sample_ids & MASK32).unsqueeze(1).expand(shape)
    c3 = ((sample_ids >> 32) & MASK32).unsqueeze(1).expand(shape)
    for _ in range(10):
        # int64 products wrap, which leaves the low 64 bits of the unsigned product, all that is wanted
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((second >> 32) & MASK32) ^ c1 ^ key0,
            second & MASK32,
            ((first >> 32) & MASK32) ^ c3 ^ key1,
            first & MASK32,
        )
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """u = ((w >> 9) + 0.5) * 2**-23 in (0, 1): exact in fp32 and fp64 alike."""
    return ((words >> 9).to(dtype) + 0.5) * 2.0**-23


def random_start(
    x: Tensor,
    eps: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> tuple[Tensor]:
    rows = _take(x, ids)
    size = math.prod(x.shape[1:])
    keys = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids
    keys = _take(keys, ids)
    blocks = torch.arange((size + 3) // 4, device=x.device)
    words = philox(seed, blocks, keys).flatten(1)[:, :size]
    radius = _of_sample(eps, ids, rows)
    low, high = _box(x, clip_min, clip_max)
    if p == math.inf:
        noise = radius * (2 * uniform(words, x.dtype) - 1).view(rows.shape)
        return (_into_ball_and_box(rows + noise, rows, radius, low, high),)
    # Uniform in the L2 ball: a Gaussian direction (Box-Muller on the words of each block) times u**(1/n).
    u = uniform(philox(seed, blocks, keys), torch.float64)
    length = torch.sqrt(-2 * torch.log(u[..., 0::2]))
    angle = 2 * math.pi * u[..., 1::2]
    normal = torch.stack((length * torch.cos(angle), length * torch.sin(angle)), dim=-1).flatten(1)[:, :size]
    end = philox(seed, torch.full((1,), RADIUS_BLOCK, device=x.device), keys)[:, 0, 0]
    reach = uniform(end, torch.float64) ** (1 / max(size, 1))
    factor = reach / torch.linalg.vector_norm(normal, dim=1)
    delta = (normal * factor.unsqueeze(1)).view(rows.shape) * inner_radius(radius)
    return (_clamp(add_towards(rows, delta), low, high),)


# ----------------------------------------------------------------------------------------------- step


def _row_norm(values: Tensor) -> tuple[Tensor, Tensor]:
    """(unit, norm), shaped to broadcast: the L2 norm of each row is unit * norm, and values / unit has norm `norm`.

    The unit is the largest magnitude (1 for a row of zeros), so that no square over- or underflows.
    """
    flat = _flat(values)
    per_row = (-1, *[1] * (values.dim() - 1))
    largest = flat.abs().amax(dim=1) if flat.shape[1] else flat.new_zeros(flat.shape[0])
    unit = torch.where(largest > 0, largest, 1.0)
    norm: Tensor = torch.linalg.vector_norm(flat / unit.unsqueeze(1), dim=1)
    return unit.view(per_row), norm.view(per_row)


def pgd_step(
    x: Tensor,
    x_adv: Tensor,
    grad: Tensor,
    eps: Tensor,
    alpha: Tensor,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor]:
    clean, here, gradient = _take(x, ids), _take(x_adv, rows), _take(grad, rows)
    radius, step = _of_sample(eps, ids, clean), _of_sample(alpha, ids, clean)
    low, high = _box(x, clip_min, clip_max)
    finite = torch.isfinite(gradient)
    all_finite = _flat(finite).all(dim=1)
    nonfinite = ~all_finite & ~_padding(ids, clean.shape[0], x.device)
    if p == math.inf:
        up, down = finite & (gradient > 0), finite & (gradient < 0)
        moved = here + (torch.where(up, step, 0.0) - torch.where(down, step, 0.0))
        return _into_ball_and_box(moved, clean, radius, low, high), nonfinite
    ascent = torch.where(all_finite.view(-1, *[1] * (clean.dim() - 1)), gradient, 0.0).double()
    # dividing by unit and norm one by one: at the ends of the range of fp64 their product is not a number to divide by
    unit, norm = _row_norm(ascent)
    delta = (here.double() - clean.double()) + step.double() * (ascent / unit / torch.where(norm > 0, norm, 1.0))
    unit, norm = _row_norm(delta)
    length, limit = unit * norm, inner_radius(radius)
    scale = torch.where(length > limit, limit / torch.where(length > 0, length, 1.0), 1.0)
    return _clamp(add_towards(clean, delta * scale), low, high), nonfinite


# ---------------------------------------------------------------------------------------------- losses


def truncated_cross_entropy(
    logits: Tensor, target: Tensor, ids: Tensor | None, cut: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain cross-entropy and its gradient: it is the caller who truncates, by the flags."""
    dtype, classes = loss_dtype(logits.dtype), logits.shape[1]
    label, padding = _take(target, ids), _padding(ids, logits.shape[0], logits.device)
    scores = logits.to(dtype)
    log_p = torch.log_softmax(scores, dim=1)
    loss = -log_p.gather(1, label.unsqueeze(1)).squeeze(1)
    hot = torch.nn.functional.one_hot(label, classes)
    grad = torch.exp(log_p) - hot
    # the lowest index among the largest; a NaN anywhere makes the largest NaN, which equals nothing
    largest = scores.amax(dim=1, keepdim=True)
    right = (scores == largest).to(torch.int8).argmax(dim=1) == label
    right &= ~torch.isnan(largest.squeeze(1))
    over = ~(loss <= torch.tensor(cut, dtype=dtype))
    return (
        torch.where(padding, 0.0, loss),
        torch.where(padding.unsqueeze(1), 0.0, grad).to(logits.dtype),
        right & ~padding,
        over | padding,
    )


def margin_loss(logits: Tensor, target: Tensor, other: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """z_other - z_target; `other` is the best class besides the target (lowest index on ties) where not given."""
    dtype, classes = loss_dtype(logits.dtype), logits.shape[1]
    label, padding = _take(target, ids), _padding(ids, logits.shape[0], logits.device)
    scores = logits.to(dtype)
    hot = torch.nn.functional.one_hot(label, classes).bool()
    if other is None:
        rival = torch.where(hot, -math.inf, scores)
        # all rivals at -inf: the first class that is not the target
        first = (label == 0).to(torch.int64)
        best = rival.argmax(dim=1)
        competitor = torch.where(rival.amax(dim=1) == -math.inf, first, best)
    else:
        competitor = _take(other, ids)
    loss = (scores.gather(1, competitor.unsqueeze(1)) - scores.gather(1, label.unsqueeze(1))).squeeze(1)
    grad = torch.nn.functional.one_hot(competitor, classes) - hot.to(torch.int64)
    return torch.where(padding, 0.0, loss), torch.where(padding.unsqueeze(1), 0, grad).to(logits.dtype)


# ---------------------------------------------------------------------------------------------- retire


def retire(
    previous: Tensor,
    current: Tensor,
    right: Tensor | None,
    over: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    result: Tensor,
    stop: Tensor,
    step: int,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count, samples = current.shape[0], result.shape[0]
    slots = torch.arange(count, device=current.device)
    ids = slots if ids is None else ids
    real = ids >= 0
    crossed = torch.zeros_like(real)
    if over is not None:
        crossed = crossed | over
    if right is not None:
        crossed = crossed | ~right
    leaving = real & (crossed | last)
    shape = [-1, *[1] * (current.dim() - 1)]
    point = torch.where(crossed.view(shape), _take(previous, rows), current)
    # rows that stay write to one spare row, so that no index is looked at on the host
    where = torch.where(leaving, ids, samples)
    spare = torch.cat((result, result.new_zeros((1, *result.shape[1:]))))
    result.copy_(spare.index_copy_(0, where, point)[:samples])
    steps = torch.cat((stop, stop.new_zeros(1)))
    stop.copy_(steps.index_copy_(0, where, step - crossed.to(torch.int64))[:samples])
    alive = real & ~leaving
    order = torch.argsort(alive.logical_not(), stable=True)
    survives = alive[order]
    return torch.where(survives, order, 0), torch.where(survives, ids[order], -1), alive.sum().view(1)
