// Counter-based noise of one element. It depends on the seed, the sample id and the element's row-major index, never
// on thread, block, batch or memory format.
#pragma once

#include <math.h>

#include "maths.h"

namespace fastsal {

constexpr uint64_t kRadiusBlock = ~uint64_t(0);  // the counter block whose first word draws what a whole row shares

// One round of Philox-4x32 (Salmon et al. 2011).
FASTSAL_ROW void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t key0, uint32_t key1) {
  const uint64_t first = uint64_t(0xD2511F53u) * c0, second = uint64_t(0xCD9E8D57u) * c2;
  c0 = uint32_t(second >> 32) ^ c1 ^ key0;
  c2 = uint32_t(first >> 32) ^ c3 ^ key1;
  c1 = uint32_t(second);
  c3 = uint32_t(first);
}
constexpr int kRounds = 10;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // what the keys grow by from round to round

// The four words of one counter block: word e % 4 of block e / 4 belongs to element e.
FASTSAL_ROW void philox_block(uint64_t seed, uint64_t sample, uint64_t block, uint32_t words[4]) {
  uint32_t c0 = uint32_t(block), c1 = uint32_t(block >> 32), c2 = uint32_t(sample), c3 = uint32_t(sample >> 32);
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    philox_round(c0, c1, c2, c3, key0, key1);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// u = ((w >> 9) + 0.5) * 2^-23 in (0, 1), exact in fp32 and fp64
template <class T>
FASTSAL_ROW T uniform(uint32_t word) {
  return (T(int32_t(word >> 9)) + T(0.5)) * T(0x1p-23);
}

// eps * (2u - 1), then clean + noise, each rounded by itself; then the exact ball and the box.
template <class T>
FASTSAL_ROW T linf_start_point(T clean, uint32_t word, T low, T high, T eps) {
  const T noise = eps * (2 * uniform<T>(word) - 1);
  return into_ball_and_box(clean + noise, clean, low, high, eps);
}

// Two standard normals (Box-Muller). Words 0 and 1 of a block make its elements 0 and 1, words 2 and 3 the other two.
struct NormalPair {
  double first, second;
};
FASTSAL_ROW NormalPair normal_pair(uint32_t word0, uint32_t word1) {
  const double length = sqrt(-2 * log_positive(uniform<double>(word0)));
  const Rotation angle = turn(uniform<double>(word1));
  return {length * angle.cosine, length * angle.sine};
}

// u^(1/size): the share of the radius that a uniform point of the L2 ball has (0 where there are no dimensions)
FASTSAL_ROW double l2_reach(uint32_t word, int64_t size) {
  return exp_nonpositive(log_positive(uniform<double>(word)) / double(size));
}

// A standard exponential, and the same with the sign that the lowest bit of the word tells (no part of u).
FASTSAL_ROW double exponential(uint32_t word) { return -log_positive(uniform<double>(word)); }
FASTSAL_ROW double signed_exponential(uint32_t word) {
  const double magnitude = exponential(word);
  return (word & 1) ? -magnitude : magnitude;
}

}  // namespace fastsal
