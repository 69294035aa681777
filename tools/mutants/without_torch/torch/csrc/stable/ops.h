// One task after another, each at its grain, as torch cuts them.
#pragma once

#include "tensor.h"

namespace torch {
namespace stable {

template <class Run>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  for (int64_t at = begin; at < end; at += grain) run(at, at + grain < end ? at + grain : end);
}

}  // namespace stable
}  // namespace torch
