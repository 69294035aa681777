#include "retire.cuh"

namespace fastsal {
namespace {

template <class Unit>
void launch_units(const RetireCall& call, int64_t row_bytes, void* stream) {
  const unsigned block = threads(kRetireThreads);
  const int64_t units = row_bytes / int64_t(sizeof(Unit)), length = kRetireUnits * block;
  const int64_t segments = (units + length - 1) / length;
  launch("retire", retire_kernel<Unit>, blocks_for(1 + call.count * segments), block, 0, stream, call, units, segments);
}

}  // namespace

void launch_retire(const RetireCall& call, void* stream) {
  const int64_t row_bytes = call.size * (call.current_dtype == Dtype::float64 ? 8 : 4);
  const uint64_t all = uint64_t(row_bytes) | reinterpret_cast<uintptr_t>(call.previous) |
                       reinterpret_cast<uintptr_t>(call.current) | reinterpret_cast<uintptr_t>(call.result);
  if (all % 16 == 0)
    launch_units<uint4>(call, row_bytes, stream);
  else if (all % 8 == 0)
    launch_units<uint2>(call, row_bytes, stream);
  else
    launch_units<uint32_t>(call, row_bytes, stream);
}

}  // namespace fastsal
