// margin_loss on CUDA: the arguments of the operator, then its outputs (fastsal/operators.py).
#pragma once

#include "call.h"

namespace fastsal {

struct MarginLossCall {
  const void* logits;     // (count, classes)
  const int64_t* target;  // (samples,)
  const int64_t* other;   // (samples,) or null
  const int64_t* ids;     // (count,) or null
  bool dlr;
  void* loss_out;  // (count,)
  void* grad_out;  // (count, classes)
  int64_t count, samples, classes;
  Dtype logits_dtype;
};

void launch_margin_loss(const MarginLossCall& call, void* stream);

}  // namespace fastsal
