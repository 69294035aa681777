// pgd_step on CUDA: the arguments of the operator, then its outputs (fastsal/operators.py), the sizes, and memory to work in.
#pragma once

#include "call.h"

namespace fastsal {

struct PgdStepCall {
  const void* x;         // (samples, size)
  const void* x_adv;     // (points, size)
  const void* grad;      // (points, size)
  const void* eps;       // (1,) or (samples,)
  const void* alpha;     // (1,) or (samples,)
  const void* clip_min;  // (1,) or (channels,), or null
  const void* clip_max;  // (1,) or (channels,), or null
  const int64_t* rows;   // (count,) or null
  const int64_t* ids;    // (count,) or null
  double p;
  int64_t topk;
  void* next_out;       // (count, size)
  bool* nonfinite_out;  // (count,)
  int64_t count, points, samples;
  int64_t size, channels, places;  // size = channels * places
  bool channels_last;
  int64_t eps_count, alpha_count, clip_min_count, clip_max_count;
  Dtype x_dtype, grad_dtype;
  void* workspace;  // workspace_bytes, whatever they hold
  void* tickets;    // tickets_bytes, all zero before the call and again after it: one piece of memory serves all the
                    // calls of a stream
};

int64_t workspace_bytes(const PgdStepCall& call);
int64_t tickets_bytes(const PgdStepCall& call);

void launch_pgd_step(const PgdStepCall& call, void* stream);

// What launch_pgd_step and workspace_bytes call for these norms.
void launch_pgd_step_l2(const PgdStepCall& call, void* stream);
void launch_pgd_step_l1(const PgdStepCall& call, void* stream);
int64_t l2_workspace_bytes(const PgdStepCall& call);

}  // namespace fastsal
