// The Linf step: one launch, every operand read once and `next` written once.
#pragma once

#include "../rows/pgd_step.h"
#include "pgd_step_rows.cuh"

namespace fastsal {

// Tells whether any block of row j met a gradient that is not finite: the last one to arrive does. A ticket counts the
// blocks that arrived in its lower half and those with such a gradient in its upper one; it ends as it began, at zero.
__device__ __forceinline__ void report_nonfinite(const PgdStepCall& call, int64_t j, int64_t segments, bool nonfinite) {
  if (threadIdx.x != 0) return;
  if (segments > 1) {
    unsigned long long* ticket = static_cast<unsigned long long*>(call.tickets) + j;
    const unsigned long long own = 1 + (nonfinite ? 1ull << 32 : 0), all = atomicAdd(ticket, own) + own;
    if ((all & 0xffffffffu) != static_cast<unsigned long long>(segments)) return;
    *ticket = 0;
    nonfinite = (all >> 32) != 0;
  }
  write(call.nonfinite_out + j, nonfinite);
}

// A block per segment. `group`: elements of a thread in one access; 1 is the scalar path.
template <class T, class G, int group>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    linf_step_kernel(PgdStepCall call, int64_t segments, int64_t first_row, int64_t first_segment) {
  const Segment part(first_row, first_segment);
  const StepRow place(call, part.j);
  bool nonfinite = false;
  if (place.real) {
    const StepSegment<T, G> row(call, place, part.j, part.first, part.length(call.size), group > 1);
    // in shared memory and read anew for each group (volatile), since numbers of fp64 need the registers
    __shared__ volatile T eps, alpha;
    __shared__ volatile int64_t clean_at, next_at;
    if (threadIdx.x == 0) {
      eps = per_sample<T>(call.eps, call.eps_count, place.sample);
      alpha = per_sample<T>(call.alpha, call.alpha_count, place.sample);
      clean_at = place.sample * call.size + part.first;
      next_at = part.j * call.size + part.first;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = int(threadIdx.x) * group; i < row.length; i += int(blockDim.x) * group) {
      const Group<T, group> clean = read_group<T, group>(static_cast<const T*>(call.x) + clean_at + i);
      const Group<T, group> here = read_group<T, group>(row.x_adv + i);
      const auto slope = row.grad.template get<group>(i);
      Group<T, group> out;
#pragma unroll
      for (int v = 0; v < group; ++v) {
        nonfinite |= !is_finite(slope.values[v]);
        out.values[v] = linf_step_point(clean.values[v], here.values[v], slope.values[v], row.box.low(i + v),
                                        row.box.high(i + v), T(eps), T(alpha));
      }
      write_group<T, group>(static_cast<T*>(call.next_out) + next_at + i, out);
    }
  }
  report_nonfinite(call, opaque(first_row) + blockIdx.x, segments, block_any(nonfinite));  // not kept: part.j
}

}  // namespace fastsal
