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
  const T clean_top = largest_of<T>(classes, clean_z).value, adv_top = largest_of<T>(classes, adv_z).value;
  const T adv_total = softmax_total<T>(adv, adv_grad, classes, adv_top);
  constexpr T padding = -Limits<T>::infinity;  // of clean: no probability, so that any adversarial logit will do
  T totals[kLanes] = {}, sums[kLanes] = {};
  for_blocks(classes, padding, clean_z, [&](auto z, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T terms[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      terms[l] = softmax_term(z(l), clean_top);
      totals[l] += terms[l];
      sums[l] += kl_term(terms[l], z(l), clean_top, adv_z(i + (l < count ? l : 0)), adv_top);
    }
    if constexpr (held) store_block(clean_grad, i, count, terms);
  });
  const T clean_total = fold(totals), shift = kl_shift(clean_total, adv_total);
  const T loss = kl_loss(fold(sums), clean_total, shift);
  for_blocks(classes, padding, clean_z, [&](auto z, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T slopes[kLanes], clean_slopes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t at = i + (l < count ? l : 0);
      const T adv_term = softmax_term_of<T>(adv, adv_grad, at, adv_top);
      T term;
      if constexpr (held)
        term = clean_grad[at];
      else
        term = softmax_term(z(l), clean_top);
      slopes[l] = kl_adv_slope(term, clean_total, adv_term, adv_total);
      if (both) clean_slopes[l] = kl_clean_slope(term, clean_total, z(l), clean_top, adv_z(at), adv_top, shift, loss);
    }
    store_block(adv_grad, i, count, slopes);
    if constexpr (both) store_block(clean_grad, i, count, clean_slopes);
  });
  return loss;
}

}  // namespace fastsal
