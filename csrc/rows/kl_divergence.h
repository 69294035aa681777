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

// The same for `count` <= 16 rows of at most 16 classes, each row in a lane of its own, as in
// truncated_cross_entropy.h. `samples[j]`: the clean row of row j; negative for padding, whose results mean nothing.
template <bool both, class T, class Z, class G>
FASTSAL_ROW void kl_short_rows(Z clean, const int64_t* samples, Z adv, G adv_grad, G clean_grad, int64_t count,
                               int64_t classes, T* loss) {
  T z[kLanes][kLanes], w[kLanes][kLanes], terms[kLanes][kLanes], adv_terms[kLanes][kLanes], sums[kLanes][kLanes];
  T top[kLanes], adv_top[kLanes], total[kLanes], adv_total[kLanes], shift[kLanes], losses[kLanes];
  const auto fold_classes = [&](T* out) FASTSAL_LAMBDA {
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t c = 0; c < width && c + width < classes; ++c)
        for (int64_t j = 0; j < kLanes; ++j) sums[c][j] += sums[c + width][j];
    for (int64_t j = 0; j < kLanes; ++j) out[j] = sums[0][j];
  };
  for (int64_t j = 0; j < kLanes; ++j) {
    const int64_t row = j < count ? j : 0;
    const bool real = samples[row] >= 0;
    for (int64_t c = 0; c < classes; ++c) {
      z[c][j] = real ? T(value(clean[samples[row] * classes + c])) : T(0);
      w[c][j] = T(value(adv[row * classes + c]));
    }
  }
  for (int64_t j = 0; j < kLanes; ++j) top[j] = z[0][j], adv_top[j] = w[0][j];
  for (int64_t c = 1; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) {
      top[j] = z[c][j] > top[j] ? z[c][j] : top[j];
      adv_top[j] = w[c][j] > adv_top[j] ? w[c][j] : adv_top[j];
    }
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) sums[c][j] = adv_terms[c][j] = softmax_term(w[c][j], adv_top[j]);
  fold_classes(adv_total);
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) sums[c][j] = terms[c][j] = softmax_term(z[c][j], top[j]);
  fold_classes(total);
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) sums[c][j] = kl_term(terms[c][j], z[c][j], top[j], w[c][j], adv_top[j]);
  fold_classes(losses);
  for (int64_t j = 0; j < kLanes; ++j) {
    shift[j] = kl_shift(total[j], adv_total[j]);
    losses[j] = kl_loss(losses[j], total[j], shift[j]);
  }
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) {
      sums[c][j] = kl_adv_slope(terms[c][j], total[j], adv_terms[c][j], adv_total[j]);
      if (both)
        z[c][j] = kl_clean_slope(terms[c][j], total[j], z[c][j], top[j], w[c][j], adv_top[j], shift[j], losses[j]);
    }
  for (int64_t j = 0; j < count; ++j) {
    loss[j] = losses[j];
    for (int64_t c = 0; c < classes; ++c) {
      store(&adv_grad[j * classes + c], sums[c][j]);
      if (both) store(&clean_grad[j * classes + c], z[c][j]);
    }
  }
}

}  // namespace fastsal
