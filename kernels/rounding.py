"""Sums with a known direction of rounding, which is what makes the ball hold exactly, and 16-bit floats as bits.

Every kernel is compiled without fused multiply-adds (``rows.LAUNCH``): a two-sum needs each operation rounded.
"""

import triton
import triton.language as tl

LARGEST32 = tl.constexpr(3.4028234663852886e38)
LARGEST64 = tl.constexpr(1.7976931348623157e308)
INNER32 = tl.constexpr(1 - 2.0**-20)
INNER64 = tl.constexpr(1 - 2.0**-48)
SMALLEST_RADIUS = tl.constexpr(2.0**-960)


@triton.jit
def bits_of(value):
    """The bits of a 32- or 64-bit float, as a signed integer."""
    if value.dtype == tl.float64:
        bits = value.to(tl.int64, bitcast=True)
    else:
        bits = value.to(tl.int32, bitcast=True)
    return bits


@triton.jit
def next_below(s):
    """The next number towards -inf. `s` is not zero: a sum that rounded cannot be."""
    bits = bits_of(s)
    return tl.where(s > 0, bits - 1, bits + 1).to(s.dtype, bitcast=True)


@triton.jit
def next_above(s):
    bits = bits_of(s)
    return tl.where(s > 0, bits + 1, bits - 1).to(s.dtype, bitcast=True)


@triton.jit
def sum_error(a, b, s):
    """The exact (a + b) - s of s = fl(a + b): Knuth's two-sum."""
    bb = s - a
    return (a - (s - bb)) + (b - bb)


@triton.jit
def round_down_sum(a, b):
    """The largest number that is not above the exact a + b."""
    s = a + b
    return tl.where(sum_error(a, b, s) < 0, next_below(s), s)


@triton.jit
def round_up_sum(a, b):
    """The smallest number that is not below the exact a + b."""
    s = a + b
    return tl.where(sum_error(a, b, s) > 0, next_above(s), s)


@triton.jit
def clamp(value, low, high):
    """min(max(value, low), high) that sends NaN to low."""
    value = tl.where(value > low, value, low)
    return tl.where(value < high, value, high)


@triton.jit
def into_ball_and_box(value, clean, radius, low, high):
    """Every element at most `radius` from `clean`, exactly, and in the box."""
    floor = round_up_sum(clean, -radius)
    ceiling = round_down_sum(clean, radius)
    return clamp(value, tl.where(floor > low, floor, low), tl.where(ceiling < high, ceiling, high))


@triton.jit
def add_towards(x, delta):
    """x + delta (delta in fp64), rounded towards x into the dtype of x: no element moves further than delta."""
    if x.dtype == tl.float64:
        moved = tl.where(delta > 0, round_down_sum(x, delta), round_up_sum(x, delta))
    else:
        exact = x.to(tl.float64) + delta
        rounded = exact.to(tl.float32)
        back = rounded.to(tl.float64)
        bits = bits_of(rounded)
        # away from zero adds 1 to the bits, towards it subtracts 1; from either zero the first step is a bit pattern
        below = tl.where(rounded > 0, bits - 1, tl.where(rounded < 0, bits + 1, -0x7FFFFFFF)).to(
            tl.float32, bitcast=True
        )
        above = tl.where(rounded > 0, bits + 1, tl.where(rounded < 0, bits - 1, 1)).to(tl.float32, bitcast=True)
        down = tl.where(back > exact, below, rounded)
        up = tl.where(back < exact, above, rounded)
        moved = tl.where(delta > 0, down, up)
    return moved


@triton.jit
def project_point(clean, delta, low, high):
    """clean + delta, no further than delta, in the box."""
    return clamp(add_towards(clean, delta), low, high)


@triton.jit
def inner_radius(eps):
    """The radius to aim at, in fp64: short of eps by a margin, so that rounding in a norm cannot carry a point out of
    the ball. Where eps is too small for fp64 to hold the margin, nothing moves."""
    if eps.dtype == tl.float64:
        inner = eps * INNER64
    else:
        inner = eps.to(tl.float64) * INNER32
    return tl.where(inner < SMALLEST_RADIUS, 0.0, inner)


@triton.jit
def wide(value):
    """A gradient or logit in the dtype that it is computed in: 16-bit floats become fp32.

    bf16 goes by its bits: it is the upper half of fp32, and no conversion may flush its subnormals.
    """
    if value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        widened = bits.to(tl.float32, bitcast=True)
    elif value.dtype == tl.float16:
        widened = value.to(tl.float32)
    else:
        widened = value
    return widened


@triton.jit
def narrow(value, T: tl.constexpr):
    """fp32 or fp64 to the dtype of a gradient, to nearest even; NaN stays NaN."""
    if T == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40
        result = tl.where(value == value, rounded, quiet).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(T)
    return result
