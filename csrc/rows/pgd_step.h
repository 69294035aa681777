// One PGD step in Linf and L2: first what happens to one element, which every backend shares, then the loops over a
// row on a CPU. Pointers are templates, so that a test can count the bytes that a loop moves. (L1: l1_step.h.)
#pragma once

#include "lanes.h"
#include "rounding.h"

namespace fastsal {

// here + alpha * sign(g), clamped to the exact ball and the box. A gradient that is not finite moves nothing.
template <class T, class V>
FASTSAL_ROW T linf_step_point(T clean, T here, V g, T low, T high, T eps, T alpha) {
  const bool finite = is_finite(g);
  const T up = finite && g > 0 ? alpha : T(0), down = finite && g < 0 ? alpha : T(0);
  return into_ball_and_box(here + (up - down), clean, low, high, eps);
}

// here - clean + along * g / ||g||: where the step leads, seen from clean. Two factors make 1 / ||g||, since that
// alone may be beyond fp64: `unit` is a power of two, `inverse` is one over the norm of g * unit.
template <class T, class V>
FASTSAL_ROW double l2_displacement(T clean, T here, V g, double unit, double inverse, double along) {
  return (double(here) - double(clean)) + along * (double(g) * unit * inverse);
}

// The same for a row that does not move: its gradient is zero, or not finite and must not be touched.
template <class T>
FASTSAL_ROW double displacement_at_rest(T clean, T here) {
  return double(here) - double(clean);
}

// What brings a displacement of this norm into the ball; 0 where it is no number, since the point was none.
FASTSAL_ROW double l2_scale(double norm, double limit) {
  const double scale = norm > limit ? limit / norm : 1;
  return is_finite(norm) ? scale : 0;
}

template <class T>
FASTSAL_ROW T l2_point(T clean, double delta, double scale, T low, T high) {
  const double moved = delta * scale;
  return project_point(clean, is_finite(moved) ? moved : 0, low, high);
}

// ------------------------------------------------------------------------------------------- rows on a CPU

struct StepFlags {
  bool nonfinite;  // a gradient that is not finite
  bool outside;    // an x outside the box
};

template <class T, class X, class A, class G, class O, class Box>
FASTSAL_ROW StepFlags linf_step_any_row(X x, A x_adv, G grad, O next, int64_t size, T eps, T alpha, Box box) {
  using Mask = typename Bits<T>::Unsigned;
  Mask nonfinite = 0, outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], here = x_adv[i], low = box.low(i), high = box.high(i);
    const auto g = value(grad[i]);
    nonfinite |= Mask(!is_finite(g));
    outside |= Mask(outside_box(clean, low, high));
    next[i] = linf_step_point(clean, here, g, low, high, eps, alpha);
  }
  return {nonfinite != 0, outside != 0};
}

// The same points in a box from 0 to `high`, the usual one, in two thirds of the instructions: where x is not negative,
// floats and their bits have one order, and the next float is the next integer. False, and nothing that it wrote counts,
// where an x is not from +0 to `high`.
template <class T, class X, class A, class G, class O>
FASTSAL_ROW bool linf_step_row_from_zero(X x, A x_adv, G grad, O next, int64_t size, T eps, T alpha, T high,
                                         bool* nonfinite) {
  using Int = typename Bits<T>::Int;
  using Unsigned = typename Bits<T>::Unsigned;
  using Slope = decltype(value(grad[0]));
  using SlopeBits = typename Bits<Slope>::Unsigned;
  const Int end = bits_of<Int>(high);
  Unsigned most = 0;  // a NaN and whatever is negative, -0 too, have more bits than `high`
  SlopeBits nans = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], here = x_adv[i];
    const Slope g = value(grad[i]), rest = g - g;  // +0; NaN where g is not finite
    const Unsigned bits = bits_of<Unsigned>(clean);
    most = bits > most ? bits : most;
    nans |= bits_of<SlopeBits>(rest);
    const bool moves = g < rest || g > rest;
    const T stride = bits_of<T>(bits_of<Unsigned>(alpha) ^ (Unsigned(g < 0) << (8 * sizeof(T) - 1)));
    // One of two differences is exact, that from the larger term; the other is on the same side of its own or on it.
    const T above = clean + eps, below = clean - eps;
    const bool too_high = (above - clean > eps) | (above - eps > clean);
    const bool too_low = (clean - below > eps) | (below + eps < clean);
    const Int up = bits_of<Int>(above) - Int(too_high), down = bits_of<Int>(below) + Int(too_low);
    const Int ceiling = up < end ? up : end, floor = down > 0 ? down : 0;
    next[i] = clamp(here + (moves ? stride : T(0)), bits_of<T>(floor), bits_of<T>(ceiling));
  }
  *nonfinite = nans != 0;
  return most <= Unsigned(end);
}

template <class T, class X, class A, class G, class O, class Box>
FASTSAL_ROW StepFlags linf_step_row(X x, A x_adv, G grad, O next, int64_t size, T eps, T alpha, Box box) {
  bool nonfinite;
  if (box.from_zero() &&
      linf_step_row_from_zero(x, x_adv, grad, next, size, eps, alpha, box.high(0), &nonfinite))
    return {nonfinite, false};
  return linf_step_any_row(x, x_adv, grad, next, size, eps, alpha, box);
}

template <class G>
struct GradientTerm {
  G grad;
  FASTSAL_ROW double operator()(int64_t i) const { return double(value(grad[i])); }
};

template <class X, class A, class G>
struct Displacement {
  X x;
  A x_adv;
  G grad;
  double unit, inverse, along;
  FASTSAL_ROW double operator()(int64_t i) const {
    return l2_displacement(x[i], x_adv[i], value(grad[i]), unit, inverse, along);
  }
};

template <class X, class A>
struct Rest {
  X x;
  A x_adv;
  FASTSAL_ROW double operator()(int64_t i) const { return displacement_at_rest(x[i], x_adv[i]); }
};

template <class T, class X, class O, class Box, class Delta>
FASTSAL_ROW bool l2_project_row(X x, O next, int64_t size, T eps, Box box, Delta delta) {
  using Mask = typename Bits<T>::Unsigned;
  const RowNorm length = row_norm<sizeof(T) == 8, sizeof(T) == 8>(size, delta);
  const double scale = l2_scale(length.norm, inner_radius(eps) * length.unit);
  Mask outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(outside_box(clean, low, high));
    next[i] = l2_point(clean, delta(i), scale, low, high);
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
