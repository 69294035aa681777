// One body, compiled once per instruction set by function attributes and chosen once, when the library loads.
// Target attributes do not reach into a lambda, so a body is a struct with a member `void rows(begin, end) const`.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../rows/portable.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(FASTSAL_ONE_TIER)  // one tier: quick to compile
#define FASTSAL_X86_TIERS 1
#else
#define FASTSAL_X86_TIERS 0
#endif

namespace fastsal {

enum class Tier { baseline, avx2, avx512 };

// The best tier of this processor, or the one that FASTSAL_CPU_TIER names.
Tier tier();
const char* tier_name();

template <class Body>
void rows_baseline(const Body& body, int64_t begin, int64_t end) {
  body.rows(begin, end);
}
#if FASTSAL_X86_TIERS
template <class Body>
__attribute__((target("avx2"))) void rows_avx2(const Body& body, int64_t begin, int64_t end) {
  body.rows(begin, end);
}
template <class Body>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512"))) void rows_avx512(
    const Body& body, int64_t begin, int64_t end) {
  body.rows(begin, end);
}
#endif

template <class Body>
void run_tier(const Body& body, int64_t begin, int64_t end) {
#if FASTSAL_X86_TIERS
  if (tier() == Tier::avx512) return rows_avx512(body, begin, end);
  if (tier() == Tier::avx2) return rows_avx2(body, begin, end);
#endif
  rows_baseline(body, begin, end);
}

// Runs body.rows over [0, count), in parallel where that pays: `cost` is the number of elements of one of them.
template <class Body>
void for_rows(int64_t count, int64_t cost, const Body& body) {
  constexpr int64_t elements_per_task = 16384;
  if (count == 0) return;
  const int64_t grain = cost >= elements_per_task ? 1 : elements_per_task / (cost > 0 ? cost : 1);
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { run_tier(body, begin, end); });
}

}  // namespace fastsal
