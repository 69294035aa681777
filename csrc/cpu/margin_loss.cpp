#include "../rows/margin_loss.h"

#include "logits.h"

namespace fastsal {
namespace {

template <class Z>
struct MarginRows {
  using T = typename LossOf<Z>::Type;
  const Z* logits;
  const int64_t *target, *other;
  Index ids;
  int64_t classes;
  bool dlr;
  T* loss;
  Z* grad;

  FASTSAL_ROW void rows(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j);
      if (sample >= 0) {
        const int64_t rival = other ? other[sample] : -1;
        const Z* row = logits + j * classes;
        Z* slope = grad + j * classes;
        loss[j] = dlr ? dlr_row<T>(row, slope, classes, target[sample], rival)
                      : margin_row<T>(row, slope, classes, target[sample], rival);
      } else {
        loss[j] = 0;
        store_zeros(grad + j * classes, classes);
      }
    }
  }
};

}  // namespace

int64_t margin_loss(Tensor logits, Tensor target, std::optional<Tensor> other, std::optional<Tensor> ids, bool dlr,
                    Tensor loss, Tensor grad) {
  const int64_t count = logits.size(0), classes = logits.size(1), labels = target.size(0);
  const Index samples(ids);
  const int64_t *y = data<int64_t>(target), *rival = data<int64_t>(other);
  if (!samples.within(count, -1, labels) || !labels_within(y, labels, classes)) return 1;
  if (rival != nullptr) {
    if (!labels_within(rival, labels, classes)) return 1;
    for (int64_t i = 0; i < labels; ++i)
      if (rival[i] == y[i]) return 1;
  }
  return with_logits(logits.scalar_type(), [&](auto z) -> int64_t {
    using Z = decltype(z);
    using T = typename LossOf<Z>::Type;
    for_rows(count, classes * 2,
             MarginRows<Z>{data<Z>(logits), y, rival, samples, classes, dlr, mutable_data<T>(loss), mutable_data<Z>(grad)});
    return 0;
  });
}

}  // namespace fastsal
