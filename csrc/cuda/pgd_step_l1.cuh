// The L1 step: one launch, a block per row. A row that fits into the registers of a block is read once; of a longer one
// every pass of the two searches reads the gradient, or all three operands, again.
#pragma once

#include "../rows/l1_step.h"
#include "pgd_step_rows.cuh"
#include "squares.cuh"

namespace fastsal {

constexpr unsigned kLongThreads = 1024;

// Room in shared memory for a value that has a constructor.
template <class V>
struct InShared {
  alignas(V) unsigned char bytes[sizeof(V)];
  __device__ __forceinline__ V& value() { return *reinterpret_cast<V*>(bytes); }
};

template <class T, class G>
using KeyOf = decltype(magnitude_key(typename Gradient<G>::Value()));

// A row of at most `turns` turns, in registers: first the signs and the keys of its slopes; then, in place of the keys, its
// points, and which elements move.
template <class T, class G, int turns>
class HeldL1Row {
 public:
  static constexpr int group = kGroup<T>;
  using Point = T;
  using Key = KeyOf<T, G>;
  using Part = StepSegment<T, G>;

  __device__ __forceinline__ HeldL1Row(const PgdStepCall& call, const StepRow& place, int64_t j, bool vector)
      : part_(call, place, j, 0, int(call.size), vector), moved_(0), upwards_(0) {
#pragma unroll
    for (int k = 0; k < turns; ++k) {
      part_.load_slopes(k, held_[k]);
#pragma unroll
      for (int v = 0; v < group; ++v) {
        keys_[k][v] = magnitude_key(held_[k].slope[v]);
        upwards_ |= unsigned(held_[k].slope[v] > 0) << (k * group + v);
        upwards_ = opaque(upwards_);  // else bits wait to be joined, each in a register of its own
      }
    }
  }
  // body(part, k, v, key) for each element of this thread
  template <class Body>
  __device__ __forceinline__ void each_key(Body body) const {
#pragma unroll
    for (int k = 0; k < turns; ++k)
#pragma unroll
      for (int v = 0; v < group; ++v) body(part_, k, v, keys_[k][v]);
  }
  // Ends the time of the keys: moves(part, k, v, key) tells which elements move.
  template <class Moves>
  __device__ __forceinline__ void settle(Moves moves) {
#pragma unroll
    for (int k = 0; k < turns; ++k)
#pragma unroll
      for (int v = 0; v < group; ++v) {
        moved_ |= unsigned(moves(part_, k, v, keys_[k][v])) << (k * group + v);
        moved_ = opaque(moved_);  // as above
      }
#pragma unroll
    for (int k = 0; k < turns; ++k) part_.load_points(k, held_[k]);
  }
  // body(part, k, v, clean, delta) for each element, given what `settle` was; at_turn(part, k) after each group.
  template <class Moves, class Body, class AtTurn>
  __device__ __forceinline__ void each_point(Moves, double share, Body body, AtTurn at_turn) const {
#pragma unroll
    for (int k = 0; k < turns; ++k) {
#pragma unroll
      for (int v = 0; v < group; ++v) {
        const bool moves = (moved_ >> (k * group + v)) & 1, upwards = (upwards_ >> (k * group + v)) & 1;
        const T clean = held_[k].clean[v], here = held_[k].here[v];
        body(part_, k, v, clean, l1_displacement(clean, here, upwards ? 1 : -1, moves, share));
      }
      at_turn(part_, k);
    }
  }

 private:
  static_assert(turns * group <= 32, "a bit for each element of a thread");
  Part part_;
  typename Part::Elements held_[turns];
  Key keys_[turns][group];
  unsigned moved_, upwards_;
};

// A row of any length, segment by segment.
template <class T, class G>
class LongL1Row {
 public:
  static constexpr int group = kGroup<T>;
  using Point = T;
  using Key = KeyOf<T, G>;
  using Part = StepSegment<T, G>;

  __device__ __forceinline__ LongL1Row(const PgdStepCall& call, const StepRow& place, int64_t j, bool vector)
      : call_(call), place_(place), j_(j), vector_(vector) {}
  template <class Body>
  __device__ __forceinline__ void each_key(Body body) const {
    each_part([&](const Part& part) {
      part.each_slope([&](int k, const auto& e) {
#pragma unroll
        for (int v = 0; v < group; ++v) body(part, k, v, magnitude_key(e.slope[v]));
      });
    });
  }
  template <class Moves>
  __device__ __forceinline__ void settle(Moves) {}
  template <class Moves, class Body, class AtTurn>
  __device__ __forceinline__ void each_point(Moves moves, double share, Body body, AtTurn at_turn) const {
    each_part([&](const Part& part) {
      part.each([&](int k, const auto& e) {
#pragma unroll
        for (int v = 0; v < group; ++v)
          body(part, k, v, e.clean[v],
               l1_displacement(e.clean[v], e.here[v], e.slope[v], moves(part, k, v, magnitude_key(e.slope[v])),
                               share));
        at_turn(part, k);
      });
    });
  }

 private:
  template <class Body>
  __device__ __forceinline__ void each_part(Body body) const {
    for (int64_t first = 0; first < call_.size; first += kSegment) {
      const int length = int(first + kSegment < call_.size ? kSegment : call_.size - first);
      body(Part(call_, place_, j_, first, length, vector_));
    }
  }
  const PgdStepCall& call_;
  const StepRow place_;
  const int64_t j_;
  const bool vector_;
};

template <class Row, class Test>
__device__ __forceinline__ int64_t count_keys(const Row& row, Test test) {
  __shared__ int64_t lanes[kWarps];
  unsigned count = 0;  // of one thread
  row.each_key([&](const auto& part, int k, int v, auto key) { count += test(part, k, v, key); });
  return block_sum(int64_t(count), lanes);
}

// As l1_choose (rows/l1_step.h), for a block. Zeros beyond the end of a row are below every probe.
template <class Row, class Key>
__device__ __forceinline__ L1Choice<Key> l1_choose_in_block(const Row& row, const PgdStepCall& call, Key largest) {
  const auto count_from = [&](Key probe) {
    return count_keys(row, [&](const auto&, int, int, Key key) { return key >= probe; });
  };
  __shared__ InShared<KeySearch<Key>> shared;
  KeySearch<Key>& search = shared.value();
  if (threadIdx.x == 0) search = KeySearch<Key>(largest);
  __syncthreads();
  while (!search.done()) {
    const int64_t count = count_from(search.probe());
    if (threadIdx.x == 0) search.report(search.probe(), count, call.topk);
    __syncthreads();
  }
  if (search.low == 0) return {0, -1, count_from(1)};  // fewer than topk are not zero, and zeros move nothing
  if (search.whole) return {search.low, call.size, call.topk};
  // more on the threshold than there is room for: the first of them, up to an index found by bisection
  const RowOrder order(call);
  const int64_t room = call.topk - count_from(search.low + 1);
  int64_t none = -1, enough = call.size - 1;
  while (enough - none > 1) {
    const int64_t probe = none + (enough - none) / 2;
    const int64_t count = count_keys(row, [&](const auto& part, int k, int v, Key key) {
      return key == search.low && order.logical(part.first + part.at(opaque(k), v)) <= probe;
    });
    (count >= room ? enough : none) = probe;
  }
  return {search.low, enough, call.topk};
}

template <class Row>
__device__ __forceinline__ bool l1_step_in_block(const PgdStepCall& call, const StepRow& place, Row& row) {
  using T = typename Row::Point;
  using Key = typename Row::Key;
  __shared__ double lanes[kWarps];
  __shared__ Key key_lanes[kWarps];
  Key largest = 0;
  row.each_key([&](const auto&, int, int, Key key) { largest = key > largest ? key : largest; });
  largest = block_max(largest, key_lanes);
  const bool finite = largest < (sizeof(Key) == 8 ? Key(0x7ff0000000000000ull) : Key(0x7f800000u));
  L1Choice<Key> choice{largest, -1, 0};  // nothing moves
  if (finite) choice = l1_choose_in_block(row, call, largest);
  const double share = double(per_sample<T>(call.alpha, call.alpha_count, place.sample)) /
                       double(choice.moving > 0 ? choice.moving : 1);
  const RowOrder order(call);
  const auto moves = [&](const auto& part, int k, int v, Key key) {
    return key > choice.threshold ||
           (key == choice.threshold && choice.last >= 0 &&
            (choice.last >= call.size || order.logical(part.first + part.at(opaque(k), v)) <= choice.last));
  };
  row.settle(moves);
  double reach = 0;
  const auto nothing = [](const auto&, int) {};
  row.each_point(
      moves, share,
      [&](const auto&, int, int, T, double delta) { reach = fabs(delta) > reach ? fabs(delta) : reach; }, nothing);
  // thread 0 searches for all: the numbers of the search would take eighteen registers of each
  __shared__ InShared<ShrinkSearch> shared;
  ShrinkSearch& search = shared.value();
  reach = block_max(reach, lanes);
  if (threadIdx.x == 0)
    search = ShrinkSearch(inner_radius(per_sample<T>(call.eps, call.eps_count, place.sample)), reach);
  __syncthreads();
  while (!search.done) {
    Sum<sizeof(T) == 8> kept;
    double falling = 0;
    const double shrink = search.probe;
    row.each_point(
        moves, share,
        [&](const auto& part, int k, int v, T clean, double delta) {
          const int i = part.at(opaque(k), v);
          const double room = l1_room(clean, delta, part.box.low(i), part.box.high(i));
          kept.add(l1_kept(fabs(delta), shrink, room));
          falling += double(l1_falls(fabs(delta), shrink, room));
        },
        nothing);
    const double mass = block_sum(kept.sum, lanes);
    falling = block_sum(falling, lanes);
    if (threadIdx.x == 0) search.report(mass, falling);
    __syncthreads();
  }
  const double shrink = search.probe;
  Group<T, Row::group> out;
  row.each_point(
      moves, share,
      [&](const auto& part, int k, int v, T clean, double delta) {
        const int i = part.at(opaque(k), v);
        const T low = part.box.low(i), high = part.box.high(i);
        out.values[v] = l1_point(clean, delta, l1_kept(fabs(delta), shrink, l1_room(clean, delta, low, high)),
                                 low, high);
      },
      [&](const auto& part, int k) { part.save(k, out); });
  return finite;
}

template <class Row>
__device__ __forceinline__ void l1_step_of(const PgdStepCall& call, int64_t j, bool vector) {
  const StepRow place(call, j);
  bool nonfinite = false;
  if (place.real) {  // the same for all threads
    Row row(call, place, j, vector);
    nonfinite = !l1_step_in_block(call, place, row);
  }
  if (threadIdx.x == 0) write(call.nonfinite_out + j, nonfinite);
}

template <class T, class G, int turns>
__global__ void __launch_bounds__(kHeldThreads, 1)
    l1_step_kernel(PgdStepCall call, int64_t first_row, bool vector) {
  l1_step_of<HeldL1Row<T, G, turns>>(call, first_row + blockIdx.x, vector);
}

template <class T, class G>
__global__ void __launch_bounds__(kLongThreads) l1_long_step_kernel(PgdStepCall call, int64_t first_row, bool vector) {
  l1_step_of<LongL1Row<T, G>>(call, first_row + blockIdx.x, vector);
}

}  // namespace fastsal
