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
    if (classes <= kLanes)
      short_rows(begin, end);
    else
      for (int64_t j = begin; j < end; ++j) {
        const int64_t sample = ids.of(j), at = j * classes;
        if (sample >= 0) {
          const Z* of_clean = clean + sample * classes;
          loss[j] = both ? kl_row<true, T>(of_clean, adv + at, adv_grad + at, clean_grad + at, classes)
                         : kl_row<false, T>(of_clean, adv + at, adv_grad + at, adv_grad + at, classes);
        } else {
          put_padding(j);
        }
      }
  }

  FASTSAL_ROW void short_rows(int64_t begin, int64_t end) const {
    int64_t samples[kLanes];
    for (int64_t first = begin; first < end; first += kLanes) {
      const int64_t count = end - first < kLanes ? end - first : kLanes, at = first * classes;
      for (int64_t j = 0; j < count; ++j) samples[j] = ids.of(first + j);
      if (both)
        kl_short_rows<true, T>(clean, samples, adv + at, adv_grad + at, clean_grad + at, count, classes, loss + first);
      else
        kl_short_rows<false, T>(clean, samples, adv + at, adv_grad + at, adv_grad + at, count, classes, loss + first);
      for (int64_t j = 0; j < count; ++j)
        if (samples[j] < 0) put_padding(first + j);
    }
  }

  FASTSAL_ROW void put_padding(int64_t j) const {
    loss[j] = 0;
    store_zeros(adv_grad + j * classes, classes);
    if (both) store_zeros(clean_grad + j * classes, classes);
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
