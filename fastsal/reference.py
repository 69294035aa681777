"""The maths of every operator in plain torch: the oracle of all other bodies, and the body for any device.

Each function takes exactly the arguments of its operator and returns its outputs. Nothing here looks at the data to
decide what to do next, so these bodies also run on an accelerator without a copy to the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastsal.checks import channel_view
from fastsal.operators import loss_dtype

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
    """Rows of `source`; a padding slot (-1) reads row 0 or, where there is none, zeros, and nothing that comes of it is
    used."""
    if index is None:
        return source
    return source[index.clamp(min=0)] if len(source) else source.new_zeros(len(index), *source.shape[1:])


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
    end = philox(seed, torch.full((1,), RADIUS_BLOCK, device=x.device), keys)[:, 0, 0]
    if p == 1.0:
        # Uniform in the L1 ball: n exponentials with random signs over the sum of n + 1 exponentials.
        exponential = -torch.log(uniform(words, torch.float64))
        last = -torch.log(uniform(end, torch.float64))
        factor = 1 / (exponential.sum(dim=1) + last)
        signed = torch.where(words & 1 == 1, -exponential, exponential)
        delta = (signed * factor.unsqueeze(1)).view(rows.shape) * inner_radius(radius)
        return (_clamp(add_towards(rows, delta), low, high),)
    # Uniform in the L2 ball: a Gaussian direction (Box-Muller on the words of each block) times u**(1/n).
    u = uniform(philox(seed, blocks, keys), torch.float64)
    length = torch.sqrt(-2 * torch.log(u[..., 0::2]))
    angle = 2 * math.pi * u[..., 1::2]
    normal = torch.stack((length * torch.cos(angle), length * torch.sin(angle)), dim=-1).flatten(1)[:, :size]
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
    # not by vector_norm, whose sum runs through the row: its errors add up, those of a cascade hardly do
    norm = (flat / unit.unsqueeze(1)).square().sum(1).sqrt()
    return unit.view(per_row), norm.view(per_row)


def _largest(magnitude: Tensor, topk: int) -> Tensor:
    """Which elements of each row are among its `topk` largest, the lowest index first on ties."""
    flat = _flat(magnitude)
    order = torch.argsort(flat, dim=1, descending=True, stable=True)[:, :topk]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).view(magnitude.shape)


def _l1_shrinkage(magnitude: Tensor, room: Tensor, limit: Tensor) -> Tensor:
    """lambda >= 0, one per row: the least with sum(min(max(magnitude - lambda, 0), room)) <= limit.

    The sum falls piecewise linearly from lambda = 0; element i falls with slope 1 from magnitude - room to magnitude.
    """
    rows = magnitude.shape[0]
    starts, ends = (magnitude - room).clamp(min=0), magnitude
    knots = torch.cat((magnitude.new_zeros(rows, 1), starts, ends), dim=1)
    change = torch.cat((magnitude.new_zeros(rows, 1), torch.ones_like(starts), -torch.ones_like(ends)), dim=1)
    knots, order = knots.sort(dim=1, stable=True)
    falling = change.gather(1, order).cumsum(dim=1)  # how many elements fall, to the right of each knot
    gaps = torch.diff(knots, dim=1, append=knots[:, -1:])
    at_zero = torch.minimum(magnitude, room).sum(dim=1, keepdim=True)
    drop = (falling * gaps).cumsum(dim=1)
    sums = at_zero - torch.cat((drop.new_zeros(rows, 1), drop[:, :-1]), dim=1)  # the sum at each knot
    # the last knot at which the sum is still over the limit; none where the row is inside at lambda = 0
    over = sums > limit
    last = (over.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    beyond = (sums.gather(1, last) - limit) / falling.gather(1, last).clamp(min=1)
    return torch.where(over[:, :1], knots.gather(1, last) + beyond, 0.0)


def _l1_project(x: Tensor, delta: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The point of ball and box that is closest to x + delta (Croce & Hein 2021), never outside of either."""
    shape = (-1, *[1] * (x.dim() - 1))
    # x_adv was no number: that element goes back to x, and for an infinite one the row
    lost = torch.isnan(delta) | _flat(torch.isinf(delta)).any(dim=1).view(shape)
    delta = torch.where(lost, 0.0, delta)
    magnitude = delta.abs()
    room = torch.where(delta > 0, high.double() - x.double(), x.double() - low.double())
    limit = inner_radius(radius).view(-1, 1).expand(x.shape[0], 1)
    shrink = _l1_shrinkage(_flat(magnitude), _flat(room), limit).view(shape)
    kept = torch.minimum((magnitude - shrink).clamp(min=0), room)
    # where the shrinkage is much larger than the radius, its rounding shows in what is left
    total = _flat(kept).sum(dim=1, keepdim=True)
    kept = kept * torch.where(total > limit, limit / total, 1.0).view(shape)
    return _clamp(add_towards(x, torch.where(delta > 0, kept, -kept)), low, high)


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
    topk: int = 1,
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
    if p == 1.0:
        # the step alpha shared by those of the topk largest gradients that are not zero
        moving = _largest(ascent.abs(), topk) & (ascent != 0)
        share = step.double() / _flat(moving).sum(dim=1).clamp(min=1).view(-1, *[1] * (clean.dim() - 1))
        delta = (here.double() - clean.double()) + torch.where(moving, ascent.sign() * share, 0.0)
        return _l1_project(clean, delta, radius, low, high), nonfinite
    # dividing by unit and norm one by one: at the ends of the range of fp64 their product is not a number to divide by
    unit, norm = _row_norm(ascent)
    delta = (here.double() - clean.double()) + step.double() * (ascent / unit / torch.where(norm > 0, norm, 1.0))
    unit, norm = _row_norm(delta)
    length, limit = unit * norm, inner_radius(radius)
    scale = torch.where(length > limit, limit / torch.where(length > 0, length, 1.0), 1.0)
    scale = torch.where(torch.isfinite(length), scale, 0.0)  # x_adv was no number: back to x
    return _clamp(add_towards(clean, torch.where(scale > 0, delta * scale, 0.0)), low, high), nonfinite


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


def _competitor(scores: Tensor, label: Tensor) -> Tensor:
    """The best class besides the label, the lowest index on ties; NaN counts as larger than anything."""
    hot = torch.nn.functional.one_hot(label, scores.shape[1]).bool()
    rival = torch.where(hot, -math.inf, scores)
    # all rivals at -inf: the first class that is not the label
    return torch.where(rival.amax(dim=1) == -math.inf, (label == 0).to(torch.int64), rival.argmax(dim=1))


DLR_FLOOR = 1e-12  # added to the denominator of DLR


def margin_loss(
    logits: Tensor, target: Tensor, other: Tensor | None, ids: Tensor | None, dlr: bool = False
) -> tuple[Tensor, Tensor]:
    """z_other - z_target; `other` is the best class besides the target (lowest index on ties) where not given.

    DLR divides by z_1 - z_3, the sorted logits, or by z_1 - (z_3 + z_4) / 2 where `other` is given.
    """
    dtype, classes = loss_dtype(logits.dtype), logits.shape[1]
    label, padding = _take(target, ids), _padding(ids, logits.shape[0], logits.device)
    scores = logits.to(dtype)
    competitor = _competitor(scores, label) if other is None else _take(other, ids)

    def hot(index: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(index, classes)

    loss = (scores.gather(1, competitor.unsqueeze(1)) - scores.gather(1, label.unsqueeze(1))).squeeze(1)
    grad = (hot(competitor) - hot(label)).to(dtype)
    if dlr:
        order = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :4]
        top = scores.gather(1, order)
        if other is None:
            spread = top[:, 0] - top[:, 2] + DLR_FLOOR
            slope = (hot(order[:, 0]) - hot(order[:, 2])).to(dtype)
        else:
            spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + DLR_FLOOR
            slope = hot(order[:, 0]) - (hot(order[:, 2]) + hot(order[:, 3])).to(dtype) / 2
        loss = loss / spread
        grad = (grad - loss.unsqueeze(1) * slope) / spread.unsqueeze(1)
    return torch.where(padding, 0.0, loss), torch.where(padding.unsqueeze(1), 0.0, grad).to(logits.dtype)


def kl_divergence(clean: Tensor, adv: Tensor, ids: Tensor | None, both: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p_clean || p_adv) per row, and its gradients with respect to adv and, if `both`, to clean."""
    dtype, padding = loss_dtype(adv.dtype), _padding(ids, adv.shape[0], adv.device)
    log_p = torch.log_softmax(_take(clean, ids).to(dtype), dim=1)
    log_q = torch.log_softmax(adv.to(dtype), dim=1)
    p = torch.exp(log_p)
    ratio = torch.where(p == 0, 0.0, log_p - log_q)  # a class without probability adds nothing
    loss = (p * ratio).sum(dim=1)
    adv_grad = torch.exp(log_q) - p
    clean_grad = p * (ratio - loss.unsqueeze(1)) if both else adv_grad[:0]
    blank = padding.unsqueeze(1)
    return (
        torch.where(padding, 0.0, loss),
        torch.where(blank, 0.0, adv_grad).to(adv.dtype),
        (torch.where(blank, 0.0, clean_grad) if both else clean_grad).to(adv.dtype),
    )


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
