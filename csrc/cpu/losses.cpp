#include "../rows/losses.h"

#include "bodies.h"
#include "operands.h"
#include "tiers.h"

namespace fastsal {
namespace {

template <class Z>
struct LossType {
  using type = float;
};
template <>
struct LossType<double> {
  using type = double;
};

template <class Z>
struct CrossEntropyRows {
  using T = typename LossType<Z>::type;
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
        for (int64_t i = 0; i < classes; ++i) store(&grad[j * classes + i], T(0));
      loss[j] = row.loss;
      right[j] = row.right;
      over[j] = row.over;
    }
  }
};

template <class Z>
struct MarginRows {
  using T = typename LossType<Z>::type;
  const Z* logits;
  const int64_t *target, *other;
  Index ids;
  int64_t classes;
  T* loss;
  Z* grad;

  FASTSAL_ROW void rows(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j);
      if (sample >= 0) {
        const int64_t rival = other ? other[sample] : -1;
        loss[j] = margin_row<T>(logits + j * classes, grad + j * classes, classes, target[sample], rival);
      } else {
        loss[j] = 0;
        for (int64_t i = 0; i < classes; ++i) store(&grad[j * classes + i], T(0));
      }
    }
  }
};

bool within(const int64_t* labels, int64_t count, int64_t classes) {
  for (int64_t i = 0; i < count; ++i)
    if (labels[i] < 0 || labels[i] >= classes) return false;
  return true;
}

template <class Call>
int64_t with_logits(ScalarType dtype, Call call) {
  switch (dtype) {
    case ScalarType::Double:
      return call(double());
    case ScalarType::BFloat16:
      return call(bfloat16());
    case ScalarType::Half:
      return call(float16());
    default:
      return call(float());
  }
}

}  // namespace

int64_t truncated_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> ids, double cut, Tensor loss,
                                Tensor grad, Tensor right, Tensor over) {
  const int64_t count = logits.size(0), classes = logits.size(1);
  const Index samples(ids);
  if (!samples.within(count, -1, target.size(0)) || !within(data<int64_t>(target), target.size(0), classes)) return 1;
  return with_logits(logits.scalar_type(), [&](auto z) -> int64_t {
    using Z = decltype(z);
    using T = typename LossType<Z>::type;
    for_rows(count, classes * 8,
             CrossEntropyRows<Z>{data<Z>(logits), data<int64_t>(target), samples, classes, T(cut),
                                 mutable_data<T>(loss), mutable_data<Z>(grad), mutable_data<bool>(right),
                                 mutable_data<bool>(over)});
    return 0;
  });
}

int64_t margin_loss(Tensor logits, Tensor target, std::optional<Tensor> other, std::optional<Tensor> ids, bool dlr,
                    Tensor loss, Tensor grad) {
  const int64_t count = logits.size(0), classes = logits.size(1), labels = target.size(0);
  const Index samples(ids);
  const int64_t *y = data<int64_t>(target), *rival = data<int64_t>(other);
  if (!samples.within(count, -1, labels) || !within(y, labels, classes)) return 1;
  if (rival != nullptr) {
    if (!within(rival, labels, classes)) return 1;
    for (int64_t i = 0; i < labels; ++i)
      if (rival[i] == y[i]) return 1;
  }
  return with_logits(logits.scalar_type(), [&](auto z) -> int64_t {
    using Z = decltype(z);
    using T = typename LossType<Z>::type;
    for_rows(count, classes * 2,
             MarginRows<Z>{data<Z>(logits), y, rival, samples, classes, mutable_data<T>(loss), mutable_data<Z>(grad)});
    return 0;
  });
}

}  // namespace fastsal
