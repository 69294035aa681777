#include "margin_loss.cuh"

#include "logits.h"

namespace fastsal {

void launch_margin_loss(const MarginLossCall& call, void* stream) {
  if (call.count == 0) return;
  with_rows(call.logits_dtype, call.classes, {call.logits, call.grad_out}, [&](auto rows) {
    using Z = typename decltype(rows)::Logit;
    constexpr bool wide = decltype(rows)::wide;
    const char* name = "margin_loss";
    // read in turns, a row may have any length; up to 1024 classes a warp has it, and nobody waits at a barrier
    const int64_t turns = 1024 / (kWarp * kPack<Z>);
    const RowPlan plan = plan_rows<Z>(call.count, call.classes, {turns, 4}, kLongRowThreads);
    if (plan.warp_per_row)
      call.dlr ? launch(name, margin_loss_kernel<Z, WarpTeam, kDlrLeaders, wide>, plan.blocks, plan.threads, 0, stream, call)
               : launch(name, margin_loss_kernel<Z, WarpTeam, kMarginLeaders, wide>, plan.blocks, plan.threads, 0, stream, call);
    else
      call.dlr ? launch(name, margin_loss_kernel<Z, BlockTeam, kDlrLeaders, wide>, plan.blocks, plan.threads, 0, stream, call)
               : launch(name, margin_loss_kernel<Z, BlockTeam, kMarginLeaders, wide>, plan.blocks, plan.threads, 0, stream, call);
  });
}

}  // namespace fastsal
