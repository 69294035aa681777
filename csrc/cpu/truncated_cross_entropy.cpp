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
    if (classes <= kLanes)
      short_rows(begin, end);
    else
      for (int64_t j = begin; j < end; ++j) {
        const int64_t sample = ids.of(j), at = j * classes;
        if (sample >= 0)
          put(j, cross_entropy_row(logits + at, grad + at, classes, target[sample], cut));
        else
          put_padding(j);
      }
  }

  FASTSAL_ROW void short_rows(int64_t begin, int64_t end) const {
    int64_t labels[kLanes];
    CrossEntropy<T> computed[kLanes];
    for (int64_t first = begin; first < end; first += kLanes) {
      const int64_t count = end - first < kLanes ? end - first : kLanes, at = first * classes;
      for (int64_t j = 0; j < count; ++j) {
        const int64_t sample = ids.of(first + j);
        labels[j] = sample >= 0 ? target[sample] : 0;
      }
      cross_entropy_short_rows<T>(logits + at, grad + at, count, classes, labels, cut, computed);
      for (int64_t j = 0; j < count; ++j)
        if (ids.of(first + j) >= 0)
          put(first + j, computed[j]);
        else
          put_padding(first + j);
    }
  }

  FASTSAL_ROW void put(int64_t j, CrossEntropy<T> row) const {
    loss[j] = row.loss;
    right[j] = row.right;
    over[j] = row.over;
  }
  FASTSAL_ROW void put_padding(int64_t j) const {
    store_zeros(grad + j * classes, classes);
    put(j, {T(0), false, true});
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
    for_rows(count, classes * 4,
             CrossEntropyRows<Z>{data<Z>(logits), data<int64_t>(target), samples, classes, T(cut),
                                 mutable_data<T>(loss), mutable_data<Z>(grad), mutable_data<bool>(right),
                                 mutable_data<bool>(over)});
    return 0;
  });
}

}  // namespace fastsal
