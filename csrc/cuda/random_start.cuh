// Linf: one launch. L2 and L1: one launch for a row of one block, which makes its noise twice, once for its length and
// once to scale it; for longer rows a launch each, with partial lengths in the workspace. x is read once in any case.
#pragma once

#include "../rows/noise.h"
#include "random_start.h"
#include "rows.cuh"
#include "squares.cuh"

namespace fastsal {

struct StartRow {
  int64_t sample;
  uint64_t seed, key;
  bool real;  // false: padding, or an id that is none
  __device__ __forceinline__ StartRow(const RandomStartCall& call, int64_t j)
      : sample(call.ids ? call.ids[j] : j), seed(uint64_t(call.seed[0])), key(0),
        real(sample >= 0 && sample < call.samples) {
    if (real) key = uint64_t(call.sample_ids ? call.sample_ids[sample] : sample);
  }
};

__device__ __forceinline__ uint32_t word_of(const StartRow& row, int64_t element) {
  uint32_t words[4];
  philox_block(row.seed, row.key, uint64_t(element) / 4, words);
  const int at = int(element & 3);
  const uint32_t low = at & 1 ? words[1] : words[0], high = at & 1 ? words[3] : words[2];
  return at & 2 ? high : low;
}

// `group`: elements of a thread in one access; 1 is the scalar path. `whole`: they are the elements of one counter block.
// In channels_last memory they are not, and every element makes its own.
template <class T, int group, bool whole>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    linf_start_kernel(RandomStartCall call, int64_t first_row, int64_t first_segment) {
  const Segment part(call.size, first_row, first_segment);
  const StartRow row(call, part.j);
  if (!row.real) return;
  const T eps = per_sample<T>(call.eps, call.eps_count, row.sample);
  const T* x = static_cast<const T*>(call.x) + row.sample * call.size + part.first;
  T* start = static_cast<T*>(call.start_out) + part.j * call.size + part.first;
  const Box<T, RandomStartCall> box(call, part.first, part.length);
  const RowOrder order(call);
#pragma unroll 1
  for (int i = int(threadIdx.x) * group; i < part.length; i += int(blockDim.x) * group) {
    const Group<T, group> clean = read_group<T, group>(x + i);
    uint32_t words[4];
    if (whole) {
      philox_block(row.seed, row.key, uint64_t(part.first + i) / 4, words);
    } else {
#pragma unroll
      for (int v = 0; v < group; ++v) words[v] = word_of(row, order.logical(part.first + i + v));
    }
    Group<T, group> out;
#pragma unroll
    for (int v = 0; v < group; ++v)
      out.values[v] = linf_start_point(clean.values[v], words[v], box.low(i + v), box.high(i + v), eps);
    write_group<T, group>(start + i, out);
  }
}

// ------------------------------------------------------------------------------------------------ L2 and L1

// The noise of the four elements of a counter block, before it is scaled: normals, or exponentials with a sign.
__device__ __forceinline__ Group<double, 4> noise_of(const StartRow& row, double p, uint64_t block) {
  uint32_t words[4];
  philox_block(row.seed, row.key, block, words);
  if (p == 2) {
    const NormalPair first = normal_pair(words[0], words[1]), second = normal_pair(words[2], words[3]);
    return {{first.first, first.second, second.first, second.second}};
  }
  return {{signed_exponential(words[0]), signed_exponential(words[1]), signed_exponential(words[2]),
           signed_exponential(words[3])}};
}

// What adds up to the length of the noise of a segment: squares, or magnitudes. The sum of the block.
__device__ __forceinline__ double noise_sum(const RandomStartCall& call, const StartRow& row, int64_t first,
                                            int length) {
  __shared__ double lanes[kWarps];
  Sum<true> sum;
#pragma unroll 1
  for (int i = int(threadIdx.x) * 4; i < length; i += int(blockDim.x) * 4) {
    const Group<double, 4> noise = noise_of(row, call.p, uint64_t(first + i) / 4);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const double n = noise.values[v];
      if (i + v < length) sum.add(call.p == 2 ? n * n : fabs(n));
    }
  }
  return block_sum(sum.sum, lanes);
}

// What the noise of a row is multiplied by, given its sum.
template <class T>
__device__ __forceinline__ double start_scale(const RandomStartCall& call, const StartRow& row, double sum) {
  uint32_t words[4];
  philox_block(row.seed, row.key, kRadiusBlock, words);
  const double share = call.p == 2 ? l2_reach(words[0], call.size) / sqrt(sum) : 1 / (sum + exponential(words[0]));
  return share * inner_radius(per_sample<T>(call.eps, call.eps_count, row.sample));
}

// `vector`: the four elements of a counter block are neighbours that move in one access.
template <class T>
__device__ __forceinline__ void scaled_start(const RandomStartCall& call, const StartRow& row, int64_t j, int64_t first,
                                             int length, double scale, bool vector) {
  const T* x = static_cast<const T*>(call.x) + row.sample * call.size;
  T* start = static_cast<T*>(call.start_out) + j * call.size;
  const Bounds<T, RandomStartCall> bounds(call);
  const RowOrder order(call);
#pragma unroll 1
  for (int i = int(threadIdx.x) * 4; i < length; i += int(blockDim.x) * 4) {
    const Group<double, 4> noise = noise_of(row, call.p, uint64_t(first + i) / 4);
    Group<T, 4> clean{}, out;
    if (vector) {
      clean = read_group<T, 4>(x + first + i);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (i + v < length) clean.values[v] = read(x + order.offset(first + i + v));
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const auto channel = [&] { return i + v < length ? order.channel(first + i + v) : 0; };
      out.values[v] =
          project_point(clean.values[v], noise.values[v] * scale, bounds.low(channel), bounds.high(channel));
    }
    if (vector) {
      write_group<T, 4>(start + first + i, out);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (i + v < length) write(start + order.offset(first + i + v), out.values[v]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    scaled_start_kernel(RandomStartCall call, int64_t first_row, bool vector) {
  const int64_t j = first_row + blockIdx.x;
  const StartRow row(call, j);
  if (!row.real) return;  // the same for all threads
  const double scale = start_scale<T>(call, row, noise_sum(call, row, 0, int(call.size)));
  scaled_start<T>(call, row, j, 0, int(call.size), scale, vector);
}

__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    start_sum_kernel(RandomStartCall call, int64_t segments, int64_t first_row, int64_t first_segment) {
  const Segment part(call.size, first_row, first_segment);
  const StartRow row(call, part.j);
  if (!row.real) return;
  const double sum = noise_sum(call, row, part.first, part.length);
  double* sums = static_cast<double*>(call.workspace) + part.j * segments;
  if (threadIdx.x == 0) write(sums + first_segment + blockIdx.y, sum);
}

template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    start_scale_kernel(RandomStartCall call, int64_t segments, int64_t first_row, int64_t first_segment, bool vector) {
  __shared__ double lanes[kWarps];
  const Segment part(call.size, first_row, first_segment);
  const StartRow row(call, part.j);
  if (!row.real) return;
  const double* sums = static_cast<const double*>(call.workspace) + part.j * segments;
  Sum<true> sum;
  for (int64_t s = threadIdx.x; s < segments; s += blockDim.x) sum.add(read(sums + s));
  const double scale = start_scale<T>(call, row, block_sum(sum.sum, lanes));
  scaled_start<T>(call, row, part.j, part.first, part.length, scale, vector);
}

}  // namespace fastsal
