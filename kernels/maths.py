"""exp, log and a rotation as polynomials, so that no device function of unknown accuracy or stack use is needed.

The same approximations as in csrc/rows/maths.h; their accuracy is tested against fp64 libm.
"""

import triton
import triton.language as tl

from .rounding import bits_of

# Adding and subtracting 1.5 * 2^(mantissa bits) rounds to the nearest integer.
ROUNDER32 = tl.constexpr(1.5 * 2.0**23)
ROUNDER64 = tl.constexpr(1.5 * 2.0**52)


@triton.jit
def power_of_two(n, T: tl.constexpr):
    """2^n for an int32 n in the range of normal numbers."""
    if T == tl.float64:
        power = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((n + 127) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def exp_nonpositive(v):
    """e^v for v <= 0, the only case that a softmax has; NaN stays NaN. Below 2 units in the last place."""
    if v.dtype == tl.float64:
        clipped = tl.where(v > -746.0, v, -746.0)
        n = (clipped * 1.4426950408889634 + ROUNDER64) - ROUNDER64
        r = (clipped - n * 0.6931471803691238) - n * 1.9082149292705877e-10
        p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
    else:
        clipped = tl.where(v > -104.0, v, -104.0)
        n = (clipped * 1.4426950216293335 + ROUNDER32) - ROUNDER32
        r = (clipped - n * 0.693145751953125) - n * 1.428606765330187e-06
        p = r * (1.0 / 5040.0) + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    whole = n.to(tl.int32)
    half = whole >> 1  # two factors, so that a subnormal result is reached
    result = p * power_of_two(half, v.dtype) * power_of_two(whole - half, v.dtype)
    return tl.where(v == v, result, v)


@triton.jit
def reciprocal(d):
    """1 / d, fp64, for d within the range of fp32: two Newton steps from fp32, to 2 units in the last place. An exactly
    rounded division costs a subroutine and its registers."""
    r = (1.0 / d.to(tl.float32)).to(tl.float64)
    r = r * (2 - d * r)
    return r * (2 - d * r)


@triton.jit
def root(a):
    """The square root of a fp64 number within the range of fp32, not zero: in the same way, to 3 units."""
    y = tl.rsqrt(a.to(tl.float32)).to(tl.float64)
    half = a * 0.5
    y = y * (1.5 - half * y * y)
    y = y * (1.5 - half * y * y)
    return a * y


@triton.jit
def log_positive(v):
    """Natural logarithm of a positive normal fp64 number, below 4 units in the last place; NaN and infinity stay what
    they are."""
    bits = bits_of(v)
    exponent = (bits >> 52).to(tl.int32) - 1023
    m = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    upper = m > 1.4142135623730951
    m = tl.where(upper, m * 0.5, m)
    exponent = tl.where(upper, exponent + 1, exponent)
    s = (m - 1) * reciprocal(m + 1)  # log m = 2 artanh s
    z = s * s
    p = z * (2.0 / 23.0) + 2.0 / 21.0
    p = p * z + 2.0 / 19.0
    p = p * z + 2.0 / 17.0
    p = p * z + 2.0 / 15.0
    p = p * z + 2.0 / 13.0
    p = p * z + 2.0 / 11.0
    p = p * z + 2.0 / 9.0
    p = p * z + 2.0 / 7.0
    p = p * z + 2.0 / 5.0
    p = p * z + 2.0 / 3.0
    e = exponent.to(tl.float64)
    result = e * 0.6931471803691238 + (s * 2 + (s * z * p + e * 1.9082149292705877e-10))
    return tl.where(v - v == 0, result, v)


@triton.jit
def turn(u):
    """sin(2 pi u) and cos(2 pi u) for u in [0, 1], fp64."""
    quarter = (u * 4 + ROUNDER64) - ROUNDER64
    r = (u * 4 - quarter) * 1.5707963267948966  # in radians, at most pi/4
    z = r * r
    s = z * (-1.0 / 1307674368000.0) + 1.0 / 6227020800.0
    s = s * z - 1.0 / 39916800.0
    s = s * z + 1.0 / 362880.0
    s = s * z - 1.0 / 5040.0
    s = s * z + 1.0 / 120.0
    s = s * z - 1.0 / 6.0
    s = s * z * r + r
    c = z * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0
    c = c * z + 1.0 / 479001600.0
    c = c * z - 1.0 / 3628800.0
    c = c * z + 1.0 / 40320.0
    c = c * z - 1.0 / 720.0
    c = c * z + 1.0 / 24.0
    c = c * z - 0.5
    c = c * z + 1.0
    q = quarter.to(tl.int32) & 3
    odd = (q & 1) == 1
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    return tl.where(q >= 2, -sine, sine), tl.where((q == 1) | (q == 2), -cosine, cosine)
