#include "../rows/kl_divergence.h"

#include "logits.h"

namespace fastsal {
namespace {

template <class Z>
struct DivergenceRows {
  using T = typename LossOf<Z>::Type;
  const Z *clean, *adv;
  Index ids;
  int64_t classes;
  bool both;
  T* loss;
  Z *adv_grad, *clean_grad;

  FASTSAL_ROW void rows(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j), at = j * classes;
      if (sample >= 0) {
        const Z* of_clean = clean + sample * classes;
        loss[j] = both ? kl_row<true, T>(of_clean, adv + at, adv_grad + at, clean_grad + at, classes)
                       : kl_row<false, T>(of_clean, adv + at, adv_grad + at, adv_grad + at, classes);
      } else {
        loss[j] = 0;
        store_zeros(adv_grad + at, classes);
        if (both) store_zeros(clean_grad + at, classes);
      }
    }
  }
};

}  // namespace

int64_t kl_divergence(Tensor clean, Tensor adv, std::optional<Tensor> ids, bool both, Tensor loss, Tensor adv_grad,
                      Tensor clean_grad) {
  const int64_t count = adv.size(0), classes = adv.size(1);
  const Index samples(ids);
  if (!samples.within(count, -1, clean.size(0))) return 1;
  return with_logits(adv.scalar_type(), [&](auto z) -> int64_t {
    using Z = decltype(z);
    using T = typename LossOf<Z>::Type;
    for_rows(count, classes * 16,
             DivergenceRows<Z>{data<Z>(clean), data<Z>(adv), samples, classes, both, mutable_data<T>(loss),
                               mutable_data<Z>(adv_grad), mutable_data<Z>(clean_grad)});
    return 0;
  });
}

}  // namespace fastsal
