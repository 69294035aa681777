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

// philox_block; the twenty round keys, the same in every turn of a loop, are made there.
__device__ __forceinline__ void words_of(const StartRow& row, uint64_t block, uint32_t words[4]) {
  philox_block(uint64_t(opaque(int64_t(row.seed))), row.key, block, words);
}

// words[v], by indices that are known when this is compiled: else the words went to memory.
__device__ __forceinline__ uint32_t word_at(const uint32_t words[4], int v) {
  const uint32_t low = v & 1 ? words[1] : words[0], high = v & 1 ? words[3] : words[2];
  return v & 2 ? high : low;
}

__device__ __forceinline__ uint32_t word_of(const StartRow& row, int64_t element) {
  uint32_t words[4];
  words_of(row, uint64_t(element) / 4, words);
  return word_at(words, int(element & 3));
}

// words[v] = word, in the same way.
__device__ __forceinline__ void put_word(uint32_t words[4], int v, uint32_t word) {
#pragma unroll
  for (int known = 0; known < 4; ++known)
    if (v == known) words[known] = word;
}

// `group`: elements of a thread in one access; 1 is the scalar path. `whole`: they are the elements of one counter block.
// In channels_last memory they are not, and every element makes its own.
template <class T, int group, bool whole>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    linf_start_kernel(RandomStartCall call, int64_t first_row, int64_t first_segment) {
  const Segment part(first_row, first_segment);
  const StartRow row(call, part.j);
  if (!row.real) return;
  const T eps = per_sample<T>(call.eps, call.eps_count, row.sample);
  const T* x = static_cast<const T*>(call.x) + row.sample * call.size + part.first;
  T* start = static_cast<T*>(call.start_out) + part.j * call.size + part.first;
  const int length = part.length(call.size);
  const Box<T, RandomStartCall> box(call, part.first, length);
  const RowOrder order(call);
#pragma unroll 1
  for (int i = int(threadIdx.x) * group; i < length; i += int(blockDim.x) * group) {
    const Group<T, group> clean = read_group<T, group>(x + i);
    uint32_t words[4] = {};
    if (whole) {
      words_of(row, uint64_t(part.first + i) / 4, words);
    } else {
#pragma unroll 1
      for (int v = 0; v < group; ++v) put_word(words, v, word_of(row, order.logical(part.first + i + v)));
    }
    Group<T, group> out;
#pragma unroll
    for (int v = 0; v < group; ++v)
      out.values[v] = linf_start_point(clean.values[v], words[v], box.low(i + v), box.high(i + v), eps);
    write_group<T, group>(start + i, out);
  }
}

// ------------------------------------------------------------------------------------------------ L2 and L1

// What a block works on, in shared memory. It is read anew for each counter block (volatile), since the logarithm needs
// the registers.
struct ScaledPart {
  uint64_t seed, key;
  int64_t sample, j, first;
  double scale;
};
__device__ __forceinline__ void put_part(volatile ScaledPart* part, const StartRow& row, int64_t j, int64_t first) {
  if (threadIdx.x == 0) {
    part->seed = row.seed;
    part->key = row.key;
    part->sample = row.sample;
    part->j = j;
    part->first = first;
  }
  __syncthreads();
}

// The noise of the four elements of a counter block, from element i on, before it is scaled: normals, or exponentials
// with a sign. They are made one after the other, normals two at a time, since four at once need too many registers.
// body(v, noise)
template <class Body>
__device__ __forceinline__ void each_noise(const volatile ScaledPart* part, double p, int i, Body body) {
  uint32_t words[4];
  philox_block(part->seed, part->key, uint64_t(part->first + i) / 4, words);
  if (p == 2) {
#pragma unroll 1
    for (int v = 0; v < 4; v += 2) {
      const NormalPair made = normal_pair(word_at(words, v), word_at(words, v + 1));
      body(v, made.first);
      body(v + 1, made.second);
    }
  } else {
#pragma unroll 1
    for (int v = 0; v < 4; ++v) body(v, signed_exponential(word_at(words, v)));
  }
}

// What adds up to the length of the noise of a segment: squares, or magnitudes. The sum of the block.
__device__ __forceinline__ double noise_sum(const RandomStartCall& call, const volatile ScaledPart* part, int length) {
  __shared__ double lanes[kWarps];
  Sum<true> sum;
#pragma unroll 1
  for (int i = int(threadIdx.x) * 4; i < length; i += int(blockDim.x) * 4)
    each_noise(part, call.p, i, [&](int v, double n) {
      if (i + v < length) sum.add(call.p == 2 ? n * n : fabs(n));
    });
  return block_sum(sum.sum, lanes);
}

// What the noise of a row is multiplied by, given its sum.
template <class T>
__device__ __forceinline__ double start_scale(const RandomStartCall& call, const volatile ScaledPart* part,
                                              double sum) {
  uint32_t words[4];
  philox_block(part->seed, part->key, kRadiusBlock, words);
  const double share = call.p == 2 ? l2_reach(words[0], call.size) / sqrt(sum) : 1 / (sum + exponential(words[0]));
  return share * inner_radius(per_sample<T>(call.eps, call.eps_count, part->sample));
}

// `vector`: the four elements of a counter block are neighbours that move in one access.
template <class T>
__device__ __forceinline__ void scaled_start(const RandomStartCall& call, volatile ScaledPart* part, int length,
                                             double scale, bool vector) {
  __shared__ double made[4][kStreamThreads];
  if (threadIdx.x == 0) part->scale = scale;
  __syncthreads();
#pragma unroll 1
  for (int i = int(threadIdx.x) * 4; i < length; i += int(blockDim.x) * 4) {
    each_noise(part, call.p, i, [&](int v, double n) { made[v][threadIdx.x] = n; });
    const Bounds<T, RandomStartCall> bounds(call);
    const RowOrder order(call);
    const int64_t at = part->first + i;
    const T* x = static_cast<const T*>(call.x) + part->sample * call.size;
    T* start = static_cast<T*>(call.start_out) + part->j * call.size;
    Group<T, 4> clean{}, out;
    if (vector) {
      clean = read_group<T, 4>(x + at);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (i + v < length) clean.values[v] = read(x + order.offset(at + v));
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const auto channel = [&] { return i + v < length ? order.channel(at + v) : 0; };
      out.values[v] = project_point(clean.values[v], made[v][threadIdx.x] * part->scale, bounds.low(channel),
                                    bounds.high(channel));
    }
    if (vector) {
      write_group<T, 4>(start + at, out);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (i + v < length) write(start + order.offset(at + v), out.values[v]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    scaled_start_kernel(RandomStartCall call, int64_t first_row, bool vector) {
  const int64_t j = first_row + blockIdx.x;
  const StartRow row(call, j);
  if (!row.real) return;  // the same for all threads
  __shared__ volatile ScaledPart part;
  put_part(&part, row, j, 0);
  const double scale = start_scale<T>(call, &part, noise_sum(call, &part, int(call.size)));
  scaled_start<T>(call, &part, int(call.size), scale, vector);
}

__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    start_sum_kernel(RandomStartCall call, int64_t segments, int64_t first_row, int64_t first_segment) {
  const Segment segment(first_row, first_segment);
  const StartRow row(call, segment.j);
  if (!row.real) return;
  __shared__ volatile ScaledPart part;
  put_part(&part, row, segment.j, segment.first);
  const double sum = noise_sum(call, &part, segment.length(call.size));
  double* sums = static_cast<double*>(call.workspace) + part.j * segments;
  if (threadIdx.x == 0) write(sums + first_segment + blockIdx.y, sum);
}

template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    start_scale_kernel(RandomStartCall call, int64_t segments, int64_t first_row, int64_t first_segment, bool vector) {
  __shared__ double lanes[kWarps];
  const Segment segment(first_row, first_segment);
  const StartRow row(call, segment.j);
  if (!row.real) return;
  __shared__ volatile ScaledPart part;
  put_part(&part, row, segment.j, segment.first);
  const double* sums = static_cast<const double*>(call.workspace) + segment.j * segments;
  Sum<true> sum;
#pragma unroll 1
  for (int64_t s = threadIdx.x; s < segments; s += blockDim.x) sum.add(read(sums + s));
  const double scale = start_scale<T>(call, &part, block_sum(sum.sum, lanes));
  scaled_start<T>(call, &part, segment.length(call.size), scale, vector);
}

}  // namespace fastsal
