// Counter-based noise and the start of an attack. The noise of an element depends on the seed, the sample id and the
// element's row-major index, never on thread, block, batch or memory format.
#pragma once

#include <cmath>

#include "maths.h"
#include "pgd_step.h"

namespace fastsal {

constexpr int64_t kBlocks = 16;  // Philox blocks made at a time: 64 words
constexpr uint64_t kRadiusBlock = ~uint64_t(0);

// Philox-4x32-10 (Salmon et al. 2011), 16 consecutive counters at a time; words[4 * block + word].
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
  for (int round = 0; round < 10; ++round) {
    for (int64_t l = 0; l < kBlocks; ++l) {
      const uint64_t first = uint64_t(0xD2511F53u) * c0[l], second = uint64_t(0xCD9E8D57u) * c2[l];
      c0[l] = uint32_t(second >> 32) ^ c1[l] ^ key0;
      c2[l] = uint32_t(first >> 32) ^ c3[l] ^ key1;
      c1[l] = uint32_t(second);
      c3[l] = uint32_t(first);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int64_t l = 0; l < kBlocks; ++l) {
    words[4 * l] = c0[l];
    words[4 * l + 1] = c1[l];
    words[4 * l + 2] = c2[l];
    words[4 * l + 3] = c3[l];
  }
}

// u = ((w >> 9) + 0.5) * 2^-23 in (0, 1), exact in fp32 and fp64
template <class T>
FASTSAL_ROW T uniform(uint32_t word) {
  return (T(int32_t(word >> 9)) + T(0.5)) * T(0x1p-23);
}

// Standard normals (Box-Muller) of the 64 words of 16 blocks: words 0, 1 of a block make elements 0, 1; 2, 3 the rest.
FASTSAL_ROW void normals(const uint32_t* words, double* out) {
  for (int64_t pair = 0; pair < 2 * kBlocks; ++pair) {
    const double length = std::sqrt(-2 * log_positive(uniform<double>(words[2 * pair])));
    const Rotation angle = turn(uniform<double>(words[2 * pair + 1]));
    out[2 * pair] = length * angle.cosine;
    out[2 * pair + 1] = length * angle.sine;
  }
}

// eps * (2u - 1), then x + noise, each rounded by itself; then the exact ball and the box. False: x outside the box.
template <class T, class X, class O, class Box>
FASTSAL_ROW bool linf_start(X x, O start, const uint32_t* words, int64_t size, T eps, Box box) {
  using Mask = typename Bits<T>::Unsigned;
  Mask outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(!(clean >= low)) | Mask(!(clean <= high));
    const T noise = eps * (2 * uniform<T>(words[i]) - 1);
    const T floor = round_up_sum(clean, -eps), ceiling = round_down_sum(clean, eps);
    start[i] = clamp(clean + noise, floor > low ? floor : low, ceiling < high ? ceiling : high);
  }
  return outside == 0;
}

// x + noise for an L2 direction scaled to the radius eps * u^(1/n)
template <class T, class X, class O, class Box>
FASTSAL_ROW bool l2_start(X x, O start, const double* normal, int64_t size, double scale, Box box) {
  using Mask = typename Bits<T>::Unsigned;
  Mask outside = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(!(clean >= low)) | Mask(!(clean <= high));
    start[i] = clamp(add_towards(clean, normal[i] * scale), low, high);
  }
  return outside == 0;
}

}  // namespace fastsal
