// What the bodies of the losses share: labels, and one instantiation per dtype of the logits.
#pragma once

#include "../rows/losses.h"
#include "bodies.h"
#include "operands.h"
#include "tiers.h"

namespace fastsal {

inline bool labels_within(const int64_t* labels, int64_t count, int64_t classes) {
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

// A padding slot: no gradient.
template <class Z>
FASTSAL_ROW void store_zeros(Z* row, int64_t classes) {
  using T = typename LossOf<Z>::Type;
  for (int64_t i = 0; i < classes; ++i) store(&row[i], T(0));
}

}  // namespace fastsal
