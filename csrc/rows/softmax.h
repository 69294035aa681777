// Softmax terms of a row on a CPU. Where a gradient has the type of the arithmetic, its memory holds the terms until
// their sum is known, so that no exponential is computed twice.
#pragma once

#include <type_traits>
#include <utility>

#include "largest.h"
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

// Asks for memory that is soon to be used; any address will do.
template <bool written, class T>
FASTSAL_ROW void ask_for(T* at, int64_t offset) {
#if defined(__GNUC__)
  __builtin_prefetch(at + offset, written);
#endif
}
template <bool written, class Pointer>
FASTSAL_ROW void ask_for(const Pointer&, int64_t) {}

// Terms of a row that is too long for the nearest cache, held in the gradient like those above, but relative to the
// largest logit up to the end of their block: so a block is searched, and its terms computed, while it is near. The next
// block is asked for meanwhile; by itself the memory would rest while exponentials are computed.
template <class T>
struct SoftmaxBlocks {
  static constexpr int64_t kBlock = 2048, kMost = 64;
  T top, total;
  T tops[kMost];  // one for each block

  static FASTSAL_ROW bool worthwhile(int64_t classes) { return classes > 2 * kBlock && classes <= kMost * kBlock; }

  // `total` is NaN where a logit is NaN or infinite in a way that needs care; then nothing here counts.
  template <class Z, class G>
  FASTSAL_ROW SoftmaxBlocks(Z logits, G grad, int64_t classes) : top(-Limits<T>::infinity) {
    T lanes[kLanes] = {};
    T* ends = tops;
    for (int64_t first = 0; first < classes; first += kBlock) {
      const int64_t count = first + kBlock < classes ? kBlock : classes - first;
      const auto score = [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[first + i])); };
      const T larger = largest_of<T>(count, score).value;
      if (larger > top) {
        const T smaller = softmax_term(top, larger);
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] *= smaller;
        top = larger;
      }
      *ends++ = top;
      const T shift = top;
      for_blocks(count, T(-Limits<T>::infinity), score, [&](auto z, int64_t i, int64_t some) FASTSAL_LAMBDA {
        ask_for<false>(logits, first + kBlock + i);
        ask_for<true>(grad, first + kBlock + i);
        T terms[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
          terms[l] = softmax_term(z(l), shift);
          lanes[l] += terms[l];
        }
        store_block(grad, first + i, some, terms);
      });
    }
    total = fold(lanes);
  }

  // Turns the held terms into probabilities.
  template <class G>
  FASTSAL_ROW void normalize(G grad, int64_t classes) const {
    const T inverse = 1 / total;
    const T* ends = tops;
    for (int64_t first = 0; first < classes; first += kBlock) {
      const int64_t end = first + kBlock < classes ? first + kBlock : classes;
      const T scale = softmax_term(*ends++, top) * inverse;
      for (int64_t i = first; i < end; ++i) store(&grad[i], T(grad[i]) * scale);
    }
  }
};

}  // namespace fastsal
