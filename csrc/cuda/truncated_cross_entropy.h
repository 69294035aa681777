// truncated_cross_entropy on CUDA: the arguments of the operator, then its outputs (fastsal/operators.py).
#pragma once

#include "call.h"

namespace fastsal {

struct TruncatedCrossEntropyCall {
  const void* logits;     // (count, classes)
  const int64_t* target;  // (samples,)
  const int64_t* ids;     // (count,) or null
  double cut;
  void* loss_out;   // (count,)
  void* grad_out;   // (count, classes)
  bool* right_out;  // (count,)
  bool* over_out;   // (count,)
  int64_t count, samples, classes;
  Dtype logits_dtype;
};

void launch_truncated_cross_entropy(const TruncatedCrossEntropyCall& call, void* stream);

}  // namespace fastsal
