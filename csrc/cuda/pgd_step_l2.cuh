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

// Blocks that have to fit: two for a short row, unless its numbers are wide.
template <class T, class G, int turns>
constexpr unsigned kL2Blocks = turns > 2 || sizeof(typename Gradient<G>::Value) > sizeof(T) ? 1 : 2;

template <class T, class G, int turns>
__global__ void __launch_bounds__(kHeldThreads, kL2Blocks<T, G, turns>)
    l2_step_kernel(PgdStepCall call, int64_t first_row, bool vector) {
  constexpr int group = kGroup<T>;
  const int64_t j = first_row + blockIdx.x;
  const StepRow place(call, j);
  if (!place.real) {  // the same for all threads
    if (threadIdx.x == 0) write(call.nonfinite_out + j, false);
    return;
  }
  const StepSegment<T, G> row(call, place, j, 0, int(call.size), vector);
  typename StepSegment<T, G>::Elements held[turns];
  SlopeSquares<G> slopes;
#pragma unroll
  for (int k = 0; k < turns; ++k) {
    row.load_points(k, held[k]);
    row.load_slopes(k, held[k]);
  }
#pragma unroll
  for (int k = 0; k < turns; ++k)
#pragma unroll
    for (int v = 0; v < group; ++v) slopes.add(double(held[k].slope[v]));
  const L2Row<T> step(call, place, norm_of(slopes.total()));
  // from here on a displacement stands in for its two other numbers
  double delta[turns][group];
  LengthSquares<T> squares;
#pragma unroll
  for (int k = 0; k < turns; ++k)
#pragma unroll
    for (int v = 0; v < group; ++v) {
      delta[k][v] = step.displacement(held[k].clean[v], held[k].here[v], held[k].slope[v]);
      squares.add(delta[k][v]);
    }
  const double scale = l2_scale_of<T>(call, place, norm_of(squares.total()));
  T* const next = static_cast<T*>(call.next_out) + (opaque(first_row) + blockIdx.x) * call.size;  // not kept: row.next
#pragma unroll
  for (int k = 0; k < turns; ++k) {
    Group<T, group> out;
#pragma unroll
    for (int v = 0; v < group; ++v) {
      const int i = row.at(k, v);
      out.values[v] = l2_point(held[k].clean[v], delta[k][v], scale, row.box.low(i), row.box.high(i));
    }
    row.save_to(next, k, out);
  }
  if (threadIdx.x == 0) write(call.nonfinite_out + j, !step.finite);
}

// ---------------------------------------------------------------------------------------------- long rows

// The workspace holds a sum for each segment: of the squares of the gradient, then of the displacement.
struct L2Sums {
  SquareParts *slopes, *lengths;
  int64_t segments;
  __device__ __forceinline__ L2Sums(const PgdStepCall& call, int64_t segments_)
      : slopes(static_cast<SquareParts*>(call.workspace)), lengths(slopes + call.count * segments_),
        segments(segments_) {}

  __device__ __forceinline__ void put(SquareParts* parts, const Segment& part, const SquareParts& total) const {
    if (threadIdx.x == 0) write(parts + part.j * segments + part.first / kSegment, total);
  }
  // Over the segments of row j; the same in each of its blocks.
  template <class Squares>
  __device__ __forceinline__ RowNorm norm(const SquareParts* parts, int64_t j) const {
    Squares squares;
#pragma unroll 1
    for (int64_t s = threadIdx.x; s < segments; s += blockDim.x) squares.add(read(parts + j * segments + s));
    return norm_of(squares.total());
  }
};

// An L2Row, its scale and where its segment goes to, in shared memory. Read anew for each element (volatile), they hold no registers.
struct SharedL2Row {
  double unit, inverse, along, scale;
  int64_t next;
  bool finite, moves;

  // Both by the whole block.
  template <class T>
  __device__ __forceinline__ void put(const L2Row<T>& row) volatile {
    if (threadIdx.x == 0) {
      unit = row.unit;
      inverse = row.inverse;
      along = row.along;
      finite = row.finite;
      moves = row.moves;
    }
    __syncthreads();
  }
  __device__ __forceinline__ void put_end(double scale_, int64_t next_) volatile {
    if (threadIdx.x == 0) scale = scale_, next = next_;
    __syncthreads();
  }
  template <class T, class V>
  __device__ __forceinline__ double displacement(T clean, T here, V slope) const volatile {
    return moves ? l2_displacement(clean, here, slope, unit, inverse, along) : displacement_at_rest(clean, here);
  }
};

template <class T, class G>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    l2_slope_kernel(PgdStepCall call, int64_t segments, int64_t first_row, int64_t first_segment, bool vector) {
  const Segment part(first_row, first_segment);
  const StepRow place(call, part.j);
  if (!place.real) return;
  const StepSegment<T, G> row(call, place, part.j, part.first, part.length(call.size), vector);
  SlopeSquares<G> squares;
  row.each_slope([&](int, const auto& e) {
#pragma unroll
    for (int v = 0; v < row.group; ++v) squares.add(double(e.slope[v]));
  });
  const L2Sums sums(call, segments);
  sums.put(sums.slopes, part, squares.total());
}

template <class T, class G>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    l2_length_kernel(PgdStepCall call, int64_t segments, int64_t first_row, int64_t first_segment, bool vector) {
  const Segment part(first_row, first_segment);
  const StepRow place(call, part.j);
  __shared__ volatile SharedL2Row step;
  const L2Sums sums(call, segments);
  if (place.real) step.put(L2Row<T>(call, place, sums.norm<SlopeSquares<G>>(sums.slopes, part.j)));
  if (threadIdx.x == 0 && part.first == 0) write(call.nonfinite_out + part.j, place.real && !step.finite);
  if (place.real) {
    const StepSegment<T, G> row(call, place, part.j, part.first, part.length(call.size), vector);
    LengthSquares<T> squares;
    row.each([&](int, const auto& e) {
#pragma unroll
      for (int v = 0; v < row.group; ++v) squares.add(step.displacement(e.clean[v], e.here[v], e.slope[v]));
    });
    sums.put(sums.lengths, part, squares.total());
  }
}

template <class T, class G>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    l2_project_kernel(PgdStepCall call, int64_t segments, int64_t first_row, int64_t first_segment, bool vector) {
  const Segment part(first_row, first_segment);
  const StepRow place(call, part.j);
  if (!place.real) return;
  const L2Sums sums(call, segments);
  __shared__ volatile SharedL2Row step;
  step.put(L2Row<T>(call, place, sums.norm<SlopeSquares<G>>(sums.slopes, part.j)));
  step.put_end(l2_scale_of<T>(call, place, sums.norm<LengthSquares<T>>(sums.lengths, part.j)),
               part.j * call.size + part.first);
  const StepSegment<T, G> row(call, place, part.j, part.first, part.length(call.size), vector);
  row.each([&](int k, const auto& e) {
    Group<T, kGroup<T>> out;
#pragma unroll
    for (int v = 0; v < row.group; ++v) {
      const int i = row.at(k, v);
      const double delta = step.displacement(e.clean[v], e.here[v], e.slope[v]);
      out.values[v] = l2_point(e.clean[v], delta, step.scale, row.box.low(i), row.box.high(i));
    }
    row.save_to(static_cast<T*>(call.next_out) + step.next, k, out);
  });
}

}  // namespace fastsal
