// retire on CUDA: the arguments of the operator, then its outputs (fastsal/operators.py).
#pragma once

#include "call.h"

namespace fastsal {

struct RetireCall {
  const void* previous;  // (points, size)
  const void* current;   // (count, size)
  const bool* right;     // (count,) or null
  const bool* over;      // (count,) or null
  const int64_t* rows;   // (count,) or null
  const int64_t* ids;    // (count,) or null
  void* result;          // (samples, size)
  int64_t* stop;         // (samples,)
  int64_t step;
  bool last;
  int64_t* rows_out;  // (count,)
  int64_t* ids_out;   // (count,)
  int64_t* live_out;  // (1,)
  int64_t count, points, samples, size;
  Dtype current_dtype;
};

void launch_retire(const RetireCall& call, void* stream);

}  // namespace fastsal
