// The margin of one row on a CPU, plain or divided as in DLR, and its gradient.
#pragma once

#include "largest.h"
#include "losses.h"

namespace fastsal {

// The best class besides the label, the lowest index first; NaN counts as larger than anything.
template <class T, class Score>
FASTSAL_ROW int64_t rival_of(int64_t classes, int64_t label, Score score) {
  const int64_t after = label + 1;
  const auto later = [&](int64_t i) FASTSAL_LAMBDA { return score(after + i); };
  const Largest<T> below = largest_of<T>(label, score), above = largest_of<T>(classes - after, later);
  const T top = above.value > below.value ? above.value : below.value;
  const bool nan = below.nan || above.nan;
  const auto wanted = [&](T s) FASTSAL_LAMBDA { return nan ? s != s : s == top; };
  const int64_t first = first_match(label, [&](int64_t i) FASTSAL_LAMBDA { return wanted(score(i)); });
  if (first < label) return first;
  return after + first_match(classes - after, [&](int64_t i) FASTSAL_LAMBDA { return wanted(later(i)); });
}

// z_other - z_label; other < 0 asks for the best class besides the label
template <class T, class Z, class G>
FASTSAL_ROW T margin_row(Z logits, G grad, int64_t classes, int64_t label, int64_t other) {
  const auto score = [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); };
  if (other < 0) other = rival_of<T>(classes, label, score);
  for (int64_t i = 0; i < classes; ++i) store(&grad[i], T(0));
  store(&grad[other], margin_slope<T>(other, label, other));
  store(&grad[label], margin_slope<T>(label, label, other));
  return score(other) - score(label);
}

// The margin over the spread of the largest logits; a given `other` is the target that the attack wants.
template <class T, class Z, class G>
FASTSAL_ROW T dlr_row(Z logits, G grad, int64_t classes, int64_t label, int64_t other) {
  const auto score = [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); };
  const bool targeted = other >= 0;
  if (largest_of<T>(classes, score).nan) {
    for (int64_t i = 0; i < classes; ++i) store(&grad[i], T(Limits<T>::nan));
    return Limits<T>::nan;
  }
  Ranking<T, 4> top;
  if (targeted) {
    top = ranking_of<T, 4>(classes, score);
  } else {
    const Ranking<T, 3> three = ranking_of<T, 3>(classes, score);
    for (int64_t r = 0; r < 3; ++r) top.value[r] = three.value[r], top.index[r] = three.index[r];
    other = top.index[0] == label ? top.index[1] : top.index[0];
  }
  const T spread = targeted ? dlr_targeted_spread(top.value[0], top.value[2], top.value[3])
                            : dlr_spread(top.value[0], top.value[2]);
  const T loss = (score(other) - score(label)) / spread;
  const auto slope = [&](int64_t i) FASTSAL_LAMBDA {
    const T of_spread = targeted ? dlr_targeted_spread_slope<T>(i, top.index[0], top.index[2], top.index[3])
                                 : dlr_spread_slope<T>(i, top.index[0], top.index[2]);
    return dlr_slope(margin_slope<T>(i, label, other), loss, of_spread, spread);
  };
  const T rest = dlr_slope(T(0), loss, T(0), spread);  // NaN where the margin is not finite
  for (int64_t i = 0; i < classes; ++i) store(&grad[i], rest);
  const int64_t moved[] = {label, other, top.index[0], top.index[2], targeted ? top.index[3] : label};
  for (const int64_t i : moved) store(&grad[i], slope(i));
  return loss;
}

}  // namespace fastsal
