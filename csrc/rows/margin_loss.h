// The margin of one row on a CPU, and its gradient.
#pragma once

#include "largest.h"
#include "losses.h"

namespace fastsal {

// z_other - z_label; other < 0 asks for the best class besides the label
template <class T, class Z, class G>
FASTSAL_ROW T margin_row(Z logits, G grad, int64_t classes, int64_t label, int64_t other) {
  constexpr T lowest = -Limits<T>::infinity;
  if (other < 0) {
    const Largest<T> rival = largest_of<T>(
        classes, [&](int64_t i) FASTSAL_LAMBDA { return i == label ? lowest : T(value(logits[i])); });
    other = rival.value == lowest ? (label == 0 ? 1 : 0) : rival.index;
  }
  for (int64_t i = 0; i < classes; ++i) store(&grad[i], T(0));
  store(&grad[other], margin_slope<T>(other, label, other));
  store(&grad[label], margin_slope<T>(label, label, other));
  return T(value(logits[other])) - T(value(logits[label]));
}

}  // namespace fastsal
