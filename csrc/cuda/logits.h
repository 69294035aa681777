// How a loss kernel is launched over rows of logits: by a warp or by a block for each, held on chip or read twice.
#pragma once

#include "logits.cuh"

namespace fastsal {

struct RowPlan {
  unsigned threads, blocks;
  bool warp_per_row;
  bool on_chip;  // every thread's share of a row fits into its registers
};

// Turns of a row that a thread has registers for, where a warp or a block has it.
struct Held {
  int64_t warp, block;
};
template <class Z>
RowPlan plan_rows(int64_t count, int64_t classes, Held held, unsigned most_threads = BlockTeam::kMostThreads) {
  const int64_t packs = (classes + kPack<Z> - 1) / kPack<Z>;
  if (packs <= kWarp * held.warp) {
    const unsigned block = threads(WarpTeam::kMostThreads), rows = block / kWarp;
    return {block, blocks_for((count + rows - 1) / rows), true, true};
  }
  // as few threads as can hold the row: the fewer warps, the less they wait for each other
  unsigned usual = 128;
  while (usual < most_threads && usual * held.block < packs) usual *= 2;
  const unsigned block = threads(usual < most_threads ? usual : most_threads);
  return {block, blocks_for(count), false, packs <= block * held.block};
}

// Whether rows can move 16 bytes at a time: each begins and ends at a multiple of 16.
template <class Z>
bool wide_rows(int64_t classes, std::initializer_list<const void*> operands) {
  uint64_t all = uint64_t(classes) * sizeof(Z);
  for (const void* operand : operands) all |= reinterpret_cast<uintptr_t>(operand);
  return all % 16 == 0;
}

template <class Z, bool is_wide>
struct Rows {
  using Logit = Z;
  static constexpr bool wide = is_wide;
};

// call(Rows<Z, wide>()) for the type of the logits
template <class Call>
void with_rows(Dtype dtype, int64_t classes, std::initializer_list<const void*> operands, Call call) {
  const auto typed = [&](auto logit) {
    using Z = decltype(logit);
    wide_rows<Z>(classes, operands) ? call(Rows<Z, true>()) : call(Rows<Z, false>());
  };
  switch (dtype) {
    case Dtype::float32:
      return typed(float());
    case Dtype::float64:
      return typed(double());
    case Dtype::bfloat16:
      return typed(bfloat16());
    case Dtype::float16:
      return typed(float16());
  }
}

}  // namespace fastsal
