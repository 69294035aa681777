// The largest of a row and where it stands.
#pragma once

#include "lanes.h"

namespace fastsal {

template <class T>
struct Largest {
  T value;
  int64_t index;  // the lowest index among the largest; NaN counts as larger than anything
};

// The largest of score(0..size-1), in 16 lanes; NaN wins.
template <class T, class Score>
FASTSAL_ROW Largest<T> largest_of(int64_t size, Score score) {
  constexpr T lowest = -Limits<T>::infinity;
  T best[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) best[l] = lowest;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      const T s = score(i + l);
      best[l] = s > best[l] || s != s ? s : best[l];  // nothing is > NaN: once in, it stays
    }
  T top = lowest;
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
    return {T(Limits<T>::nan), index};
  }
  while (index < size && score(index) != top) ++index;
  return {top, index < size ? index : 0};
}

}  // namespace fastsal
