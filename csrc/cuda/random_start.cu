#include "random_start.cuh"

#include <cmath>

namespace fastsal {
namespace {

template <class T, int group, bool whole>
void launch_linf(const RandomStartCall& call, void* stream) {
  const int64_t segments = segments_of(call.size), longest = segments > 1 ? kSegment : call.size;
  const unsigned block = threads_for((longest + group - 1) / group, kStreamThreads);
  for_each_grid(call.count, segments, [&](int64_t first_row, int64_t first_segment, dim3 grid) {
    launch("linf_start", linf_start_kernel<T, group, whole>, grid, block, 0, stream, call, first_row, first_segment);
  });
}

template <class T>
void launch_scaled(const RandomStartCall& call, bool vector, void* stream) {
  const int64_t segments = segments_of(call.size), longest = segments > 1 ? kSegment : call.size;
  const unsigned block = threads_for((longest + 3) / 4, kStreamThreads);
  const auto each = [&](auto body) { for_each_grid(call.count, segments, body); };
  if (segments == 1)
    return each([&](int64_t first_row, int64_t, dim3 grid) {
      launch("scaled_start", scaled_start_kernel<T>, grid, block, 0, stream, call, first_row, vector);
    });
  each([&](int64_t first_row, int64_t first_segment, dim3 grid) {
    launch("start_sum", start_sum_kernel, grid, block, 0, stream, call, segments, first_row, first_segment);
  });
  each([&](int64_t first_row, int64_t first_segment, dim3 grid) {
    launch("start_scale", start_scale_kernel<T>, grid, block, 0, stream, call, segments, first_row, first_segment,
           vector);
  });
}

template <class T>
void launch_type(const RandomStartCall& call, void* stream) {
  // four elements of fp64 are two accesses of 16 bytes
  const bool vector = call.size % 4 == 0 && rows_on_16_bytes(call.size * int64_t(sizeof(T)), call.x, call.start_out);
  if (!std::isinf(call.p)) return launch_scaled<T>(call, vector && !call.channels_last, stream);
  if (!vector) return launch_linf<T, 1, false>(call, stream);
  call.channels_last ? launch_linf<T, 4, false>(call, stream) : launch_linf<T, 4, true>(call, stream);
}

}  // namespace

int64_t workspace_bytes(const RandomStartCall& call) {
  const int64_t segments = segments_of(call.size);
  return std::isinf(call.p) || segments == 1 ? 0 : call.count * segments * int64_t(sizeof(double));
}

void launch_random_start(const RandomStartCall& call, void* stream) {
  if (call.count == 0 || call.size == 0) return;
  call.x_dtype == Dtype::float64 ? launch_type<double>(call, stream) : launch_type<float>(call, stream);
}

}  // namespace fastsal
