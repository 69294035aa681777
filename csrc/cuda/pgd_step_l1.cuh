// The L1 step: one launch, a block per row. A row that fits into the registers of a block is read once; of a longer one
// every pass of the two searches reads the gradient, or all three operands, again.
#pragma once

#include "../rows/l1_step.h"
#include "pgd_step_rows.cuh"
#include "squares.cuh"

namespace fastsal {

// Room in shared memory for a value that has a constructor.
template <class V>
struct InShared {
  alignas(V) unsigned char bytes[sizeof(V)];
  __device__ __forceinline__ V& value() { return *reinterpret_cast<V*>(bytes); }
};

// A number that all passes of a row need, the same for all threads: in a register of each,
template <class V>
class InRegister {
 public:
  __device__ __forceinline__ InRegister(V&, V value) : value_(value) {}
  __device__ __forceinline__ explicit InRegister(const V& from) : value_(from) {}
  __device__ __forceinline__ operator V() const { return value_; }

 private:
  const V value_;
};

// or in shared memory at `at`. Read anew at each use (volatile), it holds no register.
template <class V>
class ReadAnew {
 public:
  // By the whole block.
  __device__ __forceinline__ ReadAnew(V& at, V value) : at_(at) {
    if (threadIdx.x == 0) at = value;
    __syncthreads();
  }
  __device__ __forceinline__ explicit ReadAnew(const V& at) : at_(at) {}
  __device__ __forceinline__ operator V() const { return at_; }

 private:
  const volatile V& at_;
};

// A Sum of each thread of a streaming kernel's block, in shared memory likewise; one at a time.
template <bool compensated>
class SharedSum {
 public:
  __device__ __forceinline__ SharedSum() { put({}); }
  __device__ __forceinline__ void add(double v) {
    Sum<compensated> sum = *this;
    sum.add(v);
    put(sum);
  }
  __device__ __forceinline__ operator Sum<compensated>() const {
    Sum<compensated> sum;
    sum.sum = room().sum[threadIdx.x];
    if (compensated) sum.carry = room().carry[threadIdx.x];
    return sum;
  }

 private:
  struct Room {
    double sum[kStreamThreads], carry[compensated ? kStreamThreads : 1];
  };
  static __device__ __forceinline__ volatile Room& room() {
    __shared__ Room shared;
    return shared;
  }
  static __device__ __forceinline__ void put(const Sum<compensated>& sum) {
    room().sum[threadIdx.x] = sum.sum;
    if (compensated) room().carry[threadIdx.x] = sum.carry;
  }
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
  template <class V>
  using Number = InRegister<V>;
  using KeptSum = Sum<sizeof(T) == 8>;
  using Count = double;
  static constexpr bool few = false;  // registers

  __device__ __forceinline__ HeldL1Row(const PgdStepCall& call, const StepRow& place, int64_t j, bool vector)
      : part_(call, place, j, 0, int(call.size), vector), sample_(place.sample), moved_(0), upwards_(0) {
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
  __device__ __forceinline__ int64_t sample() const { return sample_; }
  __device__ __forceinline__ void save(const Part& part, int k, const Group<T, group>& out) const { part.save(k, out); }
  __device__ __forceinline__ T low(const Part& part, int i) const { return part.box.low(i); }
  __device__ __forceinline__ T high(const Part& part, int i) const { return part.box.high(i); }
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
  __device__ __forceinline__ void each_point(Moves, Number<double> share, Body body, AtTurn at_turn) const {
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
  const int64_t sample_;
  typename Part::Elements held_[turns];
  Key keys_[turns][group];
  unsigned moved_, upwards_;
};

// A row of any length, segment by segment, in threads with few registers: from turn to turn these hold nothing of the
// row, and an element's bounds are looked up where they are used.
template <class T, class G>
class LongL1Row {
 public:
  static constexpr int group = kGroup<T>;
  using Point = T;
  using Key = KeyOf<T, G>;
  using Part = StepSegment<T, G>;
  template <class V>
  using Number = ReadAnew<V>;
  using KeptSum = SharedSum<sizeof(T) == 8>;
  using Count = unsigned;
  static constexpr bool few = true;

  __device__ __forceinline__ LongL1Row(const PgdStepCall& call, const StepRow& place, int64_t j, bool vector)
      : call_(call), vector_(vector), j_(kept().j, j), sample_(kept().sample, place.sample),
        slot_(kept().slot, place.slot), low_(kept().low, bounds().low([] { return 0; })),
        high_(kept().high, bounds().high([] { return 0; })) {}
  __device__ __forceinline__ int64_t sample() const { return sample_; }
  __device__ __forceinline__ void save(const Part& part, int k, const Group<T, group>& out) const {
    part.save_to(static_cast<T*>(call_.next_out) + j_ * call_.size + part.first, k, out);
  }
  __device__ __forceinline__ T low(const Part& part, int i) const {
    return call_.clip_min_count > 1 ? bounds().low([&] { return channel(part, i); }) : T(low_);
  }
  __device__ __forceinline__ T high(const Part& part, int i) const {
    return call_.clip_max_count > 1 ? bounds().high([&] { return channel(part, i); }) : T(high_);
  }
  template <class Body>
  __device__ __forceinline__ void each_key(Body body) const {
    each_turn([&](const Part& part, int k) {
      typename Part::Elements e;
      part.load_slopes(k, e);
#pragma unroll
      for (int v = 0; v < group; ++v) body(part, k, v, magnitude_key(e.slope[v]));
    });
  }
  template <class Moves>
  __device__ __forceinline__ void settle(Moves) {}
  template <class Moves, class Body, class AtTurn>
  __device__ __forceinline__ void each_point(Moves moves, Number<double> share, Body body, AtTurn at_turn) const {
    each_turn([&](const Part& part, int k) {
      typename Part::Elements e;
      part.load_slopes(k, e);
      unsigned ways = 0;  // two bits of each element, so that its slope holds no register: does it move, and upwards
#pragma unroll
      for (int v = 0; v < group; ++v) {
        const unsigned way = unsigned(moves(part, k, v, magnitude_key(e.slope[v]))) + 2 * unsigned(e.slope[v] > 0);
        ways = opaque(ways | (way << (2 * v)));
      }
      part.load_points(opaque(k), e);
#pragma unroll
      for (int v = 0; v < group; ++v)
        body(part, k, v, e.clean[v],
             l1_displacement(e.clean[v], e.here[v], (ways >> (2 * v)) & 2 ? 1 : -1, (ways >> (2 * v)) & 1, share));
      at_turn(part, k);
    });
  }

 private:
  // body(part, k) for each turn
  template <class Body>
  __device__ __forceinline__ void each_turn(Body body) const {
#pragma unroll 1
    for (int64_t first = 0; first < call_.size; first += kSegment) {
#pragma unroll 1
      for (int k = 0; k * int(block_threads()) * group < length(first); ++k)
        body(Part(call_, StepRow(sample_, slot_), 0, opaque(first), length(first), vector_), k);
    }
  }
  __device__ __forceinline__ int length(int64_t first) const {
    const int64_t left = call_.size - opaque(first);
    return int(left < kSegment ? left : kSegment);
  }
  struct Kept {
    int64_t j, sample, slot;
    T low, high;  // those that all elements share
  };
  static __device__ __forceinline__ Kept& kept() {
    __shared__ Kept shared;
    return shared;
  }
  __device__ __forceinline__ Bounds<T, PgdStepCall> bounds() const { return Bounds<T, PgdStepCall>(call_); }
  __device__ __forceinline__ int64_t channel(const Part& part, int i) const {
    if (i >= part.length) return 0;
    const int64_t period = call_.channels_last ? call_.channels : call_.places;
    const int64_t offset = part.first + i, whole = quotient(offset, period);
    return call_.channels_last ? offset - whole * call_.channels : whole;
  }
  const PgdStepCall& call_;
  const bool vector_;
  const Number<int64_t> j_, sample_, slot_;
  const Number<T> low_, high_;
};

template <class Row, class Test>
__device__ __forceinline__ int64_t count_keys(const Row& row, Test test) {
  __shared__ int64_t lanes[kWarps];
  unsigned count = 0;  // of one thread
  row.each_key([&](const auto& part, int k, int v, auto key) { count += test(part, k, v, key); });
  return block_sum<Row::few>(int64_t(count), lanes);
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
__device__ __forceinline__ bool l1_step_in_block(const PgdStepCall& call, Row& row) {
  using T = typename Row::Point;
  using Key = typename Row::Key;
  __shared__ double lanes[kWarps];
  __shared__ Key key_lanes[kWarps];
  Key largest = 0;
  row.each_key([&](const auto&, int, int, Key key) { largest = key > largest ? key : largest; });
  largest = block_max<Row::few>(largest, key_lanes);
  __shared__ struct {
    bool finite;
    Key threshold;
    int64_t last;
    double share;
  } room;
  const typename Row::template Number<bool> finite(
      room.finite, largest < (sizeof(Key) == 8 ? Key(0x7ff0000000000000ull) : Key(0x7f800000u)));
  L1Choice<Key> choice{largest, -1, 0};  // nothing moves
  if (finite) choice = l1_choose_in_block(row, call, largest);
  const typename Row::template Number<double> share(
      room.share, double(per_sample<T>(call.alpha, call.alpha_count, row.sample())) /
                      double(choice.moving > 0 ? choice.moving : 1));
  const typename Row::template Number<Key> threshold(room.threshold, choice.threshold);
  const typename Row::template Number<int64_t> last(room.last, choice.last);
  const RowOrder order(call);
  const auto moves = [&](const auto& part, int k, int v, Key key) {
    return key > threshold ||
           (key == threshold && last >= 0 &&
            (last >= call.size || order.logical(part.first + part.at(opaque(k), v)) <= last));
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
  reach = block_max<Row::few>(reach, lanes);
  if (threadIdx.x == 0)
    search = ShrinkSearch(inner_radius(per_sample<T>(call.eps, call.eps_count, row.sample())), reach);
  __syncthreads();
  while (!search.done) {
    typename Row::KeptSum kept;
    typename Row::Count falling = 0;  // of one thread
    const typename Row::template Number<double> probe(search.probe);
    row.each_point(
        moves, share,
        [&](const auto& part, int k, int v, T clean, double delta) {
          const int i = part.at(opaque(k), v);
          const double room = l1_room(clean, delta, row.low(part, i), row.high(part, i)), shrink = probe;
          kept.add(l1_kept(fabs(delta), shrink, room));
          falling += typename Row::Count(l1_falls(fabs(delta), shrink, room));
        },
        nothing);
    const double mass = block_sum<Row::few>(Sum<sizeof(T) == 8>(kept).sum, lanes);
    const double all_falling = block_sum<Row::few>(double(falling), lanes);
    if (threadIdx.x == 0) search.report(mass, all_falling);
    __syncthreads();
  }
  const typename Row::template Number<double> probe(search.probe);
  Group<T, Row::group> out;
  row.each_point(
      moves, share,
      [&](const auto& part, int k, int v, T clean, double delta) {
        const int i = part.at(opaque(k), v);
        const T low = row.low(part, i), high = row.high(part, i);
        out.values[v] = l1_point(clean, delta, l1_kept(fabs(delta), double(probe), l1_room(clean, delta, low, high)),
                                 low, high);
      },
      [&](const auto& part, int k) { row.save(part, k, out); });
  return finite;
}

template <class Row>
__device__ __forceinline__ void l1_step_of(const PgdStepCall& call, int64_t j, bool vector) {
  const StepRow place(call, j);
  bool nonfinite = false;
  if (place.real) {  // the same for all threads
    Row row(call, place, j, vector);
    nonfinite = !l1_step_in_block(call, row);
  }
  if (threadIdx.x == 0) write(call.nonfinite_out + j, nonfinite);
}

template <class T, class G, int turns>
__global__ void __launch_bounds__(kHeldThreads, 1)
    l1_step_kernel(PgdStepCall call, int64_t first_row, bool vector) {
  l1_step_of<HeldL1Row<T, G, turns>>(call, first_row + blockIdx.x, vector);
}

template <class T, class G>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks)
    l1_long_step_kernel(PgdStepCall call, int64_t first_row, bool vector) {
  l1_step_of<LongL1Row<T, G>>(call, first_row + blockIdx.x, vector);
}

}  // namespace fastsal
