// One PGD step in L1: steepest ascent on the largest gradients, then the exact projection onto ball and box (Croce &
// Hein 2021). First what every backend shares: one element, and the two searches that a row needs; then a CPU's loops.
#pragma once

#include <math.h>

#include <utility>

#include "pgd_step.h"

namespace fastsal {

// |g| as an integer: finite magnitudes and their keys have one order.
FASTSAL_ROW uint32_t magnitude_key(float g) { return bits_of<uint32_t>(g) & 0x7fffffffu; }
FASTSAL_ROW uint64_t magnitude_key(double g) { return bits_of<uint64_t>(g) & 0x7fffffffffffffffull; }

// Finds the topk-th largest key of a row by bisection: count how many keys are >= probe(), report, until done().
// Then `low` is that key, and no more than topk keys are larger; if `whole`, exactly topk keys are >= low.
template <class Key>
struct KeySearch {
  Key low, high;  // at least topk keys are >= low, fewer are >= high
  bool whole;
  FASTSAL_ROW explicit KeySearch(Key largest) : low(0), high(largest + 1), whole(false) {}
  FASTSAL_ROW bool done() const { return whole || high - low <= 1; }
  FASTSAL_ROW Key probe() const { return low + (high - low) / 2; }
  FASTSAL_ROW void report(Key at, int64_t count, int64_t topk) {
    if (count >= topk)
      low = at;
    else
      high = at;
    whole = count == topk;
  }
};

// Which elements an L1 step moves: those above the threshold, and those on it up to a row-major index.
template <class Key>
struct L1Choice {
  Key threshold;
  int64_t last;    // -1: none of those on the threshold
  int64_t moving;  // how many in all
  FASTSAL_ROW bool moves(Key key, int64_t index) const {
    return key > threshold || (key == threshold && index <= last);
  }
};

// here - clean, and for an element that moves its share of the step, towards the sign of g.
template <class T, class V>
FASTSAL_ROW double l1_displacement(T clean, T here, V g, bool moves, double share) {
  const double rest = displacement_at_rest(clean, here);
  return moves ? rest + (g > 0 ? share : -share) : rest;
}

// How far an element can go before it leaves the box, on the side of its displacement.
template <class T>
FASTSAL_ROW double l1_room(T clean, double delta, T low, T high) {
  const double room = delta > 0 ? double(high) - double(clean) : double(clean) - double(low);
  return room > 0 ? room : 0;
}

// min(max(magnitude - shrink, 0), room); NaN keeps nothing
FASTSAL_ROW double l1_kept(double magnitude, double shrink, double room) {
  double kept = magnitude - shrink;
  kept = kept > 0 ? kept : 0;
  return kept < room ? kept : room;
}

// Whether more shrinking than this shortens the element.
FASTSAL_ROW bool l1_falls(double magnitude, double shrink, double room) {
  return magnitude > shrink && magnitude - shrink <= room;
}

template <class T>
FASTSAL_ROW T l1_point(T clean, double delta, double kept, T low, T high) {
  return project_point(clean, delta > 0 ? kept : -kept, low, high);
}

// Finds the least shrink >= 0 at which mass(shrink), the sum of l1_kept over a row, is at most `limit` (to 2^-30 of
// it): compute the mass at `probe` and how many elements fall there, report, until `done`; the answer is `probe`, and
// the mass reported for it was at most `limit`. The mass is piecewise linear and falls, neither convex nor concave.
// Newton's step from below lands on the limit once the bracket is linear; where it leads too far, chord and midpoint.
struct ShrinkSearch {
  double limit, aim, below, above, mass_below, mass_above, falling_below, probe;  // mass(below) > limit >= mass(above)
  int passes;
  bool done, overshot;

  // `largest`: of the magnitudes, so that nothing is kept there
  FASTSAL_ROW ShrinkSearch(double limit_, double largest)
      : limit(limit_), aim(limit_ * (1 - 0x1p-32)), below(0), above(largest), mass_below(0), mass_above(0),
        falling_below(0), probe(0), passes(0), done(false), overshot(false) {}

  FASTSAL_ROW void report(double mass, double falling) {
    const bool inside = mass <= limit;  // an overflow or a NaN is not
    if (inside && (passes == 0 || limit - mass <= limit * 0x1p-30)) {
      done = true;
      return;
    }
    if (inside) {
      above = probe;
      mass_above = mass;
    } else {
      below = probe;
      mass_below = mass;
      falling_below = falling;
    }
    overshot = inside;
    ++passes;
    probe = next_probe();
    done = probe == above;
  }

 private:
  FASTSAL_ROW bool within(double v) const { return v > below && v < above; }
  FASTSAL_ROW double next_probe() const {
    if (limit == 0) return above;
    if (passes < 60) {
      const double newton = below + (mass_below - aim) / falling_below;
      const double chord = below + (mass_below - aim) * ((above - below) / (mass_below - mass_above));
      const double next = overshot ? chord : newton;
      if (passes % 8 != 7 && within(next)) return next;
      const double middle = below + (above - below) / 2;
      if (within(middle)) return middle;
    }
    // halving the number of floats in between ends at two neighbours, whatever the magnitudes
    const uint64_t least = bits_of<uint64_t>(below), most = bits_of<uint64_t>(above);
    return most - least > 1 ? bits_of<double>(least + (most - least) / 2) : above;
  }
};

// ------------------------------------------------------------------------------------------- rows on a CPU

template <class G>
struct GradientKeys {
  using Key = decltype(magnitude_key(value(std::declval<G>()[0])));
  G grad;
  int64_t size;

  FASTSAL_ROW Key at(int64_t i) const { return magnitude_key(value(grad[i])); }

  // The largest key, by which a gradient that is not finite shows too.
  FASTSAL_ROW Key largest() const {
    Key most = 0;
    for (int64_t i = 0; i < size; ++i) {
      const Key key = at(i);
      most = key > most ? key : most;
    }
    return most;
  }
  FASTSAL_ROW int64_t count_from(Key probe) const {
    constexpr int64_t block = int64_t(1) << 30;  // lanes as narrow as a key do not overflow
    int64_t count = 0;
    for (int64_t first = 0; first < size; first += block) {
      const int64_t end = first + block < size ? first + block : size;
      Key lanes = 0;
      for (int64_t i = first; i < end; ++i) lanes += Key(at(i) >= probe);
      count += int64_t(lanes);
    }
    return count;
  }
};

// `offset(i)`: where the element with row-major index i lies in memory.
template <class G, class Offset>
FASTSAL_ROW auto l1_choose(GradientKeys<G> keys, typename GradientKeys<G>::Key largest, int64_t topk, Offset offset)
    -> L1Choice<typename GradientKeys<G>::Key> {
  using Key = typename GradientKeys<G>::Key;
  KeySearch<Key> search(largest);
  while (!search.done()) {
    const Key probe = search.probe();
    search.report(probe, keys.count_from(probe), topk);
  }
  L1Choice<Key> choice{search.low, keys.size, topk};
  if (search.low == 0) {  // fewer than topk gradients are not zero, and zeros move nothing
    choice.last = -1;
    choice.moving = keys.count_from(1);
  } else if (!search.whole) {  // more on the threshold than there is room for: the first of them
    int64_t tied = topk - keys.count_from(search.low + 1);
    for (choice.last = -1; tied > 0; ++choice.last) tied -= keys.at(offset(choice.last + 1)) == search.low;
  }
  return choice;
}

// The elements that are not where they should stay, one after the other, with zeros up to a multiple of 16.
struct Displaced {
  double *magnitudes, *rooms;
  int64_t count;

  FASTSAL_ROW double largest() const {
    uint64_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t key = magnitude_key(magnitudes[i]);
      most = key > most ? key : most;
    }
    return bits_of<double>(most);
  }
  template <bool compensated>
  FASTSAL_ROW void measure(ShrinkSearch& search) const {
    LaneSum<compensated> kept;
    double falling[kLanes] = {};
    const double shrink = search.probe;
    for (int64_t i = 0; i < count; i += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) {
        const double magnitude = magnitudes[i + l], room = rooms[i + l];
        kept.add(l, l1_kept(magnitude, shrink, room));
        falling[l] += l1_falls(magnitude, shrink, room) ? 1.0 : 0.0;
      }
    search.report(kept.total(), fold(falling));
  }
};

// The row scratch that l1_step_row needs, in doubles.
FASTSAL_ROW int64_t l1_scratch(int64_t size) { return 3 * size + 2 * kLanes; }

// x_adv + alpha shared by the topk largest gradients, then the closest point of ball and box. `offset(i)` and
// `logical(i)` translate a row-major index to one in memory and back.
template <class T, class X, class A, class G, class O, class Box, class Offset, class Logical>
FASTSAL_ROW StepFlags l1_step_row(X x, A x_adv, G grad, O next, int64_t size, T eps, T alpha, int64_t topk, Box box,
                                  double* scratch, Offset offset, Logical logical) {
  const GradientKeys<G> keys{grad, size};
  using Key = typename GradientKeys<G>::Key;
  const Key largest = keys.largest();
  const bool finite = largest < (sizeof(Key) == 8 ? Key(0x7ff0000000000000ull) : Key(0x7f800000u));
  double* delta = scratch;
  if (finite) {
    const L1Choice<Key> choice = l1_choose(keys, largest, topk, offset);
    const double share = double(alpha) / double(choice.moving);  // where nothing moves, nobody takes it
    if (choice.last < 0 || choice.last >= size) {  // no index to look at
      const Key least = choice.last < 0 ? choice.threshold + 1 : choice.threshold;
      for (int64_t i = 0; i < size; ++i)
        delta[i] = l1_displacement(T(x[i]), T(x_adv[i]), value(grad[i]), keys.at(i) >= least, share);
    } else {
      for (int64_t i = 0; i < size; ++i)
        delta[i] =
            l1_displacement(T(x[i]), T(x_adv[i]), value(grad[i]), choice.moves(keys.at(i), logical(i)), share);
    }
  } else {
    for (int64_t i = 0; i < size; ++i) delta[i] = displacement_at_rest(T(x[i]), T(x_adv[i]));
  }
  using Mask = typename Bits<T>::Unsigned;
  Mask outside = 0;
  Displaced displaced{scratch + size, scratch + 2 * size + kLanes, 0};
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    outside |= Mask(outside_box(clean, low, high));
    displaced.magnitudes[displaced.count] = fabs(delta[i]);
    displaced.rooms[displaced.count] = l1_room(clean, delta[i], low, high);
    displaced.count += fabs(delta[i]) > 0;
  }
  for (; displaced.count % kLanes != 0; ++displaced.count)
    displaced.magnitudes[displaced.count] = displaced.rooms[displaced.count] = 0;
  ShrinkSearch search(inner_radius(eps), displaced.largest());
  while (!search.done) displaced.template measure<sizeof(T) == 8>(search);
  for (int64_t i = 0; i < size; ++i) {
    const T clean = x[i], low = box.low(i), high = box.high(i);
    const double kept = l1_kept(fabs(delta[i]), search.probe, l1_room(clean, delta[i], low, high));
    next[i] = l1_point(clean, delta[i], kept, low, high);
  }
  return {!finite, outside != 0};
}

}  // namespace fastsal
