// Sums with a known direction of rounding: what makes the ball hold exactly.
#pragma once

#include "portable.h"

namespace fastsal {

// The next number towards -inf (+inf). s is finite and not zero: a sum that rounded cannot be zero.
template <class T>
FASTSAL_ROW T next_below(T s) {
  using Int = typename Bits<T>::Int;
  return bits_of<T>(Int(bits_of<Int>(s) + (s > T(0) ? Int(-1) : Int(1))));
}
template <class T>
FASTSAL_ROW T next_above(T s) {
  using Int = typename Bits<T>::Int;
  return bits_of<T>(Int(bits_of<Int>(s) + (s > T(0) ? Int(1) : Int(-1))));
}

// The exact error (a + b) - fl(a + b): Knuth's two-sum. Needs contraction and reassociation off.
template <class T>
FASTSAL_ROW T sum_error(T a, T b, T s) {
  const T bb = s - a;
  return (a - (s - bb)) + (b - bb);
}

// The largest number not above a + b, the smallest not below it.
template <class T>
FASTSAL_ROW T round_down_sum(T a, T b) {
  const T s = a + b;
  const T below = next_below(s);
  return sum_error(a, b, s) < T(0) ? below : s;
}
template <class T>
FASTSAL_ROW T round_up_sum(T a, T b) {
  const T s = a + b;
  const T above = next_above(s);
  return sum_error(a, b, s) > T(0) ? above : s;
}

// min(max(v, low), high) that sends NaN to low.
template <class T>
FASTSAL_ROW T clamp(T v, T low, T high) {
  v = v > low ? v : low;
  return v < high ? v : high;
}

// x + delta rounded towards x, so that no element moves further than delta.
FASTSAL_ROW double add_towards(double x, double delta) {
  const double s = x + delta;
  const double error = sum_error(x, delta, s);
  const double below = next_below(s), above = next_above(s);
  const double down = error < 0 ? below : s, up = error > 0 ? above : s;
  return delta > 0 ? down : up;
}
FASTSAL_ROW float add_towards(float x, double delta) {
  constexpr float smallest = Limits<float>::smallest;
  const double exact = double(x) + delta;
  const float rounded = float(exact);
  const float below = rounded == 0 ? -smallest : next_below(rounded);
  const float above = rounded == 0 ? smallest : next_above(rounded);
  const float down = double(rounded) > exact ? below : rounded;
  const float up = double(rounded) < exact ? above : rounded;
  return delta > 0 ? down : up;
}

// clean + delta, no further from clean than delta, in the box: where an L2 or L1 step or start ends.
template <class T>
FASTSAL_ROW T project_point(T clean, double delta, T low, T high) {
  return clamp(add_towards(clean, delta), low, high);
}

// v, but at most eps from clean, exactly, and in the box: where a Linf step or start ends.
template <class T>
FASTSAL_ROW T into_ball_and_box(T v, T clean, T low, T high, T eps) {
  const T floor = round_up_sum(clean, -eps), ceiling = round_down_sum(clean, eps);
  return clamp(v, floor > low ? floor : low, ceiling < high ? ceiling : high);
}

// Whether an x breaks the contract: it is outside its box, or NaN.
template <class T>
FASTSAL_ROW bool outside_box(T clean, T low, T high) {
  const uint32_t below = !(clean >= low), above = !(clean <= high);
  return (below | above) != 0;
}

// The L2 or L1 radius to aim at: short of eps by a margin, so that rounding in a norm cannot carry a point out of the ball.
// Where eps is too small for fp64 to hold the margin, nothing moves.
template <class T>
FASTSAL_ROW double inner_radius(T eps) {
  const double inner = double(eps) * (sizeof(T) == 8 ? 1 - 0x1p-48 : 1 - 0x1p-20);
  return inner < 0x1p-960 ? 0 : inner;
}

// Without a bound the box ends at the largest finite number, never at infinity.
template <class T>
struct UniformBox {
  T low_, high_;
  FASTSAL_ROW T low(int64_t) const { return low_; }
  FASTSAL_ROW T high(int64_t) const { return high_; }
  FASTSAL_ROW UniformBox from(int64_t) const { return *this; }
  FASTSAL_ROW bool from_zero() const { return low_ == 0 && high_ > 0; }
};

// One bound per element of a row, in the order in which the row lies in memory.
template <class T>
struct ElementBox {
  const T *low_, *high_;
  FASTSAL_ROW T low(int64_t i) const { return low_[i]; }
  FASTSAL_ROW T high(int64_t i) const { return high_[i]; }
  FASTSAL_ROW ElementBox from(int64_t i) const { return {low_ + i, high_ + i}; }
  FASTSAL_ROW bool from_zero() const { return false; }
};

}  // namespace fastsal
