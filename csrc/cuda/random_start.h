// random_start on CUDA: the arguments of the operator, then its output (fastsal/operators.py), the sizes, and memory to
// work in.
#pragma once

#include "call.h"

namespace fastsal {

struct RandomStartCall {
  const void* x;              // (samples, size)
  const void* eps;            // (1,) or (samples,)
  const int64_t* seed;        // one
  const int64_t* sample_ids;  // (samples,) or null
  const void* clip_min;       // (1,) or (channels,), or null
  const void* clip_max;       // (1,) or (channels,), or null
  const int64_t* ids;         // (count,) or null
  double p;
  void* start_out;  // (count, size)
  int64_t count, samples;
  int64_t size, channels, places;  // size = channels * places
  bool channels_last;
  int64_t eps_count, clip_min_count, clip_max_count;
  Dtype x_dtype;
  void* workspace;  // workspace_bytes, whatever they hold
};

int64_t workspace_bytes(const RandomStartCall& call);

void launch_random_start(const RandomStartCall& call, void* stream);

}  // namespace fastsal
