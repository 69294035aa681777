// The losses, element by element. The loops over a row stand in truncated_cross_entropy.h, margin_loss.h and
// kl_divergence.h. `top` is the largest logit of a row, `total` the sum of its softmax terms.
#pragma once

#include "maths.h"

namespace fastsal {

template <class Z>
struct LossOf {
  using Type = float;
};
template <>
struct LossOf<double> {
  using Type = double;
};

// exp(z - top), one term of the sum under a softmax
template <class T>
FASTSAL_ROW T softmax_term(T z, T top) {
  return exp_nonpositive(z - top);
}

// ------------------------------------------------------------------------------------ cross-entropy

// log sum exp(z - top) - (z_y - top)
template <class T>
FASTSAL_ROW T cross_entropy_loss(T total, T own_z, T top) {
  return T(log_positive(double(total))) - (own_z - top);
}
// softmax(z) - onehot(y)
template <class T>
FASTSAL_ROW T cross_entropy_slope(T term, T total, bool own) {
  const T p = term / total;
  return own ? p - T(1) : p;
}
// The same where a row on a CPU divides once, for `inverse` = 1 / total: total is between 1 and the number of classes.
template <class T>
FASTSAL_ROW T cross_entropy_slope_by(T term, T inverse, bool own) {
  const T p = term * inverse;
  return own ? p - T(1) : p;
}
// NaN is over every cut.
template <class T>
FASTSAL_ROW bool is_over(T loss, T cut) {
  return !(loss <= cut);
}

// ------------------------------------------------------------------------------------- margin, DLR

// d (z_other - z_label) / dz_i; an index has the type that the caller keeps it in
template <class T, class Index>
FASTSAL_ROW T margin_slope(Index i, Index label, Index other) {
  return T(i == other) - T(i == label);
}

// What DLR divides by: z_1 - z_3 of the sorted logits, or z_1 - (z_3 + z_4) / 2 when a target is given, and a floor.
template <class T>
FASTSAL_ROW T dlr_spread(T first, T third) {
  return first - third + T(1e-12);
}
template <class T>
FASTSAL_ROW T dlr_targeted_spread(T first, T third, T fourth) {
  return first - (third + fourth) / 2 + T(1e-12);
}
// Their derivatives by z_i; the indices are those of the sorted logits, the lowest first among equals.
template <class T, class Index>
FASTSAL_ROW T dlr_spread_slope(Index i, Index first, Index third) {
  return T(i == first) - T(i == third);
}
template <class T, class Index>
FASTSAL_ROW T dlr_targeted_spread_slope(Index i, Index first, Index third, Index fourth) {
  return T(i == first) - (T(i == third) + T(i == fourth)) / 2;
}
// d (margin / spread) / dz_i, where `loss` is that quotient
template <class T>
FASTSAL_ROW T dlr_slope(T margin_slope, T loss, T spread_slope, T spread) {
  return (margin_slope - loss * spread_slope) / spread;
}

// ------------------------------------------------------------------- KL(p_clean || p_adv), p = softmax

// One term of sum p (log p - log q), before the division by the clean total and the shift of kl_shift. A class without
// probability adds nothing.
template <class T>
FASTSAL_ROW T kl_term(T clean_term, T clean_z, T clean_top, T adv_z, T adv_top) {
  return clean_term == T(0) ? T(0) : clean_term * ((clean_z - clean_top) - (adv_z - adv_top));
}
// log of the adversarial total minus log of the clean one
template <class T>
FASTSAL_ROW T kl_shift(T clean_total, T adv_total) {
  return T(log_positive(double(adv_total)) - log_positive(double(clean_total)));
}
template <class T>
FASTSAL_ROW T kl_loss(T terms, T clean_total, T shift) {
  return terms / clean_total + shift;
}
// softmax(adv) - softmax(clean)
template <class T>
FASTSAL_ROW T kl_adv_slope(T clean_term, T clean_total, T adv_term, T adv_total) {
  return adv_term / adv_total - clean_term / clean_total;
}
// p (log p - log q - KL)
template <class T>
FASTSAL_ROW T kl_clean_slope(T clean_term, T clean_total, T clean_z, T clean_top, T adv_z, T adv_top, T shift, T loss) {
  const T p = clean_term / clean_total;
  const T ratio = p == T(0) ? T(0) : ((clean_z - clean_top) - (adv_z - adv_top)) + shift;
  return p * (ratio - loss);
}

}  // namespace fastsal
