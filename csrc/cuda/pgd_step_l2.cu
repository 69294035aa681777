#include "pgd_step_l2.cuh"

namespace fastsal {
namespace {

template <class T, class G, int turns>
void held_l2(const PgdStepCall& call, void* stream) {
  const unsigned block = threads_for((groups_of(call) + turns - 1) / turns, kHeldThreads);
  for_each_grid(call.count, 1, [&](int64_t first_row, int64_t, dim3 grid) {
    launch("l2_step", l2_step_kernel<T, G, turns>, grid, block, 0, stream, call, first_row, vector_rows(call));
  });
}

template <class Kernel>
void launch_pass(const char* name, Kernel kernel, const PgdStepCall& call, void* stream) {
  const int64_t segments = segments_of(call.size);
  for_each_grid(call.count, segments, [&](int64_t first_row, int64_t first_segment, dim3 grid) {
    launch(name, kernel, grid, threads(kStreamThreads), 0, stream, call, segments, first_row, first_segment,
           vector_rows(call));
  });
}

}  // namespace

int64_t l2_workspace_bytes(const PgdStepCall& call) {
  return on_chip(call, kManyTurns) ? 0 : 2 * call.count * segments_of(call.size) * int64_t(sizeof(SquareParts));
}

void launch_pgd_step_l2(const PgdStepCall& call, void* stream) {
  with_step_types(call, [&](auto types) {
    using T = typename decltype(types)::T;
    using G = typename decltype(types)::G;
    if (on_chip(call, kFewTurns)) return held_l2<T, G, kFewTurns>(call, stream);
    if (on_chip(call, kManyTurns)) return held_l2<T, G, kManyTurns>(call, stream);
    launch_pass("l2_slope", l2_slope_kernel<T, G>, call, stream);
    launch_pass("l2_length", l2_length_kernel<T, G>, call, stream);
    launch_pass("l2_project", l2_project_kernel<T, G>, call, stream);
  });
}

}  // namespace fastsal
