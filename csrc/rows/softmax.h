// Softmax terms of a row on a CPU. Where a gradient has the type of the arithmetic, its memory holds the terms until
// their sum is known, so that no exponential is computed twice.
#pragma once

#include <type_traits>
#include <utility>

#include "lanes.h"
#include "losses.h"

namespace fastsal {

template <class T, class Z>
constexpr bool kHoldsTerms = std::is_same<T, std::decay_t<decltype(std::declval<Z>()[0])>>::value;

template <class T, class G>
FASTSAL_ROW void store_block(G grad, int64_t first, int64_t count, const T* block) {
  for (int64_t l = 0; l < count; ++l) store(&grad[first + l], block[l]);
}

// The sum of the softmax terms.
template <class T, class Z, class G>
FASTSAL_ROW T softmax_total(Z logits, G grad, int64_t classes, T top) {
  T lanes[kLanes] = {};
  const auto score = [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); };
  for_blocks(classes, T(-Limits<T>::infinity), score, [&](auto z, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T terms[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      terms[l] = softmax_term(z(l), top);
      lanes[l] += terms[l];
    }
    if (kHoldsTerms<T, Z>) store_block(grad, i, count, terms);
  });
  return fold(lanes);
}

// The term of class i: held in the gradient since softmax_total, or computed again.
template <class T, class Z, class G>
FASTSAL_ROW T softmax_term_of(Z logits, G grad, int64_t i, T top) {
  if constexpr (kHoldsTerms<T, Z>)
    return grad[i];
  else
    return softmax_term(T(value(logits[i])), top);
}

}  // namespace fastsal
