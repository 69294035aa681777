// Reductions in 16 fixed lanes and a fixed order: every instruction set gives the same bits.
#pragma once

#include <math.h>

#include "rounding.h"

namespace fastsal {

constexpr int64_t kLanes = 16;

// body(lane, i) for every i below size: lane i % 16, and in each lane from low to high.
template <class Body>
FASTSAL_ROW void for_lanes(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) body(l, i + l);
  for (int64_t l = 0; i + l < size; ++l) body(l, i + l);
}

template <class Score>
struct Shifted {
  Score score;
  int64_t first;
  FASTSAL_ROW auto operator()(int64_t l) const { return score(first + l); }
};
template <class T>
struct Padded {
  const T* block;
  FASTSAL_ROW T operator()(int64_t l) const { return block[l]; }
};

// body(z, i, count) for 16 scores at a time, z(0..15), of elements i, i + 1, ...; beyond the last one stands `padding`,
// so that a short row or the rest of a long one takes the same vector instructions.
template <class T, class Score, class Body>
FASTSAL_ROW void for_blocks(int64_t size, T padding, Score score, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(Shifted<Score>{score, i}, i, kLanes);
  if (i == size) return;
  T block[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) block[l] = padding;
  for (int64_t l = 0; i + l < size; ++l) block[l] = score(i + l);
  body(Padded<T>{block}, i, size - i);
}

// The sum of 16 lanes; overwrites them.
template <class T>
FASTSAL_ROW T fold(T* lanes) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

// Sums of 16 lanes; Kahan's compensation keeps the error below the margin of an fp64 radius.
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
    return fold(lanes);
  }
};

// The sum of term(i), and sqrt of the sum of term(i)^2, for i < size
template <bool compensated, class Term>
FASTSAL_ROW double lane_sum(int64_t size, Term term) {
  LaneSum<compensated> terms;
  for_lanes(size, [&](int64_t l, int64_t i) FASTSAL_LAMBDA { terms.add(l, term(i)); });
  return terms.total();
}
template <bool compensated, class Term>
FASTSAL_ROW double lane_norm(int64_t size, Term term) {
  LaneSum<compensated> squares;
  for_lanes(size, [&](int64_t l, int64_t i) FASTSAL_LAMBDA {
    const double v = term(i);
    squares.add(l, v * v);
  });
  return sqrt(squares.total());
}

template <class Term>
struct Scaled {
  Term term;
  double unit;
  FASTSAL_ROW double operator()(int64_t i) const { return term(i) * unit; }
};

// A power of two that brings `largest` near 1.
FASTSAL_ROW double safe_unit(double largest) {
  if (largest == 0) return 1;
  const int64_t exponent = int64_t(bits_of<uint64_t>(largest) >> 52) - 1023;  // it is not negative
  const int64_t inverse = exponent < -1000 ? 1000 : (exponent > 1000 ? -1000 : -exponent);
  return bits_of<double>(uint64_t(inverse + 1023) << 52);
}

// Whether the squares that make up this norm were fp64 numbers, no overflow or underflow to be seen in the sum.
FASTSAL_ROW bool norm_is_safe(double norm) { return is_finite(norm) && norm >= 0x1p-500; }

struct RowNorm {
  double unit, norm;  // `norm` is that of the row times `unit`
};

// `wide`: the terms may be so large or so small that their squares are not fp64 numbers.
template <bool compensated, bool wide, class Term>
FASTSAL_ROW RowNorm row_norm(int64_t size, Term term) {
  const double norm = lane_norm<compensated>(size, term);
  if (!wide || norm_is_safe(norm)) return {1, norm};
  double largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double magnitude = fabs(term(i));
    largest = magnitude > largest ? magnitude : largest;
  }
  const double unit = safe_unit(largest);
  return {unit, lane_norm<compensated>(size, Scaled<Term>{term, unit})};
}

}  // namespace fastsal
