#include "../rows/truncated_cross_entropy.h"

#include "logits.h"

namespace fastsal {
namespace {

template <class Z>
struct CrossEntropyRows {
  using T = typename LossOf<Z>::Type;
  const Z* logits;
  const int64_t* target;
  Index ids;
  int64_t classes;
  T cut;
  T* loss;
  Z* grad;
  bool *right, *over;

  FASTSAL_ROW void rows(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j);
      CrossEntropy<T> row{T(0), false, true};
      if (sample >= 0)
        row = cross_entropy_row(logits + j * classes, grad + j * classes, classes, target[sample], cut);
      else
        store_zeros(grad + j * classes, classes);
      loss[j] = row.loss;
      right[j] = row.right;
      over[j] = row.over;
    }
  }
};

}  // namespace

int64_t truncated_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> ids, double cut, Tensor loss,
                                Tensor grad, Tensor right, Tensor over) {
  const int64_t count = logits.size(0), classes = logits.size(1);
  const Index samples(ids);
  if (!samples.within(count, -1, target.size(0)) || !labels_within(data<int64_t>(target), target.size(0), classes)) return 1;
  return with_logits(logits.scalar_type(), [&](auto z) -> int64_t {
    using Z = decltype(z);
    using T = typename LossOf<Z>::Type;
    for_rows(count, classes * 8,
             CrossEntropyRows<Z>{data<Z>(logits), data<int64_t>(target), samples, classes, T(cut),
                                 mutable_data<T>(loss), mutable_data<Z>(grad), mutable_data<bool>(right),
                                 mutable_data<bool>(over)});
    return 0;
  });
}

}  // namespace fastsal
