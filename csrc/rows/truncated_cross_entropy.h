// Cross-entropy of one row on a CPU: loss, gradient, and the flags that the attack asks for.
#pragma once

#include "largest.h"
#include "softmax.h"

namespace fastsal {

template <class T>
struct CrossEntropy {
  T loss;
  bool right, over;
};

template <class T, class Z, class G>
FASTSAL_ROW CrossEntropy<T> cross_entropy_row(Z logits, G grad, int64_t classes, int64_t label, T cut) {
  const auto score = [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); };
  const T top = largest_number<T>(classes, score), own = score(label);
  const T total = softmax_total<T>(logits, grad, classes, top);
  const auto term = [&](int64_t i) FASTSAL_LAMBDA { return softmax_term_of<T>(logits, grad, i, top); };
  for_blocks(classes, T(0), term, [&](const T* terms, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T slopes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) slopes[l] = cross_entropy_slope(terms[l], total, false);
    store_block(grad, i, count, slopes);
  });
  store(&grad[label], cross_entropy_slope(softmax_term(own, top), total, true));
  // right: the label has the largest logit, no class before it has the same, and no logit is NaN
  const auto is_top = [&](int64_t i) FASTSAL_LAMBDA { return score(i) == top; };
  const bool right = own == top && first_match(label, is_top) == label;
  const bool nan = total != total && any_nan<T>(classes, score);
  const T loss = cross_entropy_loss(total, own, top);
  return {loss, right && !nan, is_over(loss, cut)};
}

}  // namespace fastsal
