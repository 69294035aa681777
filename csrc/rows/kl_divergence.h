// KL(p_clean || p_adv) of one row on a CPU, and its gradients with respect to both.
#pragma once

#include "largest.h"
#include "softmax.h"

namespace fastsal {

// `both`: there is memory for the gradient with respect to the clean logits
template <bool both, class T, class Z, class G>
FASTSAL_ROW T kl_row(Z clean, Z adv, G adv_grad, G clean_grad, int64_t classes) {
  constexpr bool held = both && kHoldsTerms<T, Z>;
  const auto clean_z = [&](int64_t i) FASTSAL_LAMBDA { return T(value(clean[i])); };
  const auto adv_z = [&](int64_t i) FASTSAL_LAMBDA { return T(value(adv[i])); };
  const T clean_top = largest_number<T>(classes, clean_z), adv_top = largest_number<T>(classes, adv_z);
  const T adv_total = softmax_total<T>(adv, adv_grad, classes, adv_top);
  const T padding = -Limits<T>::infinity;
  T totals[kLanes] = {}, sums[kLanes] = {};
  for_blocks(classes, padding, clean_z, [&](const T* z, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T terms[kLanes], others[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) others[l] = padding;
    for (int64_t l = 0; l < count; ++l) others[l] = adv_z(i + l);
    for (int64_t l = 0; l < kLanes; ++l) {
      terms[l] = softmax_term(z[l], clean_top);
      totals[l] += terms[l];
      sums[l] += kl_term(terms[l], z[l], clean_top, others[l], adv_top);
    }
    if constexpr (held) store_block(clean_grad, i, count, terms);
  });
  const T clean_total = fold(totals), shift = kl_shift(clean_total, adv_total);
  const T loss = kl_loss(fold(sums), clean_total, shift);
  for_blocks(classes, padding, clean_z, [&](const T* z, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T terms[kLanes], adv_terms[kLanes], others[kLanes], slopes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) terms[l] = adv_terms[l] = 0, others[l] = padding;
    for (int64_t l = 0; l < count; ++l) {
      adv_terms[l] = softmax_term_of<T>(adv, adv_grad, i + l, adv_top);
      if constexpr (held) terms[l] = clean_grad[i + l];
      if (both) others[l] = adv_z(i + l);
    }
    if (!held)
      for (int64_t l = 0; l < kLanes; ++l) terms[l] = softmax_term(z[l], clean_top);
    for (int64_t l = 0; l < kLanes; ++l) slopes[l] = kl_adv_slope(terms[l], clean_total, adv_terms[l], adv_total);
    store_block(adv_grad, i, count, slopes);
    if constexpr (both) {
      for (int64_t l = 0; l < kLanes; ++l)
        slopes[l] = kl_clean_slope(terms[l], clean_total, z[l], clean_top, others[l], adv_top, shift, loss);
      store_block(clean_grad, i, count, slopes);
    }
  });
  return loss;
}

}  // namespace fastsal
