// How the threads of a warp or of a block share a row of logits. They take it in turns: in each turn a thread has kPack
// elements, 16 bytes of them. In a wide row these are neighbours and move in one access. In any other row (odd length or
// base) they lie `threads` apart and move one by one, so that neighbouring threads still touch neighbouring elements.
#pragma once

#include "../rows/losses.h"
#include "rows.cuh"

namespace fastsal {

// A kernel that reads long rows twice streams them.
constexpr unsigned kLongRowThreads = kStreamThreads, kLongRowBlocks = kStreamBlocks;

template <class Z>
constexpr int kPack = 16 / int(sizeof(Z));

template <class Z>
struct alignas(16) Pack {
  Z elements[kPack<Z>];
};

// The same 16 bytes as words. In them 16-bit elements take half a register each, in a Pack a whole one.
struct alignas(16) Words {
  uint32_t words[4];
};
template <class Z>
__device__ __forceinline__ Words read_words(const Z* at) {
#if defined(__CUDA_ARCH__)
  return read(reinterpret_cast<const Words*>(at));
#else
  return bits_of<Words>(read(reinterpret_cast<const Pack<Z>*>(at)));
#endif
}
template <class Z>
__device__ __forceinline__ void write_words(Z* at, const Words& words) {
#if defined(__CUDA_ARCH__)
  write(reinterpret_cast<Words*>(at), words);
#else
  write(reinterpret_cast<Pack<Z>*>(at), bits_of<Pack<Z>>(words));
#endif
}

// A value in the type of the row that it goes to.
template <class Z, class T>
__device__ __forceinline__ void write_as(Z* at, T value) {
  Z rounded;
  store(&rounded, value);
  write(at, rounded);
}

// The threads of one row. `reduce` gives every one of them the combination of what each brought.
struct WarpTeam {
  static constexpr unsigned kMostThreads = 128;  // of a block
  __device__ __forceinline__ int thread() const { return int(threadIdx.x % kWarp); }
  __device__ __forceinline__ int threads() const { return int(kWarp); }
  __device__ __forceinline__ int threads_anew() const { return int(kWarp); }
  __device__ __forceinline__ int64_t first_row() const {
    return int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  }
  __device__ __forceinline__ int64_t rows_apart() const {
    return int64_t(opaque(gridDim.x)) * (block_threads() / kWarp);
  }
  template <class V, class Combine, class Shuffle>
  __device__ __forceinline__ V reduce(V value, Combine combine, Shuffle shuffle) const {
    for (unsigned d = kWarp / 2; d > 0; d /= 2) value = combine(value, shuffle(value, d));
    return value;
  }
  __device__ __forceinline__ bool any(bool value) const { return __any_sync(kAllLanes, value) != 0; }
};

struct BlockTeam {
  static constexpr unsigned kMostThreads = 1024;
  __device__ __forceinline__ int thread() const { return int(threadIdx.x); }
  __device__ __forceinline__ int threads() const { return int(blockDim.x); }
  __device__ __forceinline__ int threads_anew() const { return int(block_threads()); }  // not kept in between
  __device__ __forceinline__ int64_t first_row() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t rows_apart() const { return gridDim.x; }
  template <class V, class Combine, class Shuffle>
  __device__ __forceinline__ V reduce(V value, Combine combine, Shuffle shuffle) const {
    __shared__ V lanes[kWarps];
    return block_reduce(value, lanes, combine, shuffle);
  }
  __device__ __forceinline__ bool any(bool value) const { return block_any(value); }
};

// Several values that are reduced at once, each by the same rule.
template <class V, int count>
struct Several {
  V values[count];
};
template <class V, int count, template <class> class Rule>
struct EachBy {
  __device__ __forceinline__ Several<V, count> operator()(Several<V, count> a, Several<V, count> b) const {
#pragma unroll
    for (int i = 0; i < count; ++i) a.values[i] = Rule<V>()(a.values[i], b.values[i]);
    return a;
  }
};
template <class V, int count>
struct ShuffleSeveral {
  __device__ __forceinline__ Several<V, count> operator()(Several<V, count> a, unsigned d) const {
#pragma unroll
    for (int i = 0; i < count; ++i) a.values[i] = ShuffleValue<V>()(a.values[i], d);
    return a;
  }
};

template <template <class> class Rule, class Team, class V, int count>
__device__ __forceinline__ Several<V, count> reduce_each(const Team& team, const Several<V, count>& values) {
  return team.reduce(values, EachBy<V, count, Rule>(), ShuffleSeveral<V, count>());
}

template <class Team, class T>
__device__ __forceinline__ T team_sum(const Team& team, T value) {
  return team.reduce(value, Add<T>(), ShuffleValue<T>());
}

// The largest; no value may be NaN.
template <class Team, class T>
__device__ __forceinline__ T team_max(const Team& team, T value) {
  return team.reduce(value, Larger<T>(), ShuffleValue<T>());
}

// The best logit and its class; the index of a thread that has met none lies beyond the row.
template <class Team, class T>
__device__ __forceinline__ Indexed<T> team_best(const Team& team, Indexed<T> own) {
  return team.reduce(own, Better<T>(), ShuffleIndexed<T>());
}

template <class Z, bool wide>
struct Walk {
  using T = typename LossOf<Z>::Type;
  static constexpr int pack = kPack<Z>;
  int classes, thread, threads;

  template <class Team>
  __device__ __forceinline__ Walk(const Team& team, int64_t row_classes)
      : classes(int(row_classes)), thread(team.thread()), threads(team.threads()) {}

  // Whether anybody has an element in this turn, and where this thread's are: ascending with turn and e.
  __device__ __forceinline__ bool any(int turn) const { return turn * threads * pack < classes; }
  __device__ __forceinline__ int at(int turn, int e) const {
    return wide ? (turn * threads + thread) * pack + e : (turn * pack + e) * threads + thread;
  }

  // Beyond the end of the row lies -inf, which adds nothing to a softmax.
  __device__ __forceinline__ void load(const Z* row, int turn, T (&out)[pack]) const {
    constexpr T nothing = -Limits<T>::infinity;
    if (wide) {
      const bool there = at(turn, 0) < classes;
      Pack<Z> loaded;
      if (there) loaded = fastsal::read(reinterpret_cast<const Pack<Z>*>(row + at(turn, 0)));
#pragma unroll
      for (int e = 0; e < pack; ++e) out[e] = there ? T(value(loaded.elements[e])) : nothing;
    } else {
#pragma unroll
      for (int e = 0; e < pack; ++e)
        out[e] = at(turn, e) < classes ? T(value(fastsal::read(row + at(turn, e)))) : nothing;
    }
  }

  __device__ __forceinline__ void save(Z* row, int turn, const T (&in)[pack]) const {
    if (wide) {
      if (at(turn, 0) >= classes) return;
      Pack<Z> stored;
#pragma unroll
      for (int e = 0; e < pack; ++e) store(&stored.elements[e], in[e]);
      fastsal::write(reinterpret_cast<Pack<Z>*>(row + at(turn, 0)), stored);
    } else {
#pragma unroll
      for (int e = 0; e < pack; ++e)
        if (at(turn, e) < classes) write_as(row + at(turn, e), in[e]);
    }
  }

  __device__ __forceinline__ void blank(Z* row) const {
    const T zeros[pack] = {};
    for (int turn = 0; any(turn); ++turn) save(row, turn, zeros);
  }
};

// The same walk over a row that is not held: `few` elements at a time, so that few registers are needed.
template <class Z>
constexpr int kFew = sizeof(Z) == 8 ? 1 : 4;
template <class Z, bool wide, class Team, int few_ = kFew<Z>>
struct LongWalk {
  using T = typename LossOf<Z>::Type;
  static constexpr int few = few_, parts = wide ? kPack<Z> / few : 1, pack = few * parts;
  const Team& team;
  int classes;

  __device__ __forceinline__ LongWalk(const Team& team_, int64_t row_classes)
      : team(team_), classes(int(row_classes)) {}
  // Where this thread begins, and how far its turns are apart; not kept from one to the next.
  __device__ __forceinline__ int begin() const { return opaque(team.thread()) * (wide ? pack : 1); }
  __device__ __forceinline__ int turn() const { return pack * team.threads_anew(); }

  // body(z, at, step) for all elements; beyond the end of the row lies -inf.
  template <class Body>
  __device__ __forceinline__ void read(const Z* row, Body body) const {
#pragma unroll 1
    for (int first = begin(); first < classes; first += turn())
      part_by_part(row, static_cast<Z*>(nullptr), first, body);
  }
  // The same, and what body leaves in z goes to `out`.
  template <class Body>
  __device__ __forceinline__ void rewrite(const Z* row, Z* out, Body body) const {
#pragma unroll 1
    for (int first = begin(); first < classes; first += turn()) part_by_part(row, out, first, body);
  }

  // The same for the same elements of two rows. Each of the four is a function that returns where a row begins (null:
  // that output is not wanted), called where it matters, so that pointers hold no registers.
  template <class A, class B, class OutA, class OutB, class Body>
  __device__ __forceinline__ void rewrite_two(A a, B b, OutA out_a, OutB out_b, Body body) const {
#pragma unroll 1
    for (int first = begin(); first < classes; first += turn()) two(a, b, out_a, out_b, first, body);
  }
  template <class A, class B, class Body>
  __device__ __forceinline__ void read_two(A a, B b, Body body) const {
    const auto nowhere = [] { return static_cast<Z*>(nullptr); };
    rewrite_two(a, b, nowhere, nowhere, body);
  }
  // body(i) for every element of `out`
  template <class Body>
  __device__ __forceinline__ void write(Z* out, Body body) const {
#pragma unroll 1
    for (int first = begin(); first < classes; first += turn()) {
      if (wide) {
        Words made{};
#pragma unroll 1
        for (int part = 0; part < parts; ++part) {
          T z[few];
#pragma unroll
          for (int e = 0; e < few; ++e) z[e] = body(first + part * few + e);
          put(made, part, z);
        }
        write_words(out + first, made);
      } else {
        const int threads = team.threads();
#pragma unroll
        for (int e = 0; e < pack; ++e)
          if (first + e * threads < classes) write_as(out + first + e * threads, body(first + e * threads));
      }
    }
  }
  __device__ __forceinline__ void blank(Z* out) const {
    write(out, [](int) { return T(0); });
  }

 private:
  template <class Body>
  __device__ __forceinline__ void part_by_part(const Z* row, Z* out, int first, Body body) const {
    T z[few];
    if (wide) {
      Words held = read_words(row + first);
#pragma unroll 1
      for (int part = 0; part < parts; ++part) {
        pick(held, part, z);
        body(z, first + part * few, 1);
        if (out) put(held, part, z);
      }
      if (out) write_words(out + first, held);
    } else {
      const int threads = team.threads();
#pragma unroll
      for (int e = 0; e < few; ++e)
        z[e] = first + e * threads < classes ? T(value(fastsal::read(row + first + e * threads)))
                                             : -Limits<T>::infinity;
      body(z, first, threads);
#pragma unroll
      for (int e = 0; e < few; ++e)
        if (out && first + e * threads < classes) write_as(out + first + e * threads, z[e]);
    }
  }
  // Elements `part * few` and on, by indices that are known when this is compiled: else the words went to memory.
  struct Part {
    static constexpr int words = few * int(sizeof(Z)) / 4;
    uint32_t held[words];
  };
  struct Elements {
    Z elements[few];
  };
  static __device__ __forceinline__ void pick(const Words& from, int part, T (&z)[few]) {
    Part own{};
#pragma unroll
    for (int known = 0; known < parts; ++known)
#pragma unroll
      for (int w = 0; w < Part::words; ++w)
        if (known == 0 || part == known) own.held[w] = from.words[known * Part::words + w];
    const Elements taken = bits_of<Elements>(own);
#pragma unroll
    for (int e = 0; e < few; ++e) z[e] = T(value(taken.elements[e]));
  }
  static __device__ __forceinline__ void put(Words& into, int part, const T (&z)[few]) {
    Elements made;
#pragma unroll
    for (int e = 0; e < few; ++e) store(&made.elements[e], z[e]);
    const Part own = bits_of<Part>(made);
#pragma unroll
    for (int known = 0; known < parts; ++known)
#pragma unroll
      for (int w = 0; w < Part::words; ++w)
        if (part == known) into.words[known * Part::words + w] = own.held[w];
  }

  template <class A, class B, class OutA, class OutB, class Body>
  __device__ __forceinline__ void two(A a, B b, OutA out_a, OutB out_b, int first, Body body) const {
    T p[few], q[few];
    if (wide) {
      Words one = read_words(a() + first);
      Words other = read_words(b() + first);
#pragma unroll(sizeof(Z) == 8 ? parts : 1)
      for (int part = 0; part < parts; ++part) {
        pick(one, part, p), pick(other, part, q);
        body(p, q);
        put(one, part, p), put(other, part, q);
      }
      if (out_a()) write_words(out_a() + first, one);
      if (out_b()) write_words(out_b() + first, other);
    } else {
      const int threads = team.threads();
#pragma unroll
      for (int e = 0; e < few; ++e) {
        const int i = first + e * threads;
        p[e] = i < classes ? T(value(fastsal::read(a() + i))) : -Limits<T>::infinity;
        q[e] = i < classes ? T(value(fastsal::read(b() + i))) : -Limits<T>::infinity;
      }
      body(p, q);
#pragma unroll
      for (int e = 0; e < few; ++e) {
        const int i = first + e * threads;
        if (out_a() && i < classes) write_as(out_a() + i, p[e]);
        if (out_b() && i < classes) write_as(out_b() + i, q[e]);
      }
    }
  }
};

// The sum of exp(z - top) while `top`, the largest so far, still grows. NaN never is the largest, but makes the sum NaN,
// and so does +inf.
template <class T>
struct SoftmaxSum {
  T top = -Limits<T>::infinity, sum = 0;
  // What to subtract: -inf less -inf is no number, and an empty sum is 0.
  static __device__ __forceinline__ T anchor(T top) { return top > -Limits<T>::largest ? top : -Limits<T>::largest; }
  template <int count>
  __device__ __forceinline__ void add(const T (&z)[count]) {
    T higher = top;
#pragma unroll
    for (int e = 0; e < count; ++e) higher = z[e] > higher ? z[e] : higher;
    if (higher > top) sum = relative_to(higher), top = higher;
#pragma unroll
    for (int e = 0; e < count; ++e) sum += softmax_term(z[e], anchor(top));
  }
  // exp(-|z - top|): the one exponential that a single logit needs, whether it is above the top or not.
  static __device__ __forceinline__ T weight_of(T z, T top) {
    const T anchored = anchor(top);
    return softmax_term(z > top ? anchored : z, z > top ? z : anchored);
  }
  __device__ __forceinline__ void add_weighted(T weight, T z) {
    const bool rises = z > top;
    sum = rises ? sum * weight + (1 + (z - z)) : sum + weight;  // an infinite z spoils it
    top = rises ? z : top;
  }
  __device__ __forceinline__ T relative_to(T higher) const { return sum * softmax_term(anchor(top), anchor(higher)); }
};

// The sample of row j: -1 for padding, and for an id that is none.
__device__ __forceinline__ int64_t sample_of(const int64_t* ids, int64_t j, int64_t samples) {
  const int64_t sample = ids ? ids[j] : j;
  return sample >= 0 && sample < samples ? sample : -1;
}

// The label of a sample: -1 where it names no class.
__device__ __forceinline__ int label_of(const int64_t* labels, int64_t sample, int64_t classes) {
  const int64_t label = labels[sample];
  return label >= 0 && label < classes ? int(label) : -1;
}

}  // namespace fastsal
