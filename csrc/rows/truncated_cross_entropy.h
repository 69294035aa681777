// Cross-entropy of one row on a CPU: loss, gradient, and the flags that the attack asks for.
#pragma once

#include "largest.h"
#include "losses.h"

namespace fastsal {

template <class T>
struct CrossEntropy {
  T loss;
  bool right, over;
};

template <class T, class Z, class G>
FASTSAL_ROW CrossEntropy<T> cross_entropy_row(Z logits, G grad, int64_t classes, int64_t label, T cut) {
  const Largest<T> top = largest_of<T>(classes, [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); });
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= classes; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += softmax_term(T(value(logits[i + l])), top.value);
  for (int64_t l = 0; i + l < classes; ++l) lanes[l] += softmax_term(T(value(logits[i + l])), top.value);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  const T total = lanes[0], own = T(value(logits[label]));
  for (int64_t j = 0; j < classes; ++j)
    store(&grad[j], cross_entropy_slope(softmax_term(T(value(logits[j])), top.value), total, false));
  store(&grad[label], cross_entropy_slope(softmax_term(own, top.value), total, true));
  const T loss = cross_entropy_loss(total, own, top.value);
  return {loss, top.value == top.value && top.index == label, is_over(loss, cut)};
}

}  // namespace fastsal
