// exp, log and the two halves of a rotation, as polynomials of our own: libm differs between machines and between
// instruction sets, these give the same bits on every tier. Accuracy is tested against fp64 libm.
#pragma once

#include "rounding.h"

namespace fastsal {

// Adding and subtracting 1.5 * 2^(mantissa bits) rounds to the nearest integer, on every instruction set.
FASTSAL_ROW double nearest(double v) { return (v + 0x1.8p52) - 0x1.8p52; }

// e^v for v <= 0 (the only case a softmax has); NaN stays NaN. Relative error below 2 units in the last place.
// v = n log 2 + r. Adding 1.5 * 2^(mantissa bits) leaves n in the low bits, from where a shift makes it an exponent;
// 2^n is two factors, so that a subnormal result is reached.
FASTSAL_ROW float exp_nonpositive(float v) {
  const float clipped = v < -104.0f ? -104.0f : v;  // NaN is not
  const float shifted = clipped * 0x1.715476p0f + 0x1.8p23f;
  const float n = shifted - 0x1.8p23f;
  const float r = (clipped - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // The cubic to sextic coefficients have the least worst relative error, 4e-9, on |r| <= 0.3475. In pairs, since
  // what a processor waits for is the longest chain of operations.
  const float r2 = r * r;
  const float p = (1.0f + r) + r2 * ((0.5f + 0x1.5554a2p-3f * r) +
                                     r2 * ((0x1.55568cp-5f + 0x1.1230f8p-7f * r) + r2 * 0x1.6b6d3ap-10f));
  const float factor = bits_of<float>((bits_of<uint32_t>(shifted) << 23) + (uint32_t(127 + 24) << 23));
  return p * factor * 0x1p-24f;
}
FASTSAL_ROW double exp_nonpositive(double v) {
  const double clipped = v < -746.0 ? -746.0 : v;
  const double shifted = clipped * 0x1.71547652b82fep0 + 0x1.8p52;
  const double n = shifted - 0x1.8p52;
  const double r = (clipped - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const double factor = bits_of<double>((bits_of<uint64_t>(shifted) << 52) + (uint64_t(1023 + 54) << 52));
  return p * factor * 0x1p-54;
}

// Natural logarithm of a positive normal number; NaN and infinity stay what they are.
FASTSAL_ROW double log_positive(double v) {
  const uint64_t bits = bits_of<uint64_t>(v);
  int64_t exponent = int64_t(bits >> 52) - 1023;
  double m = bits_of<double>((bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull);
  const bool upper = m > 0x1.6a09e667f3bcdp0;
  m = upper ? m * 0.5 : m;
  exponent += upper ? 1 : 0;
  const double s = (m - 1) / (m + 1), z = s * s;  // log m = 2 artanh s
  double p = 2.0 / 23;
  p = p * z + 2.0 / 21;
  p = p * z + 2.0 / 19;
  p = p * z + 2.0 / 17;
  p = p * z + 2.0 / 15;
  p = p * z + 2.0 / 13;
  p = p * z + 2.0 / 11;
  p = p * z + 2.0 / 9;
  p = p * z + 2.0 / 7;
  p = p * z + 2.0 / 5;
  p = p * z + 2.0 / 3;
  const double e = double(int32_t(exponent));
  const double result = e * 0x1.62e42fee00000p-1 + (s * 2 + (s * z * p + e * 0x1.a39ef35793c76p-33));
  return is_finite(v) ? result : v;
}

// sin(2 pi u) and cos(2 pi u) for u in [0, 1]
struct Rotation {
  double sine, cosine;
};
FASTSAL_ROW Rotation turn(double u) {
  const double quarter = nearest(u * 4);
  const double r = (u * 4 - quarter) * 0x1.921fb54442d18p0, z = r * r;  // |r| <= pi/4, in radians
  double s = -1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = s * z * r + r;
  double c = 1.0 / 20922789888000.0;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 0.5;
  c = c * z + 1.0;
  const int32_t q = int32_t(quarter);  // 0 to 4
  const double sine = (q & 1) ? c : s, cosine = (q & 1) ? s : c;
  return {(q & 2) ? -sine : sine, (q == 1 || q == 2) ? -cosine : cosine};
}

}  // namespace fastsal
