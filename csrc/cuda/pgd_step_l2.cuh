// The L2 step. A row that fits into the registers of a block: one launch, every operand read once. A longer one, in
// segments: the norm of the gradient, the norm of the displacement, the projection; a launch each, with partial sums in
// the workspace.
#pragma once

#include "../rows/pgd_step.h"
#include "pgd_step_rows.cuh"
#include "squares.cuh"

namespace fastsal {

// The part of an L2 step that is one row's: where it leads, and how it comes back into the ball.
template <class T>
struct L2Row {
  double unit, inverse, along;
  bool finite, moves;

  __device__ __forceinline__ L2Row(const PgdStepCall& call, const StepRow& row, const RowNorm& slope)
      : unit(slope.unit), inverse(1 / slope.norm),
        along(double(per_sample<T>(call.alpha, call.alpha_count, row.sample))), finite(is_finite(slope.norm)),
        moves(finite && slope.norm != 0) {}

  template <class V>
  __device__ __forceinline__ double displacement(T clean, T here, V slope) const {
    return moves ? l2_displacement(clean, here, slope, unit, inverse, along) : displacement_at_rest(clean, here);
  }
};

template <class T>
__device__ __forceinline__ double l2_scale_of(const PgdStepCall& call, const StepRow& row, const RowNorm& length) {
  const T eps = per_sample<T>(call.eps, call.eps_count, row.sample);
  return l2_scale(length.norm, inner_radius(eps) * length.unit);
}

template <class G>
using SlopeSquares = SquareSum<sizeof(typename Gradient<G>::Value) == 8, false>;
template <class T>
using LengthSquares = SquareSum<sizeof(T) == 8, sizeof(T) == 8>;

template <class Row>
__device__ __forceinline__ auto slope_squares(const Row& row) {
  SlopeSquares<typename Row::Slope> squares;
  row.each([&](auto, const auto& e) {
#pragma unroll
    for (int v = 0; v < Row::group; ++v) squares.add(double(e.slope[v]));
  });
  return squares;
}

template <class Row, class L2>
__device__ __forceinline__ auto length_squares(const Row& row, const L2& step) {
  LengthSquares<typename Row::Point> squares;
  row.each([&](auto, const auto& e) {
#pragma unroll
    for (int v = 0; v < Row::group; ++v) squares.add(step.displacement(e.clean[v], e.here[v], e.slope[v]));
  });
  return squares;
}

template <class Row, class L2>
__device__ __forceinline__ void project(const PgdStepCall& call, const Row& row, const L2& step, double scale) {
  using T = typename Row::Point;
  const RowShape<T> shape(call);
  row.each([&](auto k, const auto& e) {
    Group<T, Row::group> out;
#pragma unroll
    for (int v = 0; v < Row::group; ++v) {
      const int64_t i = row.at(k, v);
      const double delta = step.displacement(e.clean[v], e.here[v], e.slope[v]) * scale;
      out.values[v] = project_point(e.clean[v], delta, shape.low(i), shape.high(i));
    }
    row.save(k, out);
  });
}

template <class T, class G, int turns>
__global__ void __launch_bounds__(kStepThreads, turns > 2 ? 1 : 2) l2_step_kernel(PgdStepCall call, bool vector) {
  for (int64_t j = blockIdx.x; j < call.count; j += gridDim.x) {
    const StepRow place(call, j);
    bool nonfinite = false;
    if (place.real) {  // the same for all threads
      const HeldRow<T, G, turns> row(call, place, j, vector);
      const L2Row<T> step(call, place, norm_of(slope_squares(row).total()));
      const RowNorm length = norm_of(length_squares(row, step).total());
      project(call, row, step, l2_scale_of<T>(call, place, length));
      nonfinite = !step.finite;
    }
    if (threadIdx.x == 0) call.nonfinite_out[j] = nonfinite;
  }
}

// ---------------------------------------------------------------------------------------------- long rows

// The workspace holds a sum for each segment: of the squares of the gradient, then of the displacement.
struct L2Sums {
  SquareParts *slopes, *lengths;
  int64_t segments;
  __device__ __forceinline__ explicit L2Sums(const PgdStepCall& call, int64_t segments_)
      : slopes(static_cast<SquareParts*>(call.workspace)), lengths(slopes + call.count * segments_),
        segments(segments_) {}

  // Over the segments of row j; the same in each of its blocks.
  template <class Squares>
  __device__ __forceinline__ RowNorm norm(const SquareParts* parts, int64_t j) const {
    Squares squares;
    for (int64_t s = threadIdx.x; s < segments; s += blockDim.x) squares.add(parts[j * segments + s]);
    return norm_of(squares.total());
  }
};

// One segment of a row: the task of a block.
struct Segment {
  int64_t j, first;
  int length;
  __device__ __forceinline__ Segment(const PgdStepCall& call, int64_t task, int64_t segments)
      : j(quotient(task, segments)), first((task - j * segments) * kSegment),
        length(int(first + kSegment < call.size ? kSegment : call.size - first)) {}
};

template <class T, class G>
__global__ void __launch_bounds__(kStepThreads) l2_slope_kernel(PgdStepCall call, int64_t segments, bool vector) {
  const L2Sums sums(call, segments);
  for (int64_t task = blockIdx.x; task < call.count * segments; task += gridDim.x) {
    const Segment part(call, task, segments);
    const StepRow place(call, part.j);
    if (!place.real) continue;
    const PassingSlopes<T, G, int> row(call, place, part.j, part.first, part.length, vector);
    const SquareParts total = slope_squares(row).total();
    if (threadIdx.x == 0) sums.slopes[task] = total;
  }
}

template <class T, class G>
__global__ void __launch_bounds__(kStepThreads) l2_length_kernel(PgdStepCall call, int64_t segments, bool vector) {
  const L2Sums sums(call, segments);
  for (int64_t task = blockIdx.x; task < call.count * segments; task += gridDim.x) {
    const Segment part(call, task, segments);
    const StepRow place(call, part.j);
    bool nonfinite = false;
    if (place.real) {
      const L2Row<T> step(call, place, sums.norm<SlopeSquares<G>>(sums.slopes, part.j));
      const PassingRow<T, G, int> row(call, place, part.j, part.first, part.length, vector);
      const SquareParts total = length_squares(row, step).total();
      if (threadIdx.x == 0) sums.lengths[task] = total;
      nonfinite = !step.finite;
    }
    if (threadIdx.x == 0 && part.first == 0) call.nonfinite_out[part.j] = nonfinite;
  }
}

template <class T, class G>
__global__ void __launch_bounds__(kStepThreads) l2_project_kernel(PgdStepCall call, int64_t segments, bool vector) {
  const L2Sums sums(call, segments);
  for (int64_t task = blockIdx.x; task < call.count * segments; task += gridDim.x) {
    const Segment part(call, task, segments);
    const StepRow place(call, part.j);
    if (!place.real) continue;
    const L2Row<T> step(call, place, sums.norm<SlopeSquares<G>>(sums.slopes, part.j));
    const RowNorm length = sums.norm<LengthSquares<T>>(sums.lengths, part.j);
    const PassingRow<T, G, int> row(call, place, part.j, part.first, part.length, vector);
    project(call, row, step, l2_scale_of<T>(call, place, length));
  }
}

}  // namespace fastsal
