#include "truncated_cross_entropy.cuh"

#include "logits.h"

namespace fastsal {

void launch_truncated_cross_entropy(const TruncatedCrossEntropyCall& call, void* stream) {
  if (call.count == 0) return;
  with_rows(call.logits_dtype, call.classes, {call.logits, call.grad_out}, [&](auto rows) {
    using Z = typename decltype(rows)::Logit;
    constexpr bool wide = decltype(rows)::wide;
    const char* name = "truncated_cross_entropy";
    const RowPlan plan = plan_rows<Z>(
        call.count, call.classes, {kEntropyTurns<Z, WarpTeam>, kEntropyTurns<Z, BlockTeam>});
    if (plan.warp_per_row)
      launch(name, truncated_cross_entropy_kernel<Z, WarpTeam, wide>, plan.blocks, plan.threads, 0, stream, call);
    else if (plan.on_chip)
      launch(name, truncated_cross_entropy_kernel<Z, BlockTeam, wide>, plan.blocks, plan.threads, 0, stream, call);
    else
      launch(name, truncated_cross_entropy_long_kernel<Z, wide>, plan.blocks, threads(kLongRowThreads), 0, stream,
             call);
  });
}

}  // namespace fastsal
