// The largest numbers of a row and where they stand: the lowest index first among equals.
#pragma once

#include "lanes.h"

namespace fastsal {

template <class T>
struct Largest {
  T value;   // -inf where there is nothing; not to be used where there is a NaN
  bool nan;
};

template <class T, class Score>
FASTSAL_ROW Largest<T> largest_of(int64_t size, Score score) {
  using Mask = typename Bits<T>::Unsigned;
  constexpr int64_t stride = 4 * kLanes;  // four blocks at a time: the lanes are touched a quarter as often
  T best[kLanes];
  Mask nan[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) best[l] = -Limits<T>::infinity, nan[l] = 0;
  int64_t i = 0;
  for (; i + stride <= size; i += stride)
    for (int64_t l = 0; l < kLanes; ++l) {
      const T a = score(i + l), b = score(i + kLanes + l), c = score(i + 2 * kLanes + l), d = score(i + 3 * kLanes + l);
      const T ab = a > b ? a : b, cd = c > d ? c : d, abcd = ab > cd ? ab : cd;
      best[l] = abcd > best[l] ? abcd : best[l];
      nan[l] |= Mask(!(a == a)) | Mask(!(b == b)) | Mask(!(c == c)) | Mask(!(d == d));
    }
  for_blocks(size - i, T(-Limits<T>::infinity), Shifted<Score>{score, i}, [&](auto block, int64_t, int64_t) FASTSAL_LAMBDA {
    for (int64_t l = 0; l < kLanes; ++l) {
      best[l] = block(l) > best[l] ? block(l) : best[l];
      nan[l] |= Mask(!(block(l) == block(l)));
    }
  });
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) {
      best[l] = best[l + width] > best[l] ? best[l + width] : best[l];
      nan[l] |= nan[l + width];
    }
  return {best[0], nan[0] != 0};
}

// The lowest index below size of which `match` is true; size where there is none.
template <class Match>
FASTSAL_ROW int64_t first_match(int64_t size, Match match) {
  constexpr int64_t stride = 8 * kLanes;  // how many are looked at before the first branch
  int64_t i = 0;
  for (; i + stride <= size; i += stride) {
    uint32_t hits = 0;
    for (int64_t l = 0; l < stride; ++l) hits |= uint32_t(match(i + l));
    if (hits) break;
  }
  while (i < size && !match(i)) ++i;
  return i;
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
  for_blocks(size, T(-Limits<T>::infinity), score, [&](auto block, int64_t, int64_t) FASTSAL_LAMBDA {
    for (int64_t l = 0; l < kLanes; ++l) {
      T s = block(l);
      for (int64_t r = 0; r < count; ++r) {
        const T had = best[r][l];
        best[r][l] = s > had ? s : had;
        s = s > had ? had : s;
      }
    }
  });
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t from = 0; from < count; ++from)
      for (int64_t l = 0; l < width; ++l) {
        T s = best[from][l + width];
        for (int64_t r = 0; r < count; ++r) {
          const T had = best[r][l];
          best[r][l] = s > had ? s : had;
          s = s > had ? had : s;
        }
      }
  Ranking<T, count> top;
  for (int64_t r = 0; r < count; ++r) top.value[r] = best[r][0];
  for (int64_t r = 0; r < count; ++r) {
    const int64_t start = r > 0 && top.value[r] == top.value[r - 1] ? top.index[r - 1] + 1 : 0;
    top.index[r] = start + first_match(size - start, [&](int64_t i) FASTSAL_LAMBDA {
      return score(start + i) == top.value[r];
    });
  }
  return top;
}

}  // namespace fastsal
