#include "margin_loss.cuh"

#include "logits.h"

namespace fastsal {

void launch_margin_loss(const MarginLossCall& call, void* stream) {
  if (call.count == 0) return;
  with_rows(call.logits_dtype, call.classes, {call.logits, call.grad_out}, [&](auto rows) {
    using Z = typename decltype(rows)::Logit;
    constexpr bool wide = decltype(rows)::wide;
    const char* name = "margin_loss";
    const int64_t held = 512 / (kWarp * kPack<Z>);
    const RowPlan plan = plan_rows<Z>(call.count, call.classes, {held, held}, kLongRowThreads);
    if (plan.warp_per_row)
      call.dlr ? launch(name, margin_loss_kernel<Z, WarpTeam, kDlrLeaders, wide>, plan.blocks, plan.threads, 0, stream, call)
               : launch(name, margin_loss_kernel<Z, WarpTeam, kMarginLeaders, wide>, plan.blocks, plan.threads, 0, stream, call);
    else
      call.dlr ? launch(name, margin_loss_kernel<Z, BlockTeam, kDlrLeaders, wide>, plan.blocks, plan.threads, 0, stream, call)
               : launch(name, margin_loss_kernel<Z, BlockTeam, kMarginLeaders, wide>, plan.blocks, plan.threads, 0, stream, call);
  });
}

}  // namespace fastsal
