#include "pgd_step_l2.cuh"

namespace fastsal {
namespace {

// What a row held in registers may take: few turns leave room for more blocks, many for longer rows.
constexpr int kFewTurns = 2, kManyTurns = 6;

int64_t groups_of(const PgdStepCall& call) {
  const int64_t group = call.x_dtype == Dtype::float64 ? kGroup<double> : kGroup<float>;
  return (call.size + group - 1) / group;
}

bool on_chip(const PgdStepCall& call, int turns) { return groups_of(call) <= int64_t(turns) * threads(kStepThreads); }

int64_t l2_segments(const PgdStepCall& call) { return (call.size + kSegment - 1) / kSegment; }

template <class T, class G, int turns>
void launch_held(const PgdStepCall& call, void* stream) {
  launch("l2_step", l2_step_kernel<T, G, turns>, blocks_for(call.count), threads_for((groups_of(call) + turns - 1) / turns),
         0, stream, call, vector_rows(call));
}

template <class T, class G>
void launch_passes(const PgdStepCall& call, void* stream) {
  const int64_t segments = l2_segments(call);
  const unsigned blocks = blocks_for(call.count * segments), block = threads(kStepThreads);
  const bool vector = vector_rows(call);
  launch("l2_slope", l2_slope_kernel<T, G>, blocks, block, 0, stream, call, segments, vector);
  launch("l2_length", l2_length_kernel<T, G>, blocks, block, 0, stream, call, segments, vector);
  launch("l2_project", l2_project_kernel<T, G>, blocks, block, 0, stream, call, segments, vector);
}

}  // namespace

int64_t l2_workspace_bytes(const PgdStepCall& call) {
  return on_chip(call, kManyTurns) ? 0 : 2 * call.count * l2_segments(call) * int64_t(sizeof(SquareParts));
}

void launch_pgd_step_l2(const PgdStepCall& call, void* stream) {
  with_step_types(call, [&](auto types) {
    using T = typename decltype(types)::T;
    using G = typename decltype(types)::G;
    if (on_chip(call, kFewTurns))
      launch_held<T, G, kFewTurns>(call, stream);
    else if (on_chip(call, kManyTurns))
      launch_held<T, G, kManyTurns>(call, stream);
    else
      launch_passes<T, G>(call, stream);
  });
}

}  // namespace fastsal
