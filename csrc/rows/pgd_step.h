// One PGD step of one row: gather, direction, step, eps-projection, box. Pointers are templates, so that a test can
// count the bytes that a body moves.
#pragma once

#include <cmath>

#include "rounding.h"

namespace fastsal {

constexpr int64_t kLanes = 16;  // reductions run in 16 fixed lanes: every instruction set gives the same bits

struct StepFlags {
  bool nonfinite;  // a gradient that is not finite
  bool outside;    // an x outside the box
};

// x_adv + alpha * sign(grad), clamped to the exact ball and the box. A gradient that is not finite moves nothing.
template <class T, class X, class A, class G, class O, class Box>
FASTSAL_ROW StepFlags linf_step_row(X x, A x_adv, G grad, O next, int64_t size, T eps, T alpha, Box box) {
  using Mask = typename Bits<T>::Unsigned;
  Mask nonfinite = 0, outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], here = x_adv[i], low = box.low(i), high = box.high(i);
    const auto g = value(grad[i]);
    const bool finite = is_finite(g);
    const T up = finite && g > 0 ? alpha : T(0), down = finite && g < 0 ? alpha : T(0);
    nonfinite |= Mask(!finite);
    outside |= Mask(!(clean >= low)) | Mask(!(clean <= high));
    const T floor = round_up_sum(clean, -eps), ceiling = round_down_sum(clean, eps);
    next[i] = clamp(here + (up - down), floor > low ? floor : low, ceiling < high ? ceiling : high);
  }
  return {nonfinite != 0, outside != 0};
}

// Sums of 16 lanes, in a fixed order; Kahan's compensation keeps the error below the margin of an fp64 radius.
template <bool compensated>
struct LaneSum {
  double sum[kLanes] = {}, carry[kLanes] = {};
  FASTSAL_ROW void add(int64_t lane, double v) {
    if (compensated) {
      const double y = v - carry[lane], t = sum[lane] + y;
      carry[lane] = (t - sum[lane]) - y;
      sum[lane] = t;
    } else {
      sum[lane] += v;
    }
  }
  FASTSAL_ROW double total() const {
    double lanes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = sum[l];
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    return lanes[0];
  }
};

// sqrt(sum of term(i)^2) for i < size
template <bool compensated, class Term>
FASTSAL_ROW double lane_norm(int64_t size, Term term) {
  LaneSum<compensated> squares;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      const double v = term(i + l);
      squares.add(l, v * v);
    }
  for (int64_t l = 0; i + l < size; ++l) {
    const double v = term(i + l);
    squares.add(l, v * v);
  }
  return std::sqrt(squares.total());
}

template <class Term>
struct Scaled {
  Term term;
  double unit;
  FASTSAL_ROW double operator()(int64_t i) const { return term(i) * unit; }
};

// A power of two that brings the largest |term| near 1, for the rare fp64 row whose squares over- or underflow.
template <class Term>
FASTSAL_ROW double safe_unit(int64_t size, Term term) {
  double largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double magnitude = std::fabs(term(i));
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest == 0) return 1;
  const int64_t exponent = int64_t((bits_of<uint64_t>(largest) >> 52) & 0x7ff) - 1023;
  const int64_t inverse = exponent < -1000 ? 1000 : (exponent > 1000 ? -1000 : -exponent);
  return bits_of<double>(uint64_t(inverse + 1023) << 52);
}

struct RowNorm {
  double unit, norm;  // `norm` is that of the row times `unit`
};

// `wide`: the terms may be so large or so small that their squares are not fp64 numbers.
template <bool compensated, bool wide, class Term>
FASTSAL_ROW RowNorm row_norm(int64_t size, Term term) {
  const double norm = lane_norm<compensated>(size, term);
  if (!wide || (is_finite(norm) && norm >= 0x1p-500)) return {1, norm};
  const double unit = safe_unit(size, term);
  return {unit, lane_norm<compensated>(size, Scaled<Term>{term, unit})};
}

template <class G>
struct GradientTerm {
  G grad;
  FASTSAL_ROW double operator()(int64_t i) const { return double(value(grad[i])); }
};

// x_adv - x + alpha * grad / ||grad||: where the step leads, seen from x. Two factors make 1 / ||grad||, since that
// alone may be beyond fp64.
template <class X, class A, class G>
struct Displacement {
  X x;
  A x_adv;
  G grad;
  double unit, inverse, along;
  FASTSAL_ROW double operator()(int64_t i) const {
    return (double(x_adv[i]) - double(x[i])) + along * (double(value(grad[i])) * unit * inverse);
  }
};

// The same for a row that does not move: its gradient is zero, or not finite and must not be touched.
template <class X, class A>
struct Rest {
  X x;
  A x_adv;
  FASTSAL_ROW double operator()(int64_t i) const { return double(x_adv[i]) - double(x[i]); }
};

template <class T, class X, class O, class Box, class Delta>
FASTSAL_ROW bool l2_project_row(X x, O next, int64_t size, T eps, Box box, Delta delta) {
  using Mask = typename Bits<T>::Unsigned;
  const RowNorm length = row_norm<sizeof(T) == 8, sizeof(T) == 8>(size, delta);
  const double limit = inner_radius(eps) * length.unit;
  const double scale = length.norm > limit ? limit / length.norm : 1;
  Mask outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(!(clean >= low)) | Mask(!(clean <= high));
    next[i] = clamp(add_towards(clean, delta(i) * scale), low, high);
  }
  return outside != 0;
}

// x_adv + alpha * grad / ||grad||, scaled back into the ball, then the box; norms and displacement in fp64.
template <class T, class X, class A, class G, class O, class Box>
FASTSAL_ROW StepFlags l2_step_row(X x, A x_adv, G grad, O next, int64_t size, T eps, T alpha, Box box) {
  const RowNorm slope = row_norm<false, sizeof(value(grad[0])) == 8>(size, GradientTerm<G>{grad});
  const bool finite = is_finite(slope.norm);
  if (!finite || slope.norm == 0)
    return {!finite, l2_project_row<T>(x, next, size, eps, box, Rest<X, A>{x, x_adv})};
  const Displacement<X, A, G> delta{x, x_adv, grad, slope.unit, 1 / slope.norm, double(alpha)};
  return {false, l2_project_row<T>(x, next, size, eps, box, delta)};
}

}  // namespace fastsal
