// What the threads of a block do together. Every thread of the block must call; every thread gets the result. Blocks are
// one-dimensional and whole warps. `lanes` is shared memory of kWarps elements, free again when the next of these
// functions on the same memory begins; the order of every sum depends on the block size alone.
#pragma once

#include "../rows/portable.h"
#include "launch.h"

namespace fastsal {

constexpr unsigned kWarp = 32, kWarps = 32, kAllLanes = 0xffffffffu;

// value combined over the block by an associative, commutative `combine(a, b)`; `shuffle(v, d)`: v of lane ^ d. `few`:
// registers, so that a thread looks at one lane after the other.
template <bool few = false, class V, class Combine, class Shuffle>
__device__ __forceinline__ V block_reduce(V value, V* lanes, Combine combine, Shuffle shuffle) {
  for (unsigned d = kWarp / 2; d > 0; d /= 2) value = combine(value, shuffle(value, d));
  const unsigned warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  __syncthreads();  // what an earlier call left in `lanes` has been read
  if (threadIdx.x % kWarp == 0) lanes[warp] = value;
  __syncthreads();
  value = lanes[0];
  if constexpr (few) {
#pragma unroll 1
    for (unsigned w = 1; w < warps; ++w) value = combine(value, lanes[w]);
  } else {
    for (unsigned w = 1; w < warps; ++w) value = combine(value, lanes[w]);
  }
  return value;
}

template <class V>
struct ShuffleValue {
  __device__ __forceinline__ V operator()(V value, unsigned d) const {
    return __shfl_xor_sync(kAllLanes, value, int(d));
  }
};

template <class V>
struct Add {
  __device__ __forceinline__ V operator()(V a, V b) const { return a + b; }
};

template <bool few = false, class V>
__device__ __forceinline__ V block_sum(V value, V* lanes) {
  return block_reduce<few>(value, lanes, Add<V>(), ShuffleValue<V>());
}

template <class V>
struct Larger {
  __device__ __forceinline__ V operator()(V a, V b) const { return b > a ? b : a; }
};

// The largest; no value may be NaN.
template <bool few = false, class V>
__device__ __forceinline__ V block_max(V value, V* lanes) {
  return block_reduce<few>(value, lanes, Larger<V>(), ShuffleValue<V>());
}

// In 32 bits: where a thread keeps several, they are scarce registers.
template <class V>
struct Indexed {
  V value;
  int index;
};

// The larger of two, NaN counting as larger than anything; of two equals (two NaNs) the one with the lower index.
template <class V>
struct Better {
  __device__ __forceinline__ Indexed<V> operator()(Indexed<V> a, Indexed<V> b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    const bool equal = a_nan ? b_nan : a.value == b.value;
    const bool second = equal ? b.index < a.index : b_nan || (!a_nan && b.value > a.value);
    return second ? b : a;
  }
};

template <class V>
struct ShuffleIndexed {
  __device__ __forceinline__ Indexed<V> operator()(Indexed<V> a, unsigned d) const {
    return {__shfl_xor_sync(kAllLanes, a.value, int(d)), __shfl_xor_sync(kAllLanes, a.index, int(d))};
  }
};

template <class V>
__device__ __forceinline__ Indexed<V> block_best(Indexed<V> value, Indexed<V>* lanes) {
  return block_reduce(value, lanes, Better<V>(), ShuffleIndexed<V>());
}

__device__ __forceinline__ bool block_any(bool value) { return __syncthreads_or(value) != 0; }

struct Scan {
  unsigned before, total;  // the sum over the threads before this one, and over the block
};

__device__ __forceinline__ Scan block_exclusive_scan(unsigned value, unsigned* lanes) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  unsigned up_to = value;
  for (unsigned d = 1; d < kWarp; d *= 2) {
    const unsigned left = __shfl_up_sync(kAllLanes, up_to, d);
    up_to += lane >= d ? left : 0;
  }
  __syncthreads();  // what an earlier call left in `lanes` has been read
  if (lane == kWarp - 1) lanes[warp] = up_to;
  __syncthreads();
  Scan scan{up_to - value, 0};
  for (unsigned w = 0; w < warps; ++w) {
    scan.before += w < warp ? lanes[w] : 0;
    scan.total += lanes[w];
  }
  return scan;
}

}  // namespace fastsal
