// kl_divergence on CUDA: the arguments of the operator, then its outputs (fastsal/operators.py).
#pragma once

#include "call.h"

namespace fastsal {

struct KlDivergenceCall {
  const void* clean;   // (samples, classes)
  const void* adv;     // (count, classes)
  const int64_t* ids;  // (count,) or null
  bool both;
  void* loss_out;        // (count,)
  void* adv_grad_out;    // (count, classes)
  void* clean_grad_out;  // (count, classes) if both
  int64_t count, samples, classes;
  Dtype adv_dtype;
};

void launch_kl_divergence(const KlDivergenceCall& call, void* stream);

}  // namespace fastsal
