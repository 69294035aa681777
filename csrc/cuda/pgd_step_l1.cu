#include "pgd_step_l1.cuh"

namespace fastsal {
namespace {

template <class T, class G, int turns>
void held_l1(const PgdStepCall& call, void* stream) {
  const unsigned block = threads_for((groups_of(call) + turns - 1) / turns, kHeldThreads);
  for_each_grid(call.count, 1, [&](int64_t first_row, int64_t, dim3 grid) {
    launch("l1_step", l1_step_kernel<T, G, turns>, grid, block, 0, stream, call, first_row, vector_rows(call));
  });
}

}  // namespace

void launch_pgd_step_l1(const PgdStepCall& call, void* stream) {
  with_step_types(call, [&](auto types) {
    using T = typename decltype(types)::T;
    using G = typename decltype(types)::G;
    if (on_chip(call, kFewTurns)) return held_l1<T, G, kFewTurns>(call, stream);
    if (on_chip(call, kManyTurns)) return held_l1<T, G, kManyTurns>(call, stream);
    for_each_grid(call.count, 1, [&](int64_t first_row, int64_t, dim3 grid) {
      launch("l1_long_step", l1_long_step_kernel<T, G>, grid, threads(kStreamThreads), 0, stream, call, first_row,
             vector_rows(call));
    });
  });
}

}  // namespace fastsal
