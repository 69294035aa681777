// The start of an attack: the loops over a row on a CPU. What happens to one element stands in noise.h and rounding.h.
#pragma once

#include "lanes.h"
#include "noise.h"

namespace fastsal {

// Philox blocks made at a time: 128 words. gcc unrolls loops of up to 16 turns before it looks for vectors, and finds
// none in ten unrolled rounds.
constexpr int64_t kBlocks = 32;

// philox_block for 32 consecutive counters at a time; words[4 * block + word].
FASTSAL_ROW void philox(uint64_t seed, uint64_t sample, uint64_t first_block, uint32_t* words) {
  uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (int64_t l = 0; l < kBlocks; ++l) {
    const uint64_t block = first_block + uint64_t(l);
    c0[l] = uint32_t(block);
    c1[l] = uint32_t(block >> 32);
    c2[l] = uint32_t(sample);
    c3[l] = uint32_t(sample >> 32);
  }
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    for (int64_t l = 0; l < kBlocks; ++l) philox_round(c0[l], c1[l], c2[l], c3[l], key0, key1);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  for (int64_t l = 0; l < kBlocks; ++l) {
    words[4 * l] = c0[l];
    words[4 * l + 1] = c1[l];
    words[4 * l + 2] = c2[l];
    words[4 * l + 3] = c3[l];
  }
}

// The normals of 32 blocks.
FASTSAL_ROW void normals(const uint32_t* words, double* out) {
  for (int64_t pair = 0; pair < 2 * kBlocks; ++pair) {
    const NormalPair made = normal_pair(words[2 * pair], words[2 * pair + 1]);
    out[2 * pair] = made.first;
    out[2 * pair + 1] = made.second;
  }
}

// Their signed exponentials.
FASTSAL_ROW void signed_exponentials(const uint32_t* words, double* out) {
  for (int64_t i = 0; i < 4 * kBlocks; ++i) out[i] = signed_exponential(words[i]);
}

// False: x outside the box.
template <class T, class X, class O, class Box>
FASTSAL_ROW bool linf_start(X x, O start, const uint32_t* words, int64_t size, T eps, Box box) {
  using Mask = typename Bits<T>::Unsigned;
  Mask outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(outside_box(clean, low, high));
    start[i] = linf_start_point(clean, words[i], low, high, eps);
  }
  return outside == 0;
}

// x + noise * scale, for a direction (L2) or signed exponentials (L1)
template <class T, class X, class O, class Box>
FASTSAL_ROW bool scaled_start(X x, O start, const double* noise, int64_t size, double scale, Box box) {
  using Mask = typename Bits<T>::Unsigned;
  Mask outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(outside_box(clean, low, high));
    start[i] = project_point(clean, noise[i] * scale, low, high);
  }
  return outside == 0;
}

}  // namespace fastsal
