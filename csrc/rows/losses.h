// Per-row losses and their gradients with respect to the logits, with the flags that the attack asks for.
#pragma once

#include <cmath>

#include "maths.h"
#include "pgd_step.h"

namespace fastsal {

template <class T>
struct Largest {
  T value;
  int64_t index;  // the lowest index among the largest; NaN counts as larger than anything
};

// The largest of score(0..size-1), in 16 lanes; NaN wins.
template <class T, class Score>
FASTSAL_ROW Largest<T> largest_of(int64_t size, Score score) {
  T best[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) best[l] = -std::numeric_limits<T>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      const T s = score(i + l);
      best[l] = s > best[l] || s != s ? s : best[l];  // nothing is > NaN: once in, it stays
    }
  T top = -std::numeric_limits<T>::infinity();
  bool nan = false;
  for (; i < size; ++i) {
    const T s = score(i);
    nan |= s != s;
    top = s > top ? s : top;
  }
  for (int64_t l = 0; l < kLanes; ++l) {
    nan |= best[l] != best[l];
    top = best[l] > top ? best[l] : top;
  }
  int64_t index = 0;
  if (nan) {
    while (score(index) == score(index)) ++index;
    return {std::numeric_limits<T>::quiet_NaN(), index};
  }
  while (index < size && score(index) != top) ++index;
  return {top, index < size ? index : 0};
}

template <class T>
struct CrossEntropy {
  T loss;
  bool right, over;
};

// CE = log sum exp(z - z_max) - (z_y - z_max); gradient softmax(z) - onehot(y)
template <class T, class Z, class G>
FASTSAL_ROW CrossEntropy<T> cross_entropy_row(Z logits, G grad, int64_t classes, int64_t label, T cut) {
  const Largest<T> top = largest_of<T>(classes, [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); });
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= classes; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += exp_nonpositive(T(value(logits[i + l])) - top.value);
  for (int64_t l = 0; i + l < classes; ++l) lanes[l] += exp_nonpositive(T(value(logits[i + l])) - top.value);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  const T total = lanes[0];
  const T loss = T(log_positive(double(total))) - (T(value(logits[label])) - top.value);
  for (int64_t j = 0; j < classes; ++j) {
    const T p = exp_nonpositive(T(value(logits[j])) - top.value) / total;
    store(&grad[j], p);
  }
  const T own = exp_nonpositive(T(value(logits[label])) - top.value) / total;
  store(&grad[label], own - T(1));
  return {loss, top.value == top.value && top.index == label, !(loss <= cut)};
}

// z_other - z_label; other < 0 asks for the best class besides the label
template <class T, class Z, class G>
FASTSAL_ROW T margin_row(Z logits, G grad, int64_t classes, int64_t label, int64_t other) {
  if (other < 0) {
    const Largest<T> rival = largest_of<T>(classes, [&](int64_t i) FASTSAL_LAMBDA {
      return i == label ? -std::numeric_limits<T>::infinity() : T(value(logits[i]));
    });
    other = rival.value == -std::numeric_limits<T>::infinity() ? (label == 0 ? 1 : 0) : rival.index;
  }
  for (int64_t i = 0; i < classes; ++i) store(&grad[i], T(0));
  store(&grad[other], T(1));
  store(&grad[label], T(-1));
  return T(value(logits[other])) - T(value(logits[label]));
}

}  // namespace fastsal
