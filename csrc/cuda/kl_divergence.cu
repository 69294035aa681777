#include "kl_divergence.cuh"

#include "logits.h"

namespace fastsal {

void launch_kl_divergence(const KlDivergenceCall& call, void* stream) {
  if (call.count == 0) return;
  const void* second = call.both ? call.clean_grad_out : nullptr;
  with_rows(call.adv_dtype, call.classes, {call.clean, call.adv, call.adv_grad_out, second}, [&](auto rows) {
    using Z = typename decltype(rows)::Logit;
    constexpr bool wide = decltype(rows)::wide;
    const char* name = "kl_divergence";
    const RowPlan plan = plan_rows<Z>(
        call.count, call.classes, {kDivergenceTurns<Z>, kDivergenceTurns<Z>}, kDivergenceThreads<BlockTeam>);
    if (plan.warp_per_row)
      launch(name, kl_divergence_kernel<Z, WarpTeam, wide>, plan.blocks, plan.threads, 0, stream, call);
    else if (plan.on_chip)
      launch(name, kl_divergence_kernel<Z, BlockTeam, wide>, plan.blocks, plan.threads, 0, stream, call);
    else
      launch(name, kl_divergence_long_kernel<Z, wide>, plan.blocks, threads(kLongRowThreads), 0, stream, call);
  });
}

}  // namespace fastsal
