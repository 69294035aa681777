#include "pgd_step.cuh"

#include <cmath>

namespace fastsal {
namespace {

template <class T, class G, int group>
void launch_group(const PgdStepCall& call, void* stream) {
  const int64_t segments = segments_of(call.size), longest = segments > 1 ? kSegment : call.size;
  const unsigned block = threads_for((longest + group - 1) / group, kStreamThreads);
  for_each_grid(call.count, segments, [&](int64_t first_row, int64_t first_segment, dim3 grid) {
    launch("linf_step", linf_step_kernel<T, G, group>, grid, block, 0, stream, call, segments, first_row,
           first_segment);
  });
}

}  // namespace

int64_t tickets_bytes(const PgdStepCall& call) {
  return std::isinf(call.p) && segments_of(call.size) > 1 ? call.count * 8 : 0;
}

int64_t workspace_bytes(const PgdStepCall& call) { return call.p == 2 ? l2_workspace_bytes(call) : 0; }

void launch_pgd_step(const PgdStepCall& call, void* stream) {
  if (call.count == 0) return;
  if (call.p == 2) return launch_pgd_step_l2(call, stream);
  if (call.p == 1) return launch_pgd_step_l1(call, stream);
  with_step_types(call, [&](auto types) {
    using T = typename decltype(types)::T;
    using G = typename decltype(types)::G;
    vector_rows(call) ? launch_group<T, G, kGroup<T>>(call, stream) : launch_group<T, G, 1>(call, stream);
  });
}

}  // namespace fastsal
