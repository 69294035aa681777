// The largest numbers of a row and where they stand: the lowest index first among equals.
#pragma once

#include "lanes.h"

namespace fastsal {

// The largest of score(0..size-1) that is a number; -inf where there is none.
template <class T, class Score>
FASTSAL_ROW T largest_number(int64_t size, Score score) {
  T best[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) best[l] = -Limits<T>::infinity;
  for_blocks(size, T(-Limits<T>::infinity), score, [&](const T* block, int64_t, int64_t) FASTSAL_LAMBDA {
    for (int64_t l = 0; l < kLanes; ++l) best[l] = block[l] > best[l] ? block[l] : best[l];
  });
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) best[l] = best[l + width] > best[l] ? best[l + width] : best[l];
  return best[0];
}

// The lowest index below size of which `match` is true; size where there is none.
template <class Match>
FASTSAL_ROW int64_t first_match(int64_t size, Match match) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    uint32_t hits = 0;
    for (int64_t l = 0; l < kLanes; ++l) hits |= uint32_t(match(i + l));
    if (hits) break;
  }
  while (i < size && !match(i)) ++i;
  return i;
}

template <class T, class Score>
FASTSAL_ROW bool any_nan(int64_t size, Score score) {
  uint32_t found = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T s = score(i);
    found |= uint32_t(s != s);
  }
  return found != 0;
}

// The `count` largest numbers in order. None of the scores is NaN, and there are `count` of them at least.
template <class T, int64_t count>
struct Ranking {
  T value[count];
  int64_t index[count];
};
template <class T, int64_t count, class Score>
FASTSAL_ROW Ranking<T, count> ranking_of(int64_t size, Score score) {
  T best[count][kLanes];
  for (int64_t r = 0; r < count; ++r)
    for (int64_t l = 0; l < kLanes; ++l) best[r][l] = -Limits<T>::infinity;
  for_blocks(size, T(-Limits<T>::infinity), score, [&](const T* block, int64_t, int64_t) FASTSAL_LAMBDA {
    for (int64_t l = 0; l < kLanes; ++l) {
      T s = block[l];
      for (int64_t r = 0; r < count; ++r) {
        const T had = best[r][l];
        best[r][l] = s > had ? s : had;
        s = s > had ? had : s;
      }
    }
  });
  Ranking<T, count> top;
  for (int64_t r = 0; r < count; ++r) top.value[r] = -Limits<T>::infinity;
  for (int64_t from = 0; from < count; ++from)
    for (int64_t l = 0; l < kLanes; ++l) {
      T s = best[from][l];
      for (int64_t r = 0; r < count; ++r) {
        const T had = top.value[r];
        top.value[r] = s > had ? s : had;
        s = s > had ? had : s;
      }
    }
  for (int64_t r = 0; r < count; ++r) {
    const int64_t start = r > 0 && top.value[r] == top.value[r - 1] ? top.index[r - 1] + 1 : 0;
    top.index[r] = start + first_match(size - start, [&](int64_t i) FASTSAL_LAMBDA {
      return score(start + i) == top.value[r];
    });
  }
  return top;
}

}  // namespace fastsal
