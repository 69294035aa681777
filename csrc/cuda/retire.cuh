// One launch: block 0 compacts the survivors, the other blocks copy the rows that leave. Neither waits for the other.
#pragma once

#include "block.cuh"
#include "retire.h"
#include "rows.cuh"

namespace fastsal {

constexpr unsigned kRetireThreads = 256;
constexpr int64_t kRetireUnits = 4;  // copied by a thread

struct Leaving {
  int64_t sample;  // -1: padding
  bool crossed, leaves;
};

__device__ __forceinline__ Leaving leaving(const RetireCall& call, int64_t j) {
  const int64_t id = call.ids ? call.ids[j] : j;
  if (id < 0 || id >= call.samples) return {-1, false, false};
  const bool crossed = (call.over && call.over[j]) || (call.right && !call.right[j]);
  return {id, crossed, crossed || call.last};
}

// The survivors move to the front, in their order; the places behind them become padding.
__device__ __forceinline__ void compact(const RetireCall& call) {
  __shared__ unsigned lanes[kWarps];
  int64_t kept = 0;
  for (int64_t first = 0; first < call.count; first += blockDim.x) {
    const int64_t j = first + threadIdx.x;
    const Leaving row = j < call.count ? leaving(call, j) : Leaving{-1, false, false};
    const bool stays = row.sample >= 0 && !row.leaves;
    if (row.leaves) call.stop[row.sample] = row.crossed ? call.step - 1 : call.step;
    const Scan scan = block_exclusive_scan(stays, lanes);
    if (stays) {
      write(call.rows_out + kept + scan.before, j);
      write(call.ids_out + kept + scan.before, row.sample);
    }
    kept += scan.total;
  }
  for (int64_t k = kept + threadIdx.x; k < call.count; k += blockDim.x) {
    write(call.rows_out + k, int64_t(0));
    write(call.ids_out + k, int64_t(-1));
  }
  if (threadIdx.x == 0) write(call.live_out, kept);
}

// Unit: 4, 8 or 16 bytes; a row has `units` of them, in `segments` of kRetireUnits for each thread of a block.
template <class Unit>
__global__ void __launch_bounds__(kRetireThreads)
    retire_kernel(RetireCall call, int64_t units, int64_t segments) {
  if (blockIdx.x == 0) return compact(call);
  const int64_t length = kRetireUnits * blockDim.x;
  for (int64_t task = blockIdx.x - 1; task < call.count * segments; task += gridDim.x - 1) {
    const int64_t j = task / segments, first = task % segments * length;
    const Leaving row = leaving(call, j);
    if (!row.leaves) continue;
    const int64_t slot = row.crossed ? (call.rows ? call.rows[j] : j) : j;
    if (row.crossed && (slot < 0 || slot >= call.points)) continue;
    const Unit* from = static_cast<const Unit*>(row.crossed ? call.previous : call.current) + slot * units;
    Unit* to = static_cast<Unit*>(call.result) + row.sample * units;
    Unit held[kRetireUnits];  // all loads are under way before the first store
#pragma unroll
    for (int64_t k = 0; k < kRetireUnits; ++k) {
      const int64_t i = first + k * blockDim.x + threadIdx.x;
      if (i < units) held[k] = read(from + i);
    }
#pragma unroll
    for (int64_t k = 0; k < kRetireUnits; ++k) {
      const int64_t i = first + k * blockDim.x + threadIdx.x;
      if (i < units) write(to + i, held[k]);
    }
  }
}

}  // namespace fastsal
